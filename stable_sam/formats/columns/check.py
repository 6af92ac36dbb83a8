"""A chunk of annotations checked column by column: what `checked_prompt` says of each, without an object for each.

Only boxes of plain annotations are checked here. Every other row (points, an unusual type, anything wrong) is handed to
`checked_prompt`, so the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stable_sam.formats.source_annotation import MAX_INT64, MAX_TEXT_BYTES
from stable_sam.records import Prompt
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceColumns:
    """Annotations by column, all of one length; what stands in rows that are not plain is of no account."""

    plain: Bools
    """False: to be read record by record."""
    box_xyxy: Doubles
    """(n, 4)"""
    size_hw: Doubles | None = None
    """(n, 2) of the images; 0 where a source does not know it. None: it knows of none."""
    prompt_id: pa.Array
    image_id: pa.Array
    image_uri: pa.Array
    annotation_id: pa.Array | None = None
    category_id: pa.Array | None = None
    category: pa.Array | None = None
    iscrowd: pa.Array | None = None
    score: pa.Array | None = None
    attributes: pa.Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some annotations that follow each other in their file, to be read one by one or by column."""

    length: int
    read: Callable[[NDArray[np.int64]], list[Prompt]]
    """Prompts of the rows with these numbers."""
    columns: Callable[[], SourceColumns]

    def prompts(self) -> list[Prompt]:
        """One prompt for each annotation."""
        return self.read(np.arange(self.length))

    def batch(self) -> pa.RecordBatch:
        """The same prompts as a batch of PROMPTS_SCHEMA."""
        return _batch(self.columns(), self.read)


def _batch(columns: SourceColumns, read: Callable[[NDArray[np.int64]], list[Prompt]]) -> pa.RecordBatch:
    clipped, good = _checked(columns)
    length = len(good)
    given = {name: getattr(columns, name) for name in _SAME if getattr(columns, name) is not None}
    for name in ("prompt_id", "annotation_id", "category"):
        if name in given:
            good &= _held_by_a_table(given[name])
    if columns.score is not None:
        good &= _true(pc.or_kleene(pc.is_null(columns.score), pc.is_finite(columns.score)))
    if columns.category_id is not None:
        good &= _true(pc.or_kleene(pc.is_null(columns.category_id), pc.greater(columns.category_id, -MAX_INT64 - 1)))
    values = {
        **given,
        "iscrowd": pa.array(_true(columns.iscrowd)) if columns.iscrowd is not None else pa.repeat(False, length),
        "image_size": _sizes(columns.size_hw, length),
        "box_xyxy": pa.ListArray.from_arrays(np.arange(0, 4 * length + 1, 4, dtype=np.int32), clipped.ravel()),
        "points_xy": _empty_lists(length, PROMPTS_SCHEMA.field("points_xy").type),
        "point_labels": _empty_lists(length, PROMPTS_SCHEMA.field("point_labels").type),
    }
    batch = pa.record_batch(
        [
            values[field.name].cast(field.type) if field.name in values else pa.nulls(length, field.type)
            for field in PROMPTS_SCHEMA
        ],
        schema=PROMPTS_SCHEMA,
    )
    if good.all():
        return batch
    others = np.flatnonzero(~good)
    read = rows_to_table(map(prompt_row, read(others)), PROMPTS_SCHEMA)
    order = np.arange(length)
    order[others] = length + np.arange(len(others))
    both = pa.concat_tables([pa.Table.from_batches([batch]), read]).combine_chunks()
    return both.take(pa.array(order)).to_batches()[0]


_SAME = ("prompt_id", "image_id", "image_uri", "annotation_id", "category_id", "category", "score", "attributes")


def _checked(columns: SourceColumns) -> tuple[Doubles, Bools]:
    """Clipped boxes, and which rows `stable_sam.prompt_check` accepts; a few that it accepts too are False."""
    x0, y0, x1, y1 = columns.box_xyxy.T
    known = np.zeros(len(x0), bool) if columns.size_hw is None else columns.size_hw[:, 0] > 0
    height, width = (np.inf, np.inf) if columns.size_hw is None else np.where(known[:, None], columns.size_hw, np.inf).T
    with np.errstate(invalid="ignore", over="ignore"):
        left, top = np.where(x0 < 0, 0.0, x0), np.where(y0 < 0, 0.0, y0)
        right, bottom = np.where(x1 > width, width, x1), np.where(y1 > height, height, y1)
        extent = np.maximum(np.maximum(left, top), np.maximum(right - left, bottom - top))
        good = (
            columns.plain
            & np.isfinite(columns.box_xyxy).all(axis=1)
            & (x1 > x0)
            & (y1 > y0)
            & (left < right)
            & (top < bottom)
            & (extent > 1)
        )
    return np.column_stack([left, top, right, bottom]), good


def _held_by_a_table(texts: pa.Array) -> Bools:
    return _true(pc.or_kleene(pc.is_null(texts), pc.less_equal(pc.binary_length(texts), MAX_TEXT_BYTES)))


def _true(values: pa.Array) -> Bools:
    """Null is False."""
    array: Bools = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return array


def _sizes(size_hw: Doubles | None, length: int) -> pa.Array:
    kind = PROMPTS_SCHEMA.field("image_size").type
    if size_hw is None:
        return pa.nulls(length, kind)
    offsets = np.arange(0, 2 * length + 1, 2, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, size_hw.astype(np.int32).ravel(), mask=pa.array(size_hw[:, 0] == 0))


def _empty_lists(length: int, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(np.zeros(length + 1, dtype=np.int32), pa.array([], kind.value_type))


def different(values: Sequence[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """The different ones of `values` (what is not text counts as different), and for each row which one it has."""
    found: dict[Any, int] = {}
    codes = [found.setdefault(v if isinstance(v, str) else (i,), len(found)) for i, v in enumerate(values)]
    return [key if isinstance(key, str) else values[key[0]] for key in found], np.array(codes, np.int64)


class PlaceCounter:
    """How many annotations of each image came before: the place makes the id of one that has none."""

    def __init__(self, size: int, number: Callable[[str], int | None]) -> None:
        """`number` gives images a number below `size`, or None to those that need a place of their own."""
        self._number, self._counts = number, np.zeros(size, np.int32)
        self._others: dict[str, int] = {}

    def next(self, image_id: str) -> int:
        """The place of one more annotation of an image."""
        number = self._number(image_id)
        if number is None:
            place = self._others.get(image_id, 0)
            self._others[image_id] = place + 1
        else:
            place = int(self._counts[number])
            self._counts[number] = place + 1
        return place

    def of_chunk(self, image_ids: Sequence[Any], codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each of a chunk: `image_ids` are its different ids, `codes` says which one each row has."""
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(image_ids))
        starts = np.cumsum(counts) - counts
        before = np.array([self._advance(image_id, int(n)) for image_id, n in zip(image_ids, counts, strict=True)])
        places = np.empty(len(codes), np.int64)
        places[order] = np.arange(len(codes)) - np.repeat(starts, counts) + np.repeat(before, counts)
        return places

    def _advance(self, image_id: str, count: int) -> int:
        place = self.next(image_id)
        number = self._number(image_id)
        if number is None:
            self._others[image_id] = place + count
        else:
            self._counts[number] = place + count
        return place
