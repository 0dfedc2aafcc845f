"""JSON Schema to a grammar of the project's own engine.

Everything that is accepted is enforced; what cannot be expressed is refused, never ignored (but
for annotations, unknown keywords and unknown formats, which get a warning). Properties come in the
order of the schema, additional ones last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_grammar import BLANKS, CHARACTER, STRING
from jaxsgl.grammar.json_schema.document import (
    ANNOTATIONS,
    Json,
    References,
    Schema,
    is_list,
    is_object,
)
from jaxsgl.grammar.json_schema.evaluate import Undecided, accepts
from jaxsgl.grammar.json_schema.formats import PATTERNS
from jaxsgl.grammar.json_schema.hints import schema_hints
from jaxsgl.grammar.json_schema.merge import canonical, merged
from jaxsgl.grammar.json_schema.numbers import INTEGER, NUMBER, integers, numbers
from jaxsgl.grammar.json_schema.objects import other_names
from jaxsgl.grammar.json_schema.rewrite import rewrite_schema
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.rule_builder import RuleBuilder, Symbol
from jaxsgl.grammar.tables import GrammarTables

MAX_ITEMS = 1000
"""Largest minItems or maxItems: each item is a rule."""

_ALL_TYPES = ("object", "array", "string", "number", "boolean", "null")
_KNOWN = ANNOTATIONS | {
    "type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "format",
    "properties", "required", "additionalProperties", "patternProperties", "minProperties",
    "items", "prefixItems", "additionalItems", "minItems", "maxItems",
    "minLength", "maxLength", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip
_UNSUPPORTED = frozenset(
    {
        "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
        "maxContains", "maxProperties", "minContains", "multipleOf", "not", "propertyNames",
        "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "$dynamicRef",
        "$recursiveRef",
    }
)  # fmt: skip


def schema_tables(schema: str, limits: GrammarLimits) -> GrammarTables:
    """Compile a schema. Raises GrammarError, which names the keyword that is not supported."""
    rewritten = rewrite_schema(schema)
    translator = _Translator(rewritten.schema, limits, list(rewritten.warnings))
    try:
        tables = translator.translate(rewritten.schema)
    except (TypeError, AttributeError, ValueError):
        raise GrammarError("a keyword of the schema has a value of the wrong kind") from None
    except RecursionError:
        raise GrammarError("the schema is too deeply nested") from None
    tables.largest_part = schema_hints(rewritten.schema).largest_part
    return tables


class _Kind(NamedTuple):
    """What tells values of a schema apart: their types, or themselves if they are listed."""

    types: set[str]
    values: set[bytes] | None

    def overlaps(self, other: _Kind) -> bool:
        """Whether a value may be of both."""
        if self.values is not None and other.values is not None:
            return bool(self.values & other.values)
        return bool(self.types & other.types)


class _Translator:
    def __init__(self, root: Schema, limits: GrammarLimits, warnings: list[str]) -> None:
        self._references = References(root)
        self._rules = RuleBuilder(limits)
        self._warnings = warnings
        self._symbols: dict[bytes, Symbol] = {}
        """Schema, in canonical form -> what its values are."""
        blanks = self._rules.pattern(BLANKS)
        self._blanks = self._rules.optional(blanks)

    def translate(self, root: Schema) -> GrammarTables:
        start = self._rules.any_of("schema", (self._value(root),))
        return self._rules.build(start, list(dict.fromkeys(self._warnings)))

    def _value(self, schema: Schema) -> Symbol:
        key = canonical(schema)
        symbol = self._symbols.get(key)
        if symbol is None:
            symbol = self._symbols[key] = self._rules.nonterminal("value")
            for alternative in self._alternatives(schema, frozenset()):
                self._rules.add_rule(symbol, *alternative)
        return symbol

    def _alternatives(self, schema: Schema, seen: frozenset[bytes]) -> list[tuple[Symbol, ...]]:
        """The sequences of symbols that its values are; `seen`: schemas that led here at once."""
        if schema is False:
            return []
        if schema is True:
            schema = {}
        key = canonical(schema)
        if key in seen:
            raise GrammarError("a $ref leads only to itself")
        seen |= {key}
        if "$ref" in schema:
            rest = {name: value for name, value in schema.items() if name != "$ref"}
            target = self._references.resolve(schema["$ref"])
            return self._both(target, rest, seen)
        self._check_keywords(schema)
        if "enum" in schema or "const" in schema:
            return self._listed(schema)
        for name in ("allOf", "anyOf", "oneOf"):
            if name in schema:
                rest = {key: value for key, value in schema.items() if key != name}
                return self._combined(name, schema[name], rest, seen)
        return [each for name in _types(schema) for each in self._of_type(name, schema)]

    def _both(
        self, one: Schema, other: dict[str, Json], seen: frozenset[bytes]
    ) -> list[tuple[Symbol, ...]]:
        if isinstance(one, bool):
            return self._alternatives(other, seen) if one else []
        if not other.keys() - ANNOTATIONS:
            return self._alternatives(one, seen) if "$ref" in one else [(self._value(one),)]
        return self._alternatives(self._merged(one, other, seen), seen)

    def _merged(
        self, one: dict[str, Json], other: dict[str, Json], seen: frozenset[bytes]
    ) -> dict[str, Json]:
        """Both, with references followed: what they lead to has to be looked into."""
        for _ in range(len(seen) + 100):
            if "$ref" not in one:
                return merged(one, other)
            target = self._references.resolve(one["$ref"])
            rest = {key: value for key, value in one.items() if key != "$ref"}
            if isinstance(target, bool):
                one = rest if target else {"enum": []}
            else:
                one = merged(rest, target)
        raise GrammarError("a $ref leads only to itself")

    def _check_keywords(self, schema: dict[str, Json]) -> None:
        for name, value in schema.items():
            harmless = name == "uniqueItems" and value is False
            if name in _UNSUPPORTED and not harmless:
                raise GrammarError(f"keyword {name!r} is not supported by the lark backend")
            if name not in _KNOWN and name not in _UNSUPPORTED:
                self._warnings.append(f"keyword {name!r} is ignored")

    def _listed(self, schema: dict[str, Json]) -> list[tuple[Symbol, ...]]:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        try:
            kept = [value for value in values if accepts(schema, value, self._references)]
        except Undecided as error:
            raise GrammarError(f"{error} beside a list of values is not supported") from None
        scalars = [value for value in kept if not (is_object(value) or is_list(value))]
        found = [
            tuple(self._constant(value)) for value in kept if (is_object(value) or is_list(value))
        ]
        if scalars:
            texts = [msgspec.json.encode(value).decode() for value in scalars]
            found.append((self._rules.literals(texts),))
        return found

    def _constant(self, value: Json) -> list[Symbol]:
        """A value with the white space that JSON allows in it."""
        rules, blanks = self._rules, self._blanks
        if not (is_object(value) or is_list(value)) or not value:
            return [rules.literal(msgspec.json.encode(value).decode())]
        opening, closing = "{}" if is_object(value) else "[]"
        parts = [rules.literal(opening)]
        for index, item in enumerate(value):
            parts += [rules.literal(","), blanks] if index else [blanks]
            if is_object(value):
                name = msgspec.json.encode(item).decode()
                parts += [rules.literal(name), blanks, rules.literal(":"), blanks]
                item = value[item]
            parts += [*self._constant(item), blanks]
        return [*parts, rules.literal(closing)]

    def _combined(
        self, name: str, branches: Any, rest: dict[str, Json], seen: frozenset[bytes]
    ) -> list[tuple[Symbol, ...]]:
        if name == "allOf":
            for branch in branches:
                if branch is False:
                    return []
                if branch is not True:
                    rest = self._merged(branch, rest, seen)
            return self._alternatives(rest, seen)
        if name == "oneOf" and len(branches) > 1:
            self._check_disjoint(branches, rest)
        return [each for branch in branches for each in self._both(branch, rest, seen)]

    def _check_disjoint(self, branches: list[Schema], rest: dict[str, Json]) -> None:
        """Refuse `oneOf` unless no value can be of two branches."""
        kinds = [self._kind(branch, rest) for branch in branches]
        for index, kind in enumerate(kinds):
            if any(kind.overlaps(other) for other in kinds[:index]):
                raise GrammarError("oneOf whose branches may overlap is not supported")

    def _kind(self, branch: Schema, rest: dict[str, Json]) -> _Kind:
        if isinstance(branch, bool):
            return _Kind(set(_ALL_TYPES if branch else ()), None)
        schema = self._merged(branch, {"type": rest["type"]} if "type" in rest else {}, frozenset())
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return _Kind({_type_of(value) for value in values}, set(map(canonical, values)))
        return _Kind({"number" if name == "integer" else name for name in _types(schema)}, None)

    def _of_type(self, name: Json, schema: dict[str, Json]) -> list[tuple[Symbol, ...]]:
        rules = self._rules
        if name == "null":
            return [(rules.literal("null"),)]
        if name == "boolean":
            return [(rules.literal("true"),), (rules.literal("false"),)]
        if name == "string":
            return [(self._string(schema),)]
        if name in ("number", "integer"):
            number = self._number(schema, name == "integer")
            return [] if number is None else [(number,)]
        if name == "array":
            return self._array(schema)
        if name == "object":
            return self._object(schema)
        raise GrammarError(f"there is no type {name!r}")

    def _string(self, schema: dict[str, Json]) -> Symbol:
        format_ = PATTERNS.get(schema.get("format", ""))
        asked = [
            name
            for name, given in (
                ("format", format_ is not None),
                ("pattern", "pattern" in schema),
                ("minLength", bool(schema.get("minLength")) or "maxLength" in schema),
            )
            if given
        ]
        if len(asked) > 1:
            raise GrammarError(f"{' and '.join(asked)} on one string are not supported together")
        if format_ is not None:
            return self._rules.pattern(f'"(?a:{format_})"')
        if "pattern" in schema:
            return self._rules.string_with(schema["pattern"])
        if asked:
            least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
            upper = "" if most is None else int(most)
            return self._rules.pattern(f'"{CHARACTER}{{{least},{upper}}}"')
        return self._rules.pattern(STRING)

    def _number(self, schema: dict[str, Json], whole: bool) -> Symbol | None:
        low, without_low = _bound(schema, "minimum", "exclusiveMinimum", max)
        high, without_high = _bound(schema, "maximum", "exclusiveMaximum", min)
        if low is None and high is None:
            return self._rules.pattern(INTEGER if whole else NUMBER)
        if whole:
            first = None if low is None else int(low // 1 + (without_low or low % 1 > 0))
            last = None if high is None else int(-(-high // 1) - (without_high or high % 1 > 0))
            pattern = integers(first, last)
        else:
            for bound in (low, high):
                if bound is not None and bound % 1:
                    raise GrammarError("bounds of numbers must be integers in the lark backend")
            pattern = numbers(
                None if low is None else int(low),
                None if high is None else int(high),
                without_low=without_low,
                without_high=without_high,
            )
        return None if pattern is None else self._rules.pattern(pattern)

    def _array(self, schema: dict[str, Json]) -> list[tuple[Symbol, ...]]:
        rules, blanks = self._rules, self._blanks
        prefix, rest = _item_schemas(schema)
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if max(least, most or 0) > MAX_ITEMS:
            raise GrammarError(f"arrays of more than {MAX_ITEMS} items are not supported")
        if most is not None and least > most:
            return []
        comma, opening, closing = rules.literal(","), rules.literal("["), rules.literal("]")
        items = [(blanks, self._value(each), blanks) for each in prefix[:most]]
        more: Symbol | None = None
        if rest is not False and (most is None or most > len(prefix)):
            item = rules.any_of("item", (blanks, self._value(rest), blanks))
            if not prefix and (least, most) in ((0, None), (1, None)):
                listed = rules.one_or_more(item, comma)
                full = (opening, listed, closing)
                return [full, (opening, blanks, closing)] if least == 0 else [full]
            upper = None if most is None else int(most) - max(len(prefix), 1)
            lower = max(least - max(len(prefix), 1), 0)
            if not prefix:
                items = [(item,)]
            more = rules.repeated("items", rules.any_of("next", (comma, item)), lower, upper)
        # From the last item back: each is followed by the rest of the array, or by its end.
        following = [] if more is None else [more]
        for index in range(len(items) - 1, 0, -1):
            tail = rules.any_of("tail", (comma, *items[index], *following))
            following = [tail] if index < least else [rules.optional(tail)]
        found = [(opening, *items[0], *following, closing)] if items and most != 0 else []
        return found + ([(opening, blanks, closing)] if least == 0 else [])

    def _object(self, schema: dict[str, Json]) -> list[tuple[Symbol, ...]]:
        rules, blanks = self._rules, self._blanks
        named: dict[str, Schema] = dict(schema.get("properties", {}))
        required = [str(name) for name in schema.get("required", [])]
        extra = self._extra_member(schema, named, required)
        for name in required:
            if name not in named:
                named[name] = schema.get("additionalProperties", True)
                if "patternProperties" in schema:
                    raise GrammarError(
                        "required beside patternProperties is not supported by the lark backend"
                    )
        least = int(schema.get("minProperties", 0))
        if least > max(1, len(required)):
            raise GrammarError("minProperties is not supported by the lark backend")
        comma = rules.literal(",")
        listed = None if extra is None else rules.one_or_more(extra, comma)
        # first: no member was written yet; later: one was.
        first = rules.any_of("members", *([] if least > 0 else [(blanks,)]))
        later = rules.any_of("members", ())
        if listed is not None:
            rules.add_rule(first, listed)
            rules.add_rule(later, comma, listed)
        for name in reversed(named):
            value = named[name]
            member = self._member(rules.literal(msgspec.json.encode(name).decode()), value)
            may_lack = name not in required
            with_first = [(member, later)] if value is not False else []
            with_later = [(comma, member, later)] if value is not False else []
            first = rules.any_of("members", *with_first, *([(first,)] if may_lack else []))
            later = rules.any_of("members", *with_later, *([(later,)] if may_lack else []))
        return [(rules.literal("{"), first, rules.literal("}"))]

    def _extra_member(
        self, schema: dict[str, Json], named: dict[str, Schema], required: list[str]
    ) -> Symbol | None:
        """A member that is not named; None if there may be none."""
        additional = schema.get("additionalProperties", True)
        patterns = schema.get("patternProperties", {})
        if patterns:
            if additional is not False or named or len(patterns) > 1:
                raise GrammarError(
                    "patternProperties is supported by the lark backend only as a single pattern, "
                    "without properties and with additionalProperties false"
                )
            ((pattern, value),) = patterns.items()
            return None if value is False else self._member(self._rules.string_with(pattern), value)
        if additional is False:
            return None
        names = self._rules.pattern(other_names([*named, *required]))
        return self._member(names, additional)

    def _member(self, name: Symbol, value: Schema) -> Symbol:
        rules, blanks = self._rules, self._blanks
        colon = rules.literal(":")
        return rules.any_of(
            "member", (blanks, name, blanks, colon, blanks, self._value(value), blanks)
        )


def _types(schema: dict[str, Json]) -> list[str]:
    types = schema.get("type", _ALL_TYPES)
    return [types] if isinstance(types, str) else list(types)


def _type_of(value: Json) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if is_list(value) else "object"


def _item_schemas(schema: dict[str, Json]) -> tuple[list[Schema], Schema]:
    """The schemas of the first items, and of all after them."""
    items = schema.get("items", True)
    if is_list(items):
        return items, schema.get("additionalItems", True)
    return schema.get("prefixItems", []), items


def _bound(
    schema: dict[str, Json], inclusive: str, exclusive: str, tighter: Any
) -> tuple[float | None, bool]:
    """A bound of numbers, and whether it is itself left out."""
    limit, without = schema.get(inclusive), schema.get(exclusive)
    if isinstance(without, bool):  # As in drafts up to 4.
        return limit, without and limit is not None
    if limit is None or without is None:
        return (limit, False) if without is None else (without, True)
    return tighter(limit, without), tighter(limit, without) == without
