"""A folder of images with weak annotations beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.records import Prompt
from stable_sam.storage import files as storage
from stable_sam.table.schema import prompt_from_row


class Source:
    """A folder of (empty) image files and one annotation file beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("a.jpg", "b.jpg", "000000000042.jpg", "deep/c.jpg"):
            storage.write_bytes(str(root / "images" / name), b"")
        storage.write_bytes(str(root / "secret.jpg"), b"")

    def uri(self, name: str) -> str:
        return str(self.root / name)

    def write(self, content: Any, name: str = "annotations.json") -> str:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        storage.write_bytes(self.uri(name), data)
        return self.uri(name)

    def read(self, content: Any, *, index: Any = None, images: str = "images") -> list[Prompt]:
        index_uri = None if index is None else self.write(index, "index.json")
        where: dict[str, Any] = {"images_uri": self.uri(images), "image_index_uri": index_uri}
        prompts = list(read_prompts(self.write(content), **where))
        batches = read_prompt_batches(self.uri("annotations.json"), **where)
        assert [prompt_from_row(row) for batch in batches for row in batch.to_pylist()] == prompts
        return prompts


def coco(*annotations: Any, **image: Any) -> dict[str, Any]:
    entry = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80} | image
    return {"images": [entry], "annotations": list(annotations), "categories": [{"id": 3, "name": "cat"}]}


def annotation(**fields: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "iscrowd": 0} | fields


DETECTIONS = [
    {"image_id": 42, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.9},
    {"image_id": 42, "category_id": 3, "bbox": [5, 6, 7, 8], "score": 0.8},
    {"image_id": 9, "category_id": 3, "bbox": [5, 6, 7, 8], "score": 0.7},
    {"image_id": 42, "category_id": 4, "bbox": [9, 9, 9, 9], "score": 0.6},
]


ROWS: list[dict[str, Any]] = [
    {"prompt_id": "p1", "image": "a.jpg", "box_xyxy": [1.0, 2.0, 30.0, 40.0], "category": "cat", "score": 0.5},
    {"prompt_id": None, "image": "deep/c.jpg", "bbox_xywh": [1.0, 2.0, 30.0, 40.0], "iscrowd": 1, "source": "yolo"},
    {"prompt_id": None, "image": "deep/c.jpg", "points_xy": [[5.0, 6.0], [7.0, 8.0]], "point_labels": [1, 0]},
    {"prompt_id": "p4", "image": "images/b.jpg", "points_xy": [[5.0, 6.0]], "attributes": '{"a": 1}'},
    {"prompt_id": "p11", "image": "a.jpg", "box_xyxy": [1.0, 2.0, 3.0, 4.0], "attributes": "not JSON"},
    {"prompt_id": "p5", "image": "a.jpg", "box_xyxy": [1.0, 2.0, 3.0, 4.0], "bbox_xywh": [1.0, 2.0, 3.0, 4.0]},
    {"prompt_id": "p6", "image": "a.jpg", "points_xy": [[5.0, 6.0]], "point_labels": [1, 1]},
    {"prompt_id": "p7", "image": "a.jpg", "point_labels": [1]},
    {"prompt_id": "p8", "image": "../secret.jpg", "box_xyxy": [1.0, 2.0, 30.0, 40.0]},
    {"prompt_id": None, "image": None, "box_xyxy": [1.0, 2.0, 30.0, 40.0]},
    {"prompt_id": "p10", "image": "a.jpg", "bbox_xywh": [30.0, 2.0, -3.0, 40.0]},
]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    columns = sorted({column for row in rows for column in row})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), sink)
    return bytes(sink.getvalue())
