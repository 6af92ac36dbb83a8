"""The records of an evaluation: one row for each mask, from which every figure is computed.

They are a Parquet file that any engine reads, so a question nobody asked yet needs no second run:

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
"""area_fraction: of the object in its picture. box_cells: longer side of the object's true box, in cells of the image
embedding. whole: annotation of the object that this one is a part of, or null. number: of the prompt among its kind's.
box_xyxy: the weak box in pixels of the picture; null for points. prompt_quality: IoU of the weak box with the true one,
or the number of points. union_iou: IoU of the mask with the union of the object's masks of this method and kind (its
mean is mSF); null for a single prompt; for worst-box, which has one record for each object and method, the mean over
the masks of the boxes that the search starts from. whole_iou: IoU with the whole, where there is one. predicted_iou:
null for the method box. dsp_weight: alpha_1, 0 for methods without the plugin. view: null, or where a small object was
looked at closer, tile or wider, see `RefinedMask.view`."""


def record_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Records of one picture as columns, a tenth of the memory of `rows`."""
    return pa.table({name: [row[name] for row in rows] for name in SCHEMA.names}, schema=SCHEMA)


def join_records(tables: Iterable[pa.Table]) -> pa.Table:
    """All records in the order of `tables`, each name kept once."""
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).unify_dictionaries().combine_chunks()


def write_records(records: pa.Table, uri: str) -> None:
    """Write the Parquet file, whole or not at all. Raises `StorageError`."""
    sink = pa.BufferOutputStream()
    pq.write_table(records, sink, compression="zstd")
    write_bytes(uri, sink.getvalue().to_pybytes())


def numbers(records: pa.Table, column: str) -> NDArray[np.float64]:
    """A column of numbers, NaN for null."""
    values: NDArray[np.float64] = records[column].to_numpy(zero_copy_only=False)
    return values


def codes(records: pa.Table, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """A column of names of `join_records` as positions, -1 for null, in the list of its names."""
    values = records[column].combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # no rows, no chunks
        return np.zeros(0, dtype=np.int64), []
    return values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), values.dictionary.to_pylist()
