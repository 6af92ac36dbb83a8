"""Checks a chunk of annotations column by column, with the results of `checked_prompt` but no object for each row.

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
    """The columns of n annotations, all of one length; the values of rows that are not plain are ignored."""

    plain: Bools
    """(n,), False for rows that must be read as records."""
    box_xyxy: Doubles
    """(n, 4), XYXY in pixels, float64."""
    size_hw: Doubles | None = None
    """(n, 2), heights and widths of the images, 0 where the source does not state them; None when it states none."""
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
    """Consecutive annotations of a file, which can be read as records or as columns."""

    length: int
    """Number of annotations."""
    read: Callable[[NDArray[np.int64]], list[Prompt]]
    """Returns the prompts of the rows with these numbers, from 0."""
    columns: Callable[[], SourceColumns]
    """Returns the annotations as columns."""
    where: Callable[[int], str]
    """Returns the file and the record of the row with this number, for messages."""

    def prompts(self) -> list[Prompt]:
        """Return one prompt for each annotation."""
        return self.read(np.arange(self.length))

    def batch(self) -> pa.RecordBatch:
        """Return the prompts of `prompts` as a batch of PROMPTS_SCHEMA."""
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
    """Return the clipped boxes (n, 4) and which rows (n,) are certainly accepted by `stable_sam.prompt_check`."""
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
    """Return a column as an array in which null is False."""
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
    """Return the different values among `values`, and for each row (n,) the index of its own.

    A value that is no text counts as different from all others.
    """
    found: dict[Any, int] = {}
    codes = [found.setdefault(v if isinstance(v, str) else (i,), len(found)) for i, v in enumerate(values)]
    return [key if isinstance(key, str) else values[key[0]] for key in found], np.array(codes, np.int64)


class PlaceCounter:
    """Counts the annotations of each image; an annotation without an id is named by its place in its image, from 0."""

    def __init__(self, size: int, number: Callable[[str], int | None]) -> None:
        """Start all counts at 0. `number` maps a known image_id to a number below `size`, any other to None."""
        self._number, self._counts = number, np.zeros(size, np.int32)
        self._others: dict[str, int] = {}

    def next(self, image_id: str) -> int:
        """Return the place of the image's next annotation and count it."""
        number = self._number(image_id)
        if number is None:
            place = self._others.get(image_id, 0)
            self._others[image_id] = place + 1
        else:
            place = int(self._counts[number])
            self._counts[number] = place + 1
        return place

    def of_chunk(self, image_ids: Sequence[Any], codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the place (n,) of each annotation of a chunk and count them.

        `image_ids` are the different ids of the chunk; `codes` (n,) has the index in them for each annotation.
        """
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
