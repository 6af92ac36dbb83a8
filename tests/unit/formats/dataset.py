"""A folder of images with annotation files of other tools beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from stable_sam.config import SourceConfig
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.records import Prompt
from stable_sam.storage import files as storage
from stable_sam.table.schema import prompt_from_row

WIDTH, HEIGHT = 100, 80


class Dataset:
    """A folder of images of 100 x 80 pixels, and annotation files beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        buffer = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "JPEG")
        for name in ("a.jpg", "b.jpg", "train/c.jpg", "1.jpg"):
            self.write(f"images/{name}", buffer.getvalue())
        self.write("secret.jpg", buffer.getvalue())

    def uri(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, content: Any) -> str:
        data = content.encode() if isinstance(content, str) else content
        storage.write_bytes(self.uri(name), data if isinstance(data, bytes) else json.dumps(data).encode())
        return self.uri(name)

    def read(self, annotations: str, images: str = "images", **config: Any) -> list[Prompt]:
        """By both ways, which must agree. `annotations`: path below the root, or several."""
        uri = ",".join(
            f"{name}{equals}{self.uri(path)}"
            for name, equals, path in (e.rpartition("=") for e in annotations.split(","))
        )
        where: dict[str, Any] = {"images_uri": self.uri(images), "source": SourceConfig(**config)}
        prompts = list(read_prompts(uri, **where))
        rows = [row for batch in read_prompt_batches(uri, **where) for row in batch.to_pylist()]
        assert [prompt_from_row(row) for row in rows] == prompts
        return prompts


def only(prompts: list[Prompt]) -> Prompt:
    [prompt] = prompts
    return prompt


def voc(*objects: str, name: str = "a.jpg", size: str = "<width>100</width><height>80</height>") -> str:
    return f"<annotation><filename>{name}</filename><size>{size}</size>{''.join(objects)}</annotation>"


def voc_object(box: str = "1 2 30 40", name: str = "cat", more: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    values = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    return f"<object><name>{name}</name>{more}<bndbox>{values}</bndbox></object>"
