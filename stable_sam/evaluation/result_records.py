"""The records of an evaluation: one row for each mask, from which every figure is computed.

Written as a Parquet file, they answer questions in SQL that the tables do not:

    SELECT category, method, avg(iou) FROM 'records.parquet' WHERE prompt = 'noisy-box' GROUP BY ALL
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stable_sam.storage.files import write_bytes

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "set": _NAME,
        "picture": _NAME,
        "annotation": _NAME,
        "category": _NAME,
        "area_fraction": pa.float64(),
        "box_cells": pa.float64(),
        "whole": _NAME,
        "method": _NAME,
        "prompt": _NAME,
        "number": pa.int32(),
        "box_xyxy": pa.list_(pa.float64()),
        "prompt_quality": pa.float64(),
        "iou": pa.float64(),
        "boundary_iou": pa.float64(),
        "union_iou": pa.float64(),
        "whole_iou": pa.float64(),
        "predicted_iou": pa.float64(),
        "dsp_weight": pa.float64(),
        "view": _NAME,
    }
)
"""Columns of the records:

    set, picture           names of the set and of the image's file; records that were written keep the name `picture`
    annotation, category   names of the object and of its category
    area_fraction          fraction of the image that the object covers
    box_cells              longer side of the object's true box in cells of the image embedding
    whole                  annotation of the object that this one is a part of; null where it is no part
    method, prompt         names of the method and of the kind of prompt
    number                 number of the prompt among those of its kind for the object
    box_xyxy               weak box in pixels of the upright image; null for points
    prompt_quality         IoU of the weak box with the true box, or the number of points
    iou, boundary_iou      of the mask with the true mask
    union_iou              IoU of the mask with the union of the object's masks by this method and kind of prompt; null
                           for a single prompt. Its mean is mSF. Records of worst-box have the mean over the masks of
                           the boxes that the search starts from
    whole_iou              IoU of the mask with the whole; null where the object is no part
    predicted_iou          IoU that the model estimates; null for the method box
    dsp_weight             alpha_1; 0 for methods without the plugin
    view                   as `RefinedMask.view`
"""


def record_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Make a table of the records of one image, which takes a tenth of the memory of `rows`."""
    return pa.table({name: [row[name] for row in rows] for name in SCHEMA.names}, schema=SCHEMA)


def join_records(tables: Iterable[pa.Table]) -> pa.Table:
    """Join the records of all images, in the order of `tables`."""
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).unify_dictionaries().combine_chunks()


def write_records(records: pa.Table, uri: str) -> None:
    """Write the records as one Parquet file, whole or not at all; raises `StorageError`."""
    sink = pa.BufferOutputStream()
    pq.write_table(records, sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def numbers(records: pa.Table, column: str) -> NDArray[np.float64]:
    """Return a column of numbers (N,), with NaN for null."""
    values: NDArray[np.float64] = records[column].to_numpy(zero_copy_only=False)
    return values


def codes(records: pa.Table, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return a column of names as positions (N,) in a list of names, -1 for null, and that list.

    records: a table that `join_records` returned.
    """
    values = records[column].combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # no rows, no chunks
        return np.zeros(0, dtype=np.int64), []
    return values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), values.dictionary.to_pylist()
