"""Settings from a command line and a YAML file, by the fields of config classes."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from jaxsgl.config import ConfigError

CONFIG_FLAG = "--config"
MAX_FILE_BYTES = 1 << 20


class OneLineParser(argparse.ArgumentParser):
    """Raises ConfigError for a bad command line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse_command_line(
    argv: Sequence[str], prog: str, description: str, *configs: type
) -> tuple[Any, ...]:
    """One instance of each config class, filled from `argv`, then from the file that `--config`
    names, then from the fields' defaults.

    Raises ConfigError, one line, for a bad command line or file. Exits with 0 after `--help`.
    """
    flags = Flags(prog, description, configs)
    given = flags.parse(argv)
    path = given.pop(_FILE, None)
    if path is not None:
        given = flags.parse_file(path) | given
    return tuple(
        config(**{f.name: given[f.name] for f in dataclasses.fields(config) if f.name in given})
        for config in configs
    )


_FILE = "config file"
"""Where the parser keeps the argument of `--config`; no field has such a name."""


class Flags:
    """The flags that the fields of some config classes make."""

    def __init__(self, prog: str, description: str, configs: Sequence[type]) -> None:
        self._parser = OneLineParser(prog=prog, description=description, allow_abbrev=False)
        self._parser.add_argument(
            CONFIG_FLAG,
            dest=_FILE,
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="YAML file with settings, named like the flags; flags win over it",
        )
        self._actions: dict[str, argparse.Action] = {}
        self._axes: dict[str, list[str]] = {}
        """For a field that is also written as one flag per axis, the axes."""
        groups: dict[str, Any] = {}
        for config in configs:
            group_name = config.__doc__ or config.__name__
            kinds = typing.get_type_hints(config)
            for f in dataclasses.fields(config):
                group_name = f.metadata["group"] or group_name
                if group_name not in groups:
                    groups[group_name] = self._parser.add_argument_group(group_name)
                self._add(groups[group_name].add_argument, f, kinds[f.name])

    @property
    def names(self) -> list[str]:
        """Every flag, its aliases included."""
        return [CONFIG_FLAG, *(f"--{name}" for name in self._actions)]

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """The fields that `argv` sets. Raises ConfigError."""
        given = vars(self._parser.parse_args(argv))
        for name, axes in self._axes.items():
            pairs = [f"{axis}={size}" for axis in axes if (size := given.pop(axis, None))]
            if pairs and name in given:
                raise ConfigError(f"--{name} and --{pairs[0].partition('=')[0]} say the same twice")
            if pairs:
                given[name] = ",".join(pairs)
        return given

    def parse_file(self, path: str) -> dict[str, Any]:
        """The fields that a YAML file sets. Raises ConfigError, one line that names the file."""
        switches: dict[str, bool] = {}
        arguments: list[str] = []
        try:
            for key, value in _read_mapping(path).items():
                self._take(str(key).replace("_", "-"), value, switches, arguments)
            return self.parse(arguments) | switches
        except ConfigError as error:
            raise ConfigError(f"{CONFIG_FLAG} {path}: {error}") from None

    def _take(
        self, name: str, value: object, switches: dict[str, bool], arguments: list[str]
    ) -> None:
        """Turn one entry of a file into what it sets or into arguments."""
        action = self._actions.get(name)
        if action is None:
            raise ConfigError(f"{name[:100]!r} is no setting")
        if isinstance(action.const, bool):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is true or false")
            switches[action.dest] = value is action.const
            return
        is_many = isinstance(action, _Append)
        values = typing.cast(list[object], value) if isinstance(value, list) else [value]
        if len(values) != 1 and not is_many:
            raise ConfigError(f"{name} takes one value")
        for each in values:
            if isinstance(each, bool) or not isinstance(each, str | int | float):
                raise ConfigError(f"{name} takes texts or numbers")
            arguments.append(f"--{name}={each}")

    def _add(self, add_argument: Callable[..., Any], f: dataclasses.Field[Any], kind: Any) -> None:
        names = [name.replace("_", "-") for name in (f.name, *f.metadata["aliases"])]
        if kind is bool:
            self._add_switch(add_argument, f, names)
            return
        if isinstance(kind, types.UnionType):  # X | None
            (kind,) = (member for member in typing.get_args(kind) if member is not type(None))
        is_many = typing.get_origin(kind) is tuple
        if is_many:
            kind = typing.get_args(kind)[0]
        default = "" if f.default is None or f.default == () else f" (default: {f.default})"
        self._register(
            add_argument,
            names,
            dest=f.name,
            action=_Append if is_many else "store",
            type=_bounded(kind, f.metadata["low"]),
            default=argparse.SUPPRESS,
            choices=f.metadata["choices"],
            metavar=None if f.metadata["choices"] else kind.__name__.upper(),
            help=(f.metadata["help"] + default).replace("%", "%%"),
        )
        for axis, axis_names in f.metadata["axes"].items():
            self._axes.setdefault(f.name, []).append(axis)
            self._register(
                add_argument,
                axis_names,
                dest=axis,
                type=_bounded(int, 1),
                default=argparse.SUPPRESS,
                metavar="N",
                help=f"the same as --{f.name} {axis}=N",
            )

    def _add_switch(
        self, add_argument: Callable[..., Any], f: dataclasses.Field[Any], names: list[str]
    ) -> None:
        """What is off by default has a flag; what is on has others to say so and to turn it off."""
        help_text = f.metadata["help"].replace("%", "%%")
        if f.default:
            forms = {True: ("enable-", ""), False: ("disable-",)}
        else:
            forms = {True: ("",)}
        for value, prefixes in forms.items():
            self._register(
                add_argument,
                [f"{prefix}{name}" for prefix in prefixes for name in names],
                dest=f.name,
                action="store_const",
                const=value,
                default=argparse.SUPPRESS,
                help=help_text if not f.default else "default" if value else f"do not {help_text}",
            )

    def _register(
        self, add_argument: Callable[..., Any], names: Sequence[str], **kwargs: Any
    ) -> None:
        action: argparse.Action = add_argument(*(f"--{name}" for name in names), **kwargs)
        self._actions.update((name, action) for name in names)


class _Append(argparse.Action):
    """Gathers the values of a flag that may be given several times, as a tuple."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def _bounded(kind: Any, low: float | None) -> Callable[[str], Any]:
    """`kind`, refusing numbers below `low`, and NaN."""
    if low is None:
        return kind

    def number(text: str) -> Any:
        value = kind(text)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"must be at least {low:g}")
        return value

    number.__name__ = kind.__name__  # argparse names the type of what it cannot read
    return number


class _Loader(yaml.SafeLoader):
    """YAML whose mappings have each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise ConfigError(f"{min(repeated)!r} is there twice")
        return super().construct_mapping(node, deep)


def _read_mapping(path: str) -> dict[Any, Any]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes")
        found: object = _Loader(data).get_single_data()
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from None
    except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError("no mapping of settings to values")
    return typing.cast(dict[Any, Any], found)
