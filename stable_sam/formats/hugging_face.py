"""Parquet files with the features that Hugging Face's `datasets` reads: `data/train-00000.parquet` and so on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.formats.export_records import Add, ExportImage, Target

FILE_BYTES = 128 * 2**20
"""Bytes of images and masks after which the next file begins; a file is built in memory."""
FILE_IMAGES = 20_000
"""Images after which the next file begins."""
_OBJECT_COLUMNS: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
    "prompt_id": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "category": (pa.int64(), {}),  # `_schema` adds the names of the export's categories
    "bbox": (
        pa.list_(pa.float64()),
        {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"},
    ),
    "area": (pa.int64(), {"dtype": "int64", "_type": "Value"}),
    "iscrowd": (pa.bool_(), {"dtype": "bool", "_type": "Value"}),
    "score": (pa.float64(), {"dtype": "float64", "_type": "Value"}),
    "mask_counts": (pa.string(), {"dtype": "string", "_type": "Value"}),
}


@contextmanager
def write_hugging_face(target: Target) -> Iterator[Add]:
    """Write a row for each image: the content of its file (its URI when images are not copied) and `objects` as lists.

    In `objects`, mask_counts is COCO compressed RLE of `[height, width]`, bbox is XYWH in pixels, and category is a
    class label.
    """
    schema = _schema(target.names)
    rows: list[dict[str, Any]] = []
    size = number = 0

    def flush() -> None:
        nonlocal rows, size, number
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd", row_group_size=100)
        target.write(f"data/train-{number:05}.parquet", buffer.getvalue())
        rows, size, number = [], 0, number + 1

    def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
        nonlocal size
        rows.append(_row(image, data))
        size += len(data or b"") + sum(len(item.mask.counts) for item in image.objects)
        if size >= FILE_BYTES or len(rows) == FILE_IMAGES:
            flush()
        return [{} for _ in image.objects]

    yield add
    if rows:
        flush()


def _row(image: ExportImage, data: bytes | None) -> dict[str, Any]:
    items = image.objects
    height, width = image.size_hw
    return {
        "image": {"bytes": data, "path": image.reference if data is None else image.name},
        "image_uri": image.image_uri,
        "height": height,
        "width": width,
        "objects": {
            "prompt_id": [item.prompt_id for item in items],
            "category": [item.category.index for item in items],
            "bbox": [list(item.mask.bbox_xywh) for item in items],
            "area": [item.mask.area for item in items],
            "iscrowd": [item.iscrowd for item in items],
            "score": [item.score for item in items],
            "mask_counts": [item.mask.counts for item in items],
        },
    }


def _schema(names: list[str]) -> pa.Schema:
    labels = {"names": names, "_type": "ClassLabel"}
    features = {
        "image": {"_type": "Image"},
        "image_uri": {"dtype": "string", "_type": "Value"},
        "height": {"dtype": "int32", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
        "objects": {
            name: {"feature": labels if name == "category" else feature, "_type": "Sequence"}
            for name, (_, feature) in _OBJECT_COLUMNS.items()
        },
    }
    fields = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_uri", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("objects", pa.struct([(name, pa.list_(kind)) for name, (kind, _) in _OBJECT_COLUMNS.items()])),
    ]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
