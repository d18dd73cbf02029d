"""The grammar of a JSON schema, asked through llama.cpp's own grammar sampler: what it accepts and what it refuses."""

from __future__ import annotations

import ctypes
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from halfv_cpp import llama_h, llama_types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfv_edge.engine import gbnf, json_schema
from halfv_edge.errors import HalfVError

Accepts = Callable[[Any, str], bool]


@pytest.fixture(scope="module")
def accepts(llama_tree: Path) -> Iterator[Accepts]:
    params = llama_h.llama_model_default_params()
    params.vocab_only = True
    path = llama_tree / "models" / "ggml-vocab-gpt-2.gguf"
    model = llama_h.llama_model_load_from_file(str(path).encode(), params)
    vocab = llama_h.llama_model_get_vocab(model)

    def may_follow(sampler: int, token: int) -> bool:
        data = llama_types.llama_token_data(token, 0.0, 0.0)
        array = llama_types.llama_token_data_array(ctypes.pointer(data), 1, -1, False)
        llama_h.llama_sampler_apply(sampler, ctypes.byref(array))
        return math.isfinite(data.logit)

    def accepts(schema: Any, text: str) -> bool:
        raw = text.encode()
        tokens = (ctypes.c_int32 * (len(raw) + 1))()
        count = llama_h.llama_tokenize(vocab, raw, len(raw), tokens, len(tokens), False, False)
        sampler = llama_h.llama_sampler_init_grammar(vocab, json_schema.grammar(schema).encode(), b"root")
        assert sampler, json_schema.grammar(schema)
        try:
            for token in tokens[:count]:
                if not may_follow(sampler, token):
                    return False
                llama_h.llama_sampler_accept(sampler, token)
            return may_follow(sampler, llama_h.llama_vocab_eos(vocab))
        finally:
            llama_h.llama_sampler_free(sampler)

    yield accepts
    llama_h.llama_model_free(model)


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers(-(10**16) + 1, 10**16 - 1) | st.floats(-1e9, 1e9, width=32).filter(
    lambda x: abs(x) > 1e-3 or not x
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=5,
)
Pair = tuple[Any, st.SearchStrategy[Any]]  # a schema, and what it accepts


def pairs() -> st.SearchStrategy[Pair]:
    leaves = st.one_of(
        st.just((True, VALUES)),
        st.just(({}, VALUES)),
        st.just(({"type": "null", "title": "nothing"}, st.none())),
        st.just(({"type": "boolean"}, st.booleans())),
        st.just(({"type": "number"}, NUMBERS)),
        st.just(({"type": ["string", "null"]}, STRINGS | st.none())),
        st.tuples(st.integers(-2000, 2000), st.integers(0, 3000)).map(
            lambda b: (
                {"type": "integer", "minimum": b[0], "exclusiveMaximum": b[0] + b[1] + 1},
                st.integers(b[0], sum(b)),
            )
        ),
        st.integers(-(10**6), 10**6).map(lambda b: ({"type": "integer", "minimum": b}, st.integers(b, 10**16 - 1))),
        st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
            lambda b: (
                {"type": "string", "minLength": b[0], "maxLength": sum(b)},
                st.text(STRINGS_OF, min_size=b[0], max_size=sum(b)),
            )
        ),
        st.lists(VALUES, min_size=1, max_size=3).map(lambda some: ({"enum": some}, st.sampled_from(some))),
        VALUES.map(lambda value: ({"const": value}, st.just(value))),
        st.sampled_from(PATTERNS).map(
            lambda p: (
                {"type": "string", "pattern": p},
                st.from_regex(re.compile(re.sub(r"\$$", r"\\Z", p), re.ASCII)).filter(UNWRITTEN.isdisjoint),
            )
        ),
    )
    return st.recursive(leaves, lambda inner: arrays(inner) | objects(inner) | either(inner), max_leaves=5)


STRINGS_OF = st.characters(exclude_categories=["Cs"])
UNWRITTEN = set(map(chr, range(0x20))) - set("\b\t\n\f\r") | {"\x7f"}  # for a pattern
PATTERNS = [
    r"^[a-f\d]{2,4}$",
    r"^(ab|c)*$",
    r"^\"[^\"\\]+\"$",
    r"x\.y",
    r"^\w+@\w+$",
    r"^(?:yes|no)?$",
    r"^é[à-ü\]\-]?$",
]


def arrays(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda a: (
            {"type": "array", "items": a[0][0], "minItems": a[1], "maxItems": a[1] + a[2]},
            st.lists(a[0][1], min_size=a[1], max_size=a[1] + a[2]),
        )
    ) | st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: (
            {"prefixItems": [schema for schema, _ in parts], "minItems": len(parts)},
            st.tuples(*(values for _, values in parts)).map(list),
        )
    )


def objects(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def build(members: dict[str, Pair], required: set[int], more: bool) -> Pair:
        names = list(members)
        wanted = [name for at, name in enumerate(names) if at in required]
        schema = {"type": "object", "properties": {name: members[name][0] for name in names}, "required": wanted}
        optional = {name: members[name][1] for name in names if name not in wanted}
        values = st.fixed_dictionaries({name: members[name][1] for name in wanted}, optional=optional)
        values = values.map(lambda value: {name: value[name] for name in names if name in value})
        if more:
            schema["additionalProperties"] = {"type": "boolean"}
            others = st.dictionaries(
                st.text("abcé", max_size=4).filter(lambda name: name not in members), st.booleans(), max_size=2
            )
            values = st.tuples(values, others).map(lambda both: both[0] | both[1])
        return schema, values

    names = st.text('abé"\\', max_size=3)
    return st.builds(build, st.dictionaries(names, inner, max_size=4), st.sets(st.integers(0, 3)), st.booleans())


def either(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.lists(inner, min_size=1, max_size=3).map(
        lambda parts: ({"anyOf": [schema for schema, _ in parts]}, st.one_of([values for _, values in parts]))
    )


def written(value: Any, style: int) -> str:
    text = json.dumps(
        value, ensure_ascii=False, separators=[(",", ":"), (", ", ": ")][style % 2], indent=[None, None, 2][style]
    )
    return text.replace("\x7f", "\\u007f")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), style=st.integers(0, 2))
def test_instances_are_accepted(accepts: Accepts, data: st.DataObject, style: int) -> None:
    schema, values = data.draw(pairs())
    value = data.draw(values)
    assert accepts(schema, written(value, style)), (schema, value)


def is_valid(schema: Any, value: Any) -> bool:
    """For the schemas of pairs()."""
    if schema is True:
        return True
    if "anyOf" in schema:
        return any(is_valid(part, value) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return json.dumps(value) in map(json.dumps, schema.get("enum", [schema.get("const")]))
    types = schema.get("type", "array" if "prefixItems" in schema else None)
    if types and not json_schema._type_of(value) & set([types] if isinstance(types, str) else types):
        return False
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
        return fits and (
            "pattern" not in schema or bool(re.search(schema["pattern"].replace("$", r"\Z"), value, re.ASCII))
        )
    if isinstance(value, list):
        kinds = schema.get("prefixItems") or [schema.get("items", True)] * len(value)
        in_time = schema.get("minItems", 0) <= len(value) <= min(schema.get("maxItems", 99), len(kinds))
        return in_time and all(is_valid(kind, item) for kind, item in zip(kinds, value, strict=False))
    if isinstance(value, dict) and types:
        kinds, more = schema["properties"], schema.get("additionalProperties", False)
        if not set(schema["required"]) <= set(value):
            return False
        return all(
            is_valid(kinds[name], item) if name in kinds else more and isinstance(item, bool)
            for name, item in value.items()
        )
    if isinstance(value, int | float) and types == "integer":
        return schema["minimum"] <= value < schema.get("exclusiveMaximum", math.inf)
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_others_are_refused(accepts: Accepts, data: st.DataObject) -> None:
    """Instances of one schema that another does not accept; and halves of instances."""
    (schema, values), (_, others) = data.draw(pairs()), data.draw(pairs())
    other = data.draw(others)
    if not is_valid(schema, other):
        assert not accepts(schema, written(other, 0)), (schema, other)
    text = written(data.draw(values), 0)
    if text[0] in '["{':
        assert not accepts(schema, text[: data.draw(st.integers(0, len(text) - 1))])


PERSON = {
    "$defs": {"name": {"type": "string", "maxLength": 9}, "tree": {"type": "object", "properties": {
        "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}},
    "allOf": [{"properties": {"name": {"$ref": "#/$defs/name"}}, "required": ["name"]}, {"$ref": "#/$defs/age"}],
    "properties": {"tree": {"$ref": "#/$defs/tree"}},
}  # fmt: skip
PERSON["$defs"]["age"] = {"type": "object", "properties": {"age": {"oneOf": [{"type": "integer"}, {"type": "null"}]}}}


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        (PERSON, '{"name":"Ann"}', True),
        (PERSON, '{"tree":{"kids":[{},{"kids":[]}]},"name":"Ann","age":null}', True),
        (PERSON, '{"age":3}', False),
        (PERSON, '{"name":"Ann","other":3}', False),
        ({"format": "date"}, '"2026-11-27"', True),
        ({"format": "date"}, '"2026-13-27"', False),
        ({"format": "date-time"}, '"2026-11-27T06:30:00Z"', True),
        ({"type": "string", "format": "email"}, '"anything"', True),
        ({"type": "string"}, '"\\ud83d\\ude00"', False),  # halves of one character
        ({"type": "string"}, '"\\u00e9\\n"', True),
        ({"type": "object"}, '{"a": [1, {"b": null}]}', True),
        ({"properties": {}, "additionalProperties": True}, '{"a":1,"b":"c"}', True),
        ({"properties": {"ab": {"type": "null"}}, "additionalProperties": True}, '{"ab":1}', False),
        ({"properties": {"ab": {"type": "null"}}, "additionalProperties": True}, '{"a":1,"abc":2}', True),
        ({"type": "array", "maxItems": 0}, "[]", True),
        ({"type": "array", "maxItems": 0}, "[1]", False),
        ({"type": "string", "maxLength": 5000}, '"short"', True),
        ('{"type": "boolean"}', "true", True),
    ],
)
def test_by_hand(accepts: Accepts, schema: Any, text: str, fits: bool) -> None:
    assert accepts(schema, text) is fits


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (7, 7), (0, 9), (3, 12), (95, 1203), (-5, 5), (-120, -7), (100, 199)]
)
def test_ranges_of_integers(accepts: Accepts, low: int, high: int) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    for value in {low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1, 10 * high, -low, high // 10}:
        assert accepts(schema, str(value)) is (low <= value <= high), value


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "nonsense"}, "type = 'nonsense' is not something"),
        ({"type": "number", "minimum": 0}, "minimum is not something that a grammar can say of number"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems is not something"),
        ({"not": {"type": "null"}}, "not is not something"),
        ({"$ref": "#/$defs/nothing"}, "points at nothing"),
        ({"$ref": "http://example.org/x"}, "points out of it"),
        ({"$ref": "#", "title": "x", "type": "object"}, "refers to itself"),
        ({"type": "string", "pattern": "(?=a)"}, "looks around"),
        ({"type": "string", "pattern": "[a"}, "not closed"),
        ({"type": "string", "pattern": "^a|b$"}, "put those in parentheses"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "a length, or a format, beside a pattern"),
        ({"type": "string", "minLength": 3000}, "more than 2000"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength = 2 is less"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no whole number is from 3 to 2"),
        ({"type": "integer", "minimum": 0.5}, "minimum = 0.5 is not a whole number"),
        ({"type": "string", "enum": [1]}, "no value of its enum has its type"),
        ({"anyOf": []}, "anyOf = [] is not a list with something in it"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "two different values of type"),
        (3, "3 stands where a schema should"),
        ("{", "it is not JSON"),
    ],
)
def test_what_a_grammar_cannot_say(schema: Any, told: str) -> None:
    with pytest.raises(HalfVError) as caught:
        json_schema.grammar(schema)
    assert str(caught.value).startswith("The JSON schema cannot be used: ")
    assert told in str(caught.value)


def test_nested_too_deeply() -> None:
    schema: Any = {}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(HalfVError, match="nested too deeply"):
        json_schema.grammar(schema)


def test_sets_of_characters() -> None:
    assert gbnf.all_but(gbnf.all_but([(65, 70), (68, 90)])) == [(65, 90)]
    assert gbnf.one_of([(93, 93), (97, 122)]) == "[\\x5Da-z]"
