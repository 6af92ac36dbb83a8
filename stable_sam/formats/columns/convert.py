"""Converts columns of Parquet files or JSON records to the types of a prompt, and tells which rows this works for.

Every conversion returns the column, with the values that `stable_sam.formats.source_annotation` would make, and a mask
(n,) of the plain rows. Where the mask is False, the value has to be read by `source_annotation` itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
EXACT_DOUBLE = 2.0**53
"""Whole numbers below this one are exact as doubles."""


def column_of(records: Sequence[Mapping[str, Any]], name: str) -> pa.Array:
    """Return a field of JSON records as a column.

    Values of mixed types, or of types that no prompt has, become a column of empty bytes that only shows which values
    are null; an empty list counts as null there.
    """
    values = [record.get(name) for record in records]
    kinds = set(map(type, values)) - {type(None)}
    try:
        if kinds == {list}:
            inner = set(map(type, chain.from_iterable(value for value in values if value is not None)))
            if inner <= {int, float}:
                return pa.array(values, pa.list_(pa.float64()))
        elif kinds == {int, float}:
            return pa.array(values, pa.float64())
        elif len(kinds) < 2 and kinds <= {int, float, str, bool}:
            return pa.array(values, _TYPES[kinds.pop()] if kinds else pa.null())
    except (pa.ArrowException, OverflowError, UnicodeError):
        pass
    return pa.array([None if value is None or value == [] else b"" for value in values], pa.binary())


_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def texts(column: pa.Array) -> tuple[pa.Array, Bools]:
    """Convert ids to text; plain are texts that are not empty, whole numbers and null."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.string()), np.ones(len(column), bool)
    if _is_text(column.type):
        column = column.cast(pa.string())
        return column, _true(pc.not_equal(column, ""), null=True)
    return _opaque(column, pa.string())


def categories(column: pa.Array) -> tuple[pa.Array, Bools]:
    """Convert category names; plain are texts and null."""
    if _is_text(column.type):
        return column.cast(pa.string()), np.ones(len(column), bool)
    return _opaque(column, pa.string())


def integers(column: pa.Array) -> tuple[pa.Array, Bools]:
    """Convert whole numbers to int64; plain are whole numbers, which may be written as 7.0, and null."""
    if pa.types.is_integer(column.type) and column.type != pa.uint64():
        return column.cast(pa.int64()), np.ones(len(column), bool)
    if column.type in (pa.float64(), pa.float32()):
        column = column.cast(pa.float64())
        whole = pc.and_(pc.less(pc.abs(column), EXACT_DOUBLE), pc.equal(pc.floor(column), column))
        plain = _true(whole, null=True)
        return pc.if_else(pa.array(plain), column, None).cast(pa.int64()), plain
    return _opaque(column, pa.int64())


def flags(column: pa.Array) -> tuple[pa.Array, Bools]:
    """Convert flags to Booleans; plain are 0 and 1, false and true, and null."""
    if pa.types.is_boolean(column.type):
        return column, np.ones(len(column), bool)
    if pa.types.is_integer(column.type):
        plain = _true(pc.is_in(column, pa.array([0, 1], column.type)), null=True) | _true(pc.is_null(column))
        return pc.equal(column, 1), plain
    return _opaque(column, pa.bool_())


def numbers(column: pa.Array) -> tuple[pa.Array, Bools]:
    """Convert numbers to float64; plain are finite numbers and null."""
    if _is_number(column.type):
        column = column.cast(pa.float64(), safe=False)
        return column, _true(pc.is_finite(column), null=True)
    return _opaque(column, pa.float64())


def boxes(column: pa.Array) -> tuple[Doubles, Bools, Bools]:
    """Convert boxes; returns the values (n, 4), which rows (n,) have four of them, and which rows (n,) are plain.

    Plain are four numbers, an empty list and null. The values of rows without a box are NaN.
    """
    values, given = np.full((len(column), 4), np.nan), np.zeros(len(column), bool)
    kind = column.type
    if not (_is_list(kind) and _is_number(kind.value_type)):
        _, absent = _opaque(column, pa.null())
        return values, given, absent
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    given = lengths == 4
    flat = column.filter(pa.array(given)).flatten()
    null = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, 4).any(axis=1)
    values[given] = flat.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, 4)
    plain = given | (lengths == 0)
    plain[np.flatnonzero(given)[null]] = False
    return values, given, plain


def absent(column: pa.Array) -> Bools:
    """Return the mask (n,) of rows with null or an empty list."""
    if _is_list(column.type):
        return _true(pc.equal(pc.list_value_length(column), 0), null=True)
    return _opaque(column, pa.null())[1]


def _opaque(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Bools]:
    return pa.nulls(len(column), kind), _true(pc.is_null(column))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64()))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _true(values: pa.Array, *, null: bool = False) -> Bools:
    array: Bools = pc.fill_null(values, null).to_numpy(zero_copy_only=False)
    return array
