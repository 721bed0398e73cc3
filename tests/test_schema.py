from __future__ import annotations

import pyarrow as pa
import pytest

from llmrec import schema
from llmrec.errors import UserError


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (pa.int8(), pa.int64()),
        (pa.uint32(), pa.int64()),
        (pa.string(), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.int32()), pa.int64()),
    ],
)
def test_ids_are_int64_or_string(kind: pa.DataType, wanted: pa.DataType) -> None:
    assert schema.id_type(pa.schema([("id", kind)]), "id", "t") == wanted


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.binary(), pa.timestamp("s"), pa.list_(pa.int64())])
def test_other_id_types_are_refused(kind: pa.DataType) -> None:
    with pytest.raises(UserError, match=r"t: column 'id' has type .*; ids must be integers or strings"):
        schema.id_type(pa.schema([("id", kind)]), "id", "t")


def test_a_missing_column_is_named_with_those_there() -> None:
    with pytest.raises(UserError, match=r"t: column 'id' is missing \(it has: a, b\); rename it, or in"):
        schema.id_type(pa.schema([("a", pa.int8()), ("b", pa.int8())]), "id", "t")


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("number", pa.float32(), pa.string()),
        ("text", pa.large_string(), pa.int64()),
        ("time", pa.timestamp("ms", "UTC"), pa.string()),
        ("list", pa.large_list(pa.int64()), pa.int64()),
    ],
)
def test_kinds(kind: str, right: pa.DataType, wrong: pa.DataType) -> None:
    schema.require(pa.schema([("x", right)]), {"x": kind}, "t")
    with pytest.raises(UserError, match=f"t: column 'x' has type .* which is no {kind}"):
        schema.require(pa.schema([("x", wrong)]), {"x": kind}, "t")


def test_what_a_time_is_is_said() -> None:
    with pytest.raises(UserError, match=r"type date32.day., which is no time; give unix seconds as numbers, or timest"):
        schema.require(pa.schema([("at", pa.date32())]), {"at": "time"}, "log")
