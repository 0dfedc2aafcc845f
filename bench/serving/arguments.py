"""The command line of `jaxsgl-bench`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from bench.serving.arrivals import Ramp
from bench.serving.backends import BACKENDS
from bench.serving.datasets import DATASETS
from bench.serving.plots import FORMATS
from bench.serving.report import parse_goodput
from bench.serving.sweep import Sweep

DEFAULT_CONCURRENCY = 16
DESCRIPTION = "Load on a running server, and how it bears it. Every request is a streamed answer."


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Exits with 2 and a message if the settings do not go together."""
    parser = argparse.ArgumentParser("jaxsgl-bench", description=DESCRIPTION, allow_abbrev=False)
    _add_server(parser)
    _add_load(parser)
    _add_dataset(parser)
    _add_report(parser)
    _add_modes(parser)
    args = parser.parse_args(argv)
    try:
        args.goodput = parse_goodput(args.goodput)
    except ValueError as error:
        parser.error(f"--goodput: {error}")
    if problem := _problem(args):
        parser.error(problem)
    rated = args.request_rate is not None or (args.sweep and args.sweep.setting == "request-rate")
    if not rated and args.max_concurrency is None:
        args.max_concurrency = DEFAULT_CONCURRENCY
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What goes into the result file: no headers, which may hold a key, and no infinities."""
    kept = {name: value for name, value in vars(args).items() if name not in ("header", "compare")}
    if args.request_rate is not None and math.isinf(args.request_rate):
        kept["request_rate"] = "inf"
    for name in ("ramp", "sweep"):
        kept[name] = vars(kept[name]) if kept[name] is not None else None
    return kept


def _problem(args: argparse.Namespace) -> str | None:
    if args.dataset in ("shared-prefix", "tree") and not 0 < args.prefix_len < args.input_len:
        return "--prefix-len must be below --input-len"
    if args.dataset == "file" and args.dataset_path is None:
        return "--dataset file needs --dataset-path"
    swept = args.sweep.setting if args.sweep is not None else None
    rated = args.request_rate is not None or swept == "request-rate"
    if not rated and (args.ramp is not None or args.burstiness != 1.0):
        return "--ramp and --burstiness shape --request-rate"
    if args.ramp is not None and args.request_rate is not None and math.isinf(args.request_rate):
        return "--ramp needs a finite --request-rate"
    if args.interleave is not None and args.sweep is not None:
        return "--interleave and --sweep do not go together"
    if args.interleave is not None and args.num_prompts < args.rounds:
        return "--rounds must not exceed --num-prompts"
    return None


def _checked(
    kind: Callable[[str], Any], low: float, *, above: bool = False
) -> Callable[[str], Any]:
    """A number of at least `low`, or above it."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not (value > low if above else value >= low):
            raise argparse.ArgumentTypeError(f"{text} is too small")
        return value

    return convert


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object is wanted")
    return value


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError("NAME:VALUE is wanted")
    return name.strip(), value.strip()


def _plot_path(text: str) -> str:
    if not text.endswith(FORMATS):
        raise argparse.ArgumentTypeError(f"a name that ends in {', '.join(FORMATS)} is wanted")
    return text


def _add_server(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("server").add_argument
    add("--backend", choices=tuple(BACKENDS), default="jaxsgl", help="the dialect of the server")
    add("--url", default="http://127.0.0.1:30000")
    add("--model", help="its name in requests; the first that the server lists unless given")
    add("--header", type=_header, action="append", default=[], metavar="NAME:VALUE")
    add("--extra-body", type=_object, default={}, metavar="JSON", help="more members of requests")
    add(
        "--timeout",
        type=_checked(float, 0, above=True),
        default=600.0,
        metavar="S",
        help="seconds that a request may take from when it is sent",
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("load").add_argument
    add("--num-prompts", type=_checked(int, 1), default=64, help="sending stops after so many")
    add(
        "--duration",
        type=_checked(float, 0, above=True),
        metavar="S",
        help="sending stops after so many seconds, if --num-prompts did not stop it before",
    )
    add(
        "--request-rate",
        type=_checked(float, 0, above=True),
        metavar="RATE",
        help="open loop: conversations that begin per second; inf: all at once",
    )
    add(
        "--burstiness",
        type=_checked(float, 0, above=True),
        default=1.0,
        metavar="SHAPE",
        help="of the gamma-distributed gaps: 1 Poisson, below in bursts, above evenly",
    )
    add(
        "--ramp",
        type=Ramp.parse,
        metavar="RATE:S",
        help="begin at RATE and reach --request-rate after S seconds",
    )
    add(
        "--max-concurrency",
        type=_checked(int, 1),
        metavar="N",
        help="without --request-rate a closed loop of N (default 16); with it a bound",
    )
    add(
        "--drain",
        type=_checked(float, 0),
        default=600.0,
        metavar="S",
        help="what is open when sending ends is cut off after so many seconds",
    )
    add("--think-time", type=_checked(float, 0), default=0.0, metavar="S", help="before each turn")
    add(
        "--warmup",
        type=_checked(int, 0),
        default=1,
        metavar="N",
        help="requests that are sent before and not measured",
    )
    add("--seed", type=int, default=0, help="of prompts and arrivals")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data set").add_argument
    add("--dataset", choices=DATASETS, default="random")
    add("--input-len", type=_checked(int, 1), default=128, help="tokens, or words of about one")
    add("--output-len", type=_checked(int, 1), default=64)
    add(
        "--range-ratio",
        type=_checked(float, 0),
        default=1.0,
        help="random: lengths are uniform from this share of the full ones",
    )
    add("--prompt-form", choices=("ids", "text"), default="ids", help="chats always get text")
    add("--vocab-size", type=_checked(int, 33), default=30000, help="token ids stay below it")
    add("--prefix-len", type=_checked(int, 1), default=96, help="what prompts have in common")
    add("--num-prefixes", type=_checked(int, 1), default=8, help="shared-prefix")
    add("--turns", type=_checked(int, 1), default=5, help="multi-turn: questions of a chat")
    add("--tree-depth", type=_checked(int, 1), default=3, help="tree: levels of --prefix-len")
    add("--tree-width", type=_checked(int, 1), default=3, help="tree: branches of each node")
    add("--dataset-path", metavar="FILE", help="file: JSON or JSONL, also in ShareGPT's format")


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("report").add_argument
    add("--output", metavar="FILE", help="the result with every request, as JSON")
    add("--plot", type=_plot_path, metavar="FILE", help="a picture: .png, .svg or .html")
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="bounds on ttft, tpot or e2e in milliseconds: count what keeps all of them",
    )
    add("--no-progress", action="store_true", help="no progress line")
    add("--profile", action="store_true", help="call /start_profile and /stop_profile")
    add(
        "--settle",
        type=_checked(float, 0),
        default=1.5,
        metavar="S",
        help="seconds until the server's counters are up to date",
    )


def _add_modes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("more than one run").add_argument
    add(
        "--compare",
        nargs=2,
        metavar=("FIRST", "SECOND"),
        help="send nothing: ratios of two results, with confidence intervals",
    )
    add(
        "--sweep",
        type=Sweep.parse,
        metavar="SETTING=V1,V2,…",
        help="a run for each value of request-rate or max-concurrency; finds the knee",
    )
    add("--interleave", metavar="URL2", help="the same prompts against a second server, in turn")
    add("--rounds", type=_checked(int, 1), default=4, help="interleave: turns of each server")
