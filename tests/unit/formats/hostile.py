"""An image folder, and annotations of it that mean harm."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from stable_sam.formats.read import read_prompts
from stable_sam.records import Prompt


def read(root: Path, content: Any, name: str = "x.json") -> list[Prompt]:
    (root / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return list(read_prompts(str(root / name), images_uri=str(root / "images")))


def coco(file_name: Any = "a.jpg", **fields: Any) -> dict[str, Any]:
    record = {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40]} | fields
    return {"images": [{"id": 1, "file_name": file_name}], "annotations": [record], "categories": []}


def png(width: int, height: int, body: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    others = b"".join(chunk(*part) for part in extra)
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", body) + chunk(b"IEND", b"")
