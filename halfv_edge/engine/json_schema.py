"""A JSON schema as a grammar: what llama.cpp then lets a model say is JSON that the schema accepts.

The grammar accepts less than the schema where that keeps answers tidy: members come in the schema's order and there are
no others unless additionalProperties is given, whole numbers have at most 16 digits, and white space is a space, or a
line break and an indent. `oneOf` is read as `anyOf`. What a grammar cannot say is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from halfv_edge.engine import gbnf, json_pattern
from halfv_edge.errors import HalfVError

Schema = Mapping[str, Any]

DIGITS = 16  # with more a double is no longer exact
DEPTH = 100  # of references to references
BASE = {
    "ws": '(" " | "\\n" [ \\t]{0,20})?',
    "char": '[^"\\\\\\x00-\\x1F\\x7F] | "\\\\" (["\\\\/bfnrt] | "u" unit)',
    "unit": "[0-9a-cefA-CEF] hex{3} | [dD] [0-7] hex{2}",  # not half of a surrogate pair
    "hex": "[0-9a-fA-F]",
    "string": '"\\"" char* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,20})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": '"{" ws (member ("," ws member)*)? "}"',
    "member": 'string ":" ws value ws',
    "array": '"[" ws (element ("," ws element)*)? "]"',
    "element": "value ws",
    "value": "object | array | string | number | boolean | null",
}
DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"  # days that every month has
TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
FORMATS = {"date": f"^{DATE}$", "time": f"^{TIME}$", "date-time": f"^{DATE}T{TIME}$", "uuid": f"^{UUID}$"}
KEYWORDS = {  # of the types that have any
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANYWHERE = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
ANNOTATIONS = (
    *("$schema", "$id", "$defs", "definitions", "$comment", "title", "description", "default", "example", "examples"),
    *("deprecated", "readOnly", "writeOnly", "discriminator"),
)


def grammar(schema: Schema | str) -> str:
    """GBNF for the JSON that a schema accepts.

    Args:
        schema: The schema, or its JSON text.

    Raises:
        HalfVError: It is no schema, or asks for what a grammar cannot say.
    """
    try:
        root = json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise _refusal(f"it is not JSON: {error}") from error
    try:
        return _Grammar(root).text()
    except RecursionError:
        raise _refusal("it is nested too deeply") from None


def _refusal(why: str) -> HalfVError:
    return HalfVError(f"The JSON schema cannot be used: {why}.")


class _Grammar:
    """Rules by name; a schema becomes an expression over them, a referenced one a rule."""

    def __init__(self, root: Any):
        self.root = root
        self.rules = dict(BASE)
        self.referenced: dict[str, str] = {}

    def text(self) -> str:
        expression = self._schema(self.root)
        return "\n".join(f"{name} ::= {body}" for name, body in {"root": expression, **self.rules}.items())

    def _rule(self, body: str) -> str:
        """A name for an expression, the same for the same."""
        if body in self.rules:
            return body
        name = next((name for name, known in self.rules.items() if known == body), f"r{len(self.rules)}")
        self.rules[name] = body
        return name

    def _schema(self, schema: Any) -> str:
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise _refusal(f"{json.dumps(schema, default=str)[:60]} stands where a schema should")
        if set(schema) - set(ANNOTATIONS) == {"$ref"}:
            return self._reference(schema["$ref"])
        schema = self._merged(schema)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest = {key: value for key, value in schema.items() if key != keyword}
                parts = self._list(schema[keyword], keyword)
                return gbnf.either([self._schema(self._both(rest, part) if rest else part) for part in parts])
        if "const" in schema or "enum" in schema:
            return self._values(schema)
        return gbnf.either([self._type(name, schema) for name in self._types(schema)])

    def _reference(self, reference: Any) -> str:
        if reference not in self.referenced:
            name = self.referenced[reference] = f"ref{len(self.referenced)}"
            self.rules[name] = ""  # keeps its place, and may be used inside
            self.rules[name] = self._schema(self._target(reference))
        return self.referenced[reference]

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refusal(f"$ref = {reference!r} points out of it")
        place = self.root
        for part in filter(None, unquote(reference[1:]).split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                place = place[int(key)] if isinstance(place, list) else place[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise _refusal(f"$ref = {reference!r} points at nothing") from None
        return place

    def _merged(self, schema: Schema, depth: int = 0) -> dict[str, Any]:
        """With what it refers to and allOf in it, and without annotations."""
        if depth > DEPTH:
            raise _refusal("it refers to itself and to nothing else")
        out = {key: value for key, value in schema.items() if key not in (*ANNOTATIONS, "$ref", "allOf")}
        parts = [self._target(schema["$ref"])] if "$ref" in schema else []
        parts += self._list(schema["allOf"], "allOf") if "allOf" in schema else []
        for part in parts:
            if part is not True:
                out = self._both(out, self._merged(self._checked(part), depth + 1))
        return out

    def _both(self, schema: Schema, other: Any) -> dict[str, Any]:
        """What asks for all that two schemas ask for."""
        if other is True:
            return dict(schema)
        out = dict(schema)
        for key, value in self._merged(self._checked(other)).items():
            if key == "properties" and key in out:
                twice = set(out[key]) & set(value)
                out[key] = {**out[key], **value, **{name: {"allOf": [out[key][name], value[name]]} for name in twice}}
            elif key == "required" and key in out:
                out[key] = list(dict.fromkeys([*out[key], *value]))
            elif key in out and out[key] != value:
                raise _refusal(f"two different values of {key} hold at once, {out[key]!r} and {value!r}")
            else:
                out[key] = value
        return out

    @staticmethod
    def _checked(schema: Any) -> Schema:
        if not isinstance(schema, Mapping):
            raise _refusal(f"{json.dumps(schema, default=str)[:60]} stands where a schema should")
        return schema

    @staticmethod
    def _list(value: Any, keyword: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise _refusal(f"{keyword} = {json.dumps(value, default=str)[:60]} is not a list with something in it")
        return value

    def _types(self, schema: Schema) -> Sequence[str]:
        given = schema.get("type")
        if given is None:  # keywords tell, as people leave it out
            given = [name for name, words in KEYWORDS.items() if any(word in schema for word in words)]
            given = given or (["value"] if set(schema) <= {"type"} else [])
        names = [given] if isinstance(given, str) else given
        known = (*TYPES, "value")
        if not isinstance(names, list) or any(name not in known for name in names) or not names:
            unknown = ", ".join(sorted(set(schema) - {"type"})) if not names else f"type = {given!r}"
            raise _refusal(f"{unknown} is not something that a grammar can say")
        allowed = {word for name in names for word in KEYWORDS.get(name, ())} | {"type"}
        for word in schema:
            if word not in allowed:
                raise _refusal(f"{word} is not something that a grammar can say of {' or '.join(names)}")
        return names

    def _type(self, name: str, schema: Schema) -> str:
        special = {"object": self._object, "array": self._array, "string": self._string, "integer": self._integer}
        if name in special and any(word in schema for word in KEYWORDS[name]):
            return self._rule(special[name](schema))
        return name

    def _values(self, schema: Schema) -> str:
        """Of enum or const, those that the type allows."""
        values = [schema["const"]] if "const" in schema else self._list(schema["enum"], "enum")
        rest = set(schema) - {"type", "enum", "const"}
        if rest or ("const" in schema and "enum" in schema):
            raise _refusal(f"{', '.join(sorted(rest)) or 'const'} beside enum is not something that a grammar can say")
        types = schema.get("type", TYPES)
        values = [value for value in values if _type_of(value) & set([types] if isinstance(types, str) else types)]
        if not values:
            raise _refusal("no value of its enum has its type")
        return gbnf.either(list(dict.fromkeys(map(_constant, values))))

    #
    # objects: from the last member on, each rule is what may follow
    #

    def _object(self, schema: Schema) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", False)
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _refusal("properties is not an object, or required not a list")
        if missing := [name for name in required if name not in properties]:
            properties = {**properties, **dict.fromkeys(missing, True if more is False else more)}
        first = after = ""
        if more is not False:
            key = self._rule(f'"\\"" {self._other_name(list(properties))} "\\""')
            member = self._rule(f'{key} ":" ws {self._named(more)} ws')
            after = self._rule(f'("," ws {member})*')
            first = self._rule(f'({member} ("," ws {member})*)?')
        for name, value in reversed(properties.items()):
            label = gbnf.literal(_written(name))
            member = self._rule(f'{label} ":" ws {self._named(value)} ws')
            begins, goes_on = f"{member} {after}".rstrip(), f'"," ws {member} {after}'.rstrip()
            if name not in required:
                begins, goes_on = f"({begins} | {first})" if first else f"({begins})?", f"({goes_on} | {after})"
                goes_on = goes_on if after else goes_on.replace(" | )", ")?")
            first, after = self._rule(begins), self._rule(goes_on)
        return f'"{{" ws {first} "}}"'

    def _other_name(self, names: Sequence[str]) -> str:
        """A name that is none of these, without escapes."""
        plain = gbnf.all_but([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)])
        rest = f"{gbnf.one_of(plain)}*"
        parts = [] if "" in names else ['""']
        starts: dict[str, list[str]] = {}
        for name in filter(None, names):
            starts.setdefault(name[0], []).append(name[1:])
        parts += [f"{gbnf.literal(start)} {self._other_name(ends)}" for start, ends in starts.items()]
        taken = [(ord(start), ord(start)) for start in starts]
        parts.append(f"{gbnf.one_of(_without(plain, taken))} {rest}")
        return gbnf.either(parts)

    def _named(self, schema: Any) -> str:
        return self._rule(self._schema(schema))

    def _array(self, schema: Schema) -> str:
        least, most = self._counts(schema, "minItems", "maxItems")
        tuple_ = [self._named(part) for part in schema.get("prefixItems", [])]
        items = schema.get("items", not tuple_)
        if isinstance(items, list):
            raise _refusal("items is a list: say prefixItems")
        fixed, rest = tuple_[:most], None
        if items is not False and (most is None or most > len(fixed)):
            rest = self._rule(f'"," ws {self._named(items)} ws')
        if rest is None and least > len(fixed):
            raise _refusal(f"minItems = {least} is more than it has items for")
        if not fixed:
            if rest is None or most == 0:
                return '"[" ws "]"'
            body = (
                f"{self._named(items)} ws {gbnf.repeated(rest, max(0, least - 1), None if most is None else most - 1)}"
            )
            return f'"[" ws {body} "]"' if least else f'"[" ws ({body})? "]"'
        upper = None if most is None else most - len(fixed)
        tail = gbnf.repeated(rest, max(0, least - len(fixed)), upper) if rest else ""
        for at in range(len(fixed) - 1, 0, -1):  # a tuple may end early, unless it has to be longer
            tail = f'"," ws {fixed[at]} ws {tail}'.rstrip()
            tail = tail if at < least else f"({tail})?"
        body = f"{fixed[0]} ws {tail}".rstrip()
        return f'"[" ws {body} "]"' if least else f'"[" ws ({body})? "]"'

    def _string(self, schema: Schema) -> str:
        least, most = self._counts(schema, "minLength", "maxLength")
        pattern = schema.get("pattern", FORMATS.get(schema.get("format", "")))
        if pattern is None:
            return f'"\\"" {gbnf.repeated("char", least, most)} "\\""'
        if least or most is not None or ("pattern" in schema and schema.get("format") in FORMATS):
            raise _refusal("a length, or a format, beside a pattern is not something that a grammar can say")
        try:
            return f'"\\"" {json_pattern.grammar(pattern)} "\\""'
        except json_pattern.PatternError as error:
            raise _refusal(f"the pattern {pattern!r} is not one that a grammar can say: {error}") from error

    def _integer(self, schema: Schema) -> str:
        bounds: dict[str, int | None] = {}
        for keyword in KEYWORDS["integer"]:
            value = schema.get(keyword)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value % 1):
                raise _refusal(f"{keyword} = {value!r} is not a whole number")
            bounds[keyword] = None if value is None else int(value)
        lows = [bounds["minimum"], None if bounds["exclusiveMinimum"] is None else bounds["exclusiveMinimum"] + 1]
        highs = [bounds["maximum"], None if bounds["exclusiveMaximum"] is None else bounds["exclusiveMaximum"] - 1]
        low = max((bound for bound in lows if bound is not None), default=None)
        high = min((bound for bound in highs if bound is not None), default=None)
        limit = 10**DIGITS - 1
        if (low is None and high is not None and high < -limit) or (high is None and low is not None and low > limit):
            raise _refusal(f"its whole numbers have more than {DIGITS} digits")
        if low is not None and high is not None and low > high:
            raise _refusal(f"no whole number is from {low} to {high}")
        return gbnf.integers(low, high, DIGITS)

    @staticmethod
    def _counts(schema: Schema, least_word: str, most_word: str) -> tuple[int, int | None]:
        least, most = schema.get(least_word, 0), schema.get(most_word)
        for word, value in ((least_word, least), (most_word, most)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise _refusal(f"{word} = {value!r} is not a whole number from 0 on")
        if least > gbnf.MOST_REPETITIONS:
            raise _refusal(f"{least_word} = {least} is more than {gbnf.MOST_REPETITIONS}")
        if most is not None and most < least:
            raise _refusal(f"{most_word} = {most} is less than {least_word} = {least}")
        return least, most


def _constant(value: Any) -> str:
    """One value, with the white space that others may have."""
    if not isinstance(value, list | dict):
        return gbnf.literal(_written(value))
    if isinstance(value, list):
        parts = [f"{_constant(item)} ws" for item in value]
    else:
        parts = [f'{_constant(name)} ":" ws {_constant(item)} ws' for name, item in value.items()]
    begin, end = "[]" if isinstance(value, list) else "{}"
    inside = ' "," ws '.join(parts)
    return " ".join(filter(None, [f'"{begin}" ws', inside, f'"{end}"']))


def _type_of(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value % 1 == 0 else {"number"}
    return {"string"} if isinstance(value, str) else {"array"} if isinstance(value, list) else {"object"}


def _without(ranges: gbnf.Ranges, taken: gbnf.Ranges) -> list[tuple[int, int]]:
    return gbnf.all_but([*gbnf.all_but(ranges), *taken])


def _written(value: Any) -> str:
    """As JSON; the delete character is escaped, as in every string of the grammar."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
