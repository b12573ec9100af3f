"""OTLP values to and from plain Python: what each kind becomes, and what happens to what OTLP has no kind for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from nightschool.otlp.attributes import any_value, attributes_of, key_values, scalar_of, value_of

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.one_of(TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("", "string_value"),
        (True, "bool_value"),
        (1, "int_value"),
        (1.0, "double_value"),
        ([], "array_value"),
        ((), "array_value"),
    ],
)
def test_each_type_has_its_kind(value: Any, kind: str) -> None:
    """A bool is not a number; an empty text and an empty list are values."""
    encoded = any_value(value)
    assert encoded is not None
    assert encoded.WhichOneof("value") == kind


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_encoded_is_decoded_to_the_same(attributes: dict[str, Any]) -> None:
    """Values, types and order survive, also through bytes."""
    sent = KeyValueList(values=key_values(attributes)).SerializeToString()
    found = attributes_of(KeyValueList.FromString(sent).values)
    assert list(found.items()) == list(attributes.items())
    assert [type(value) for value in found.values()] == [type(value) for value in attributes.values()]


@pytest.mark.parametrize("odd", [None, b"raw", {"a": 1}, {1}, object()])
def test_what_otlp_has_no_kind_for_is_left_out_or_becomes_a_text(odd: Any) -> None:
    """The caller says which; inside a list the same holds for each item."""
    assert attributes_of(key_values({"a": 1, "odd": odd, "list": ["x", odd]})) == {"a": 1, "list": ["x"]}
    as_text = key_values({"a": 1, "odd": odd, "list": ["x", odd]}, unknown=str)
    assert attributes_of(as_text) == {"a": 1, "odd": str(odd), "list": ["x", str(odd)]}


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_of_more_than_64_bits_is_an_error(number: int) -> None:
    """It is neither cut nor rounded."""
    with pytest.raises(ValueError, match="out of range"):
        any_value(number)


def test_decoding_knows_every_kind() -> None:
    """A map is a dict, bytes are hex digits, nothing is None; of equal keys the last counts."""
    inner = [KeyValue(key="a", value=AnyValue(int_value=1)), KeyValue(key="a", value=AnyValue(bytes_value=b"\xff\x00"))]
    value = AnyValue(array_value=ArrayValue(values=[AnyValue(kvlist_value=KeyValueList(values=inner)), AnyValue()]))
    assert value_of(value) == [{"a": "ff00"}, None]


def test_a_scalar_is_a_text_a_bool_or_a_number() -> None:
    """Anything else is None."""
    assert [scalar_of(one.value) for one in key_values({"a": "x", "b": False, "c": 3, "d": 0.5})] == ["x", False, 3, 0.5]
    others = [AnyValue(), AnyValue(bytes_value=b"x"), AnyValue(array_value=ArrayValue()), AnyValue(kvlist_value=KeyValueList())]
    assert [scalar_of(value) for value in others] == [None] * 4
