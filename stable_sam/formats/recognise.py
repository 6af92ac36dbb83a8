"""Recognises the format of an annotation file by its content and its ending."""

from __future__ import annotations

from typing import Any, BinaryIO

from stable_sam.errors import AnnotationError
from stable_sam.formats.prompt_table.read import PARQUET
from stable_sam.formats.reading import open_annotations
from stable_sam.formats.registry import READERS
from stable_sam.formats.xml_elements import number, root_tag
from stable_sam.storage.json_stream import JsonStream

EXPECTED = (
    "expected COCO instances JSON (images and annotations), COCO detection results JSON (a list of objects with "
    "image_id and bbox), a table of prompts as Parquet or JSON Lines (image, and box_xyxy, bbox_xywh or points_xy), "
    "Pascal VOC or CVAT XML, YOLO labels (.txt), Open Images boxes (.csv), LabelMe JSON or Label Studio JSON"
)
HEAD_BYTES = 4096
_ROOTS = {reader.xml_root: name for name, reader in READERS.items() if reader.xml_root}
_KEYS = {key: name for name, reader in READERS.items() for key in reader.json_keys}


class WrongExport(AnnotationError):
    """A file is an export of a tool whose other exports can be read, while this one cannot."""


def recognise(file: BinaryIO, uri: str) -> str:
    """Return the file's format, named as in `SourceConfig.format`; raises `AnnotationError` for an unknown one.

    Raises `WrongExport` when only another export of the same tool can be read.
    """
    head = file.read(HEAD_BYTES)
    ending = uri.rpartition(".")[2].lower()
    if head.startswith(PARQUET):
        return "table"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"<") or (ending == "xml" and start):
        file.seek(0)
        tag = root_tag(file, uri)
        if tag not in _ROOTS:
            raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got XML of <{tag:.80}>")
        return _ROOTS[tag]
    if ending == "txt" and start[:1] not in (b"[", b"{"):
        return "yolo"
    if ending == "csv" and start:
        return "openimages"
    stream = JsonStream(file, uri)
    first = stream.peek()
    if not first:
        raise AnnotationError(f"{uri}: the file is empty: {EXPECTED}")
    if first == "[":
        return _of_list(stream, uri)
    if first == "{":
        return _of_object(stream, uri)
    raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got a file that begins with {head[:40]!r}")


def _of_list(stream: JsonStream, uri: str) -> str:
    for first in stream.elements():
        if isinstance(first, dict) and "image_id" in first:
            return "detections"
        if isinstance(first, dict) and _is_task(first):
            return "labelstudio"
        if isinstance(first, dict) and _is_json_min(first):
            raise WrongExport(
                f"{uri}: expected Label Studio's JSON, got JSON-MIN, which does not hold the tasks: export as JSON"
            )
        raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got a list that begins with {first!r:.80}")
    return "detections"


def _is_task(record: dict[str, Any]) -> bool:
    return isinstance(record.get("data"), dict) or ("result" in record and isinstance(record.get("task"), dict))


def _is_json_min(record: dict[str, Any]) -> bool:
    """Whether a record is a Label Studio task whose data and results of each control stand side by side."""
    regions = (value[0] for value in record.values() if isinstance(value, list) and value)
    return {"annotation_id", "annotator"} <= record.keys() or any(
        isinstance(region, dict) and "original_width" in region for region in regions
    )


def holds_annotations(uri: str) -> bool:
    """Whether a file holds annotations of a known format; the lines of text and CSV files are checked, too.

    Raises `StorageError`.
    """
    try:
        with open_annotations(uri) as file:
            found = recognise(file, uri)
            file.seek(0)
            lines = file.read(HEAD_BYTES).decode(errors="replace").splitlines()
    except WrongExport:
        return True
    except AnnotationError:
        return False
    if found == "yolo":
        return any(_is_label(line.split()) for line in lines)
    return found != "openimages" or "ImageID" in "".join(lines[:1])


def _is_label(values: list[str]) -> bool:
    return len(values) >= 5 and all(isinstance(number(value), float) for value in values)


def _of_object(stream: JsonStream, uri: str) -> str:
    keys = []
    for key in stream.members():
        begins = stream.peek()
        found = _KEYS.get((key, None)) or _KEYS.get((key, begins))
        if found is not None:
            return found
        keys.append(key[:200])
        del keys[20:]
        if key in ("annotations", "predictions") and begins == "[":
            for first in stream.elements():
                return "labelstudio" if isinstance(first, dict) and "result" in first else "coco"
            continue
        stream.skip()
    if stream.peek():
        return "table"
    if "annotations" in keys:
        return "coco"
    shown = f"keys {', '.join(keys):.200}" if keys else "no keys"
    raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got an object with {shown}")
