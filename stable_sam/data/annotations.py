"""Weak annotations of any supported format as `Prompt` records; the format is recognised by the file's content.

    COCO instances JSON             {"images": [...], "annotations": [...]}         stable_sam/data/coco.py
    COCO detection results JSON     [{"image_id": ..., "bbox": ..., ...}, ...]      stable_sam/data/coco.py
    table of prompts                Parquet, or one JSON object a line              stable_sam/data/prompt_table.py

Every annotation becomes exactly one `Prompt`. One that cannot be used has the reason in `error`; a file that cannot be
understood as a whole raises `AnnotationError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from stable_sam.data import coco, prompt_table, storage
from stable_sam.data.image_folder import ImageFolder
from stable_sam.data.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table
from stable_sam.errors import AnnotationError, NotFoundError, one_line
from stable_sam.records import Prompt

EXPECTED = (
    "expected COCO instances JSON (images and annotations), COCO detection results JSON (a list of objects with "
    "image_id and bbox), or a table of prompts as Parquet or JSON Lines (image, and box_xyxy, bbox_xywh or points_xy)"
)

BATCH_ROWS = 10_000
"""Prompts of one record batch: some megabytes."""


def read_prompt_batches(
    annotations_uri: str, *, images_uri: str, image_index_uri: str | None = None
) -> Iterator[pa.RecordBatch]:
    """The prompts of `read_prompts` as record batches of PROMPTS_SCHEMA, at most `BATCH_ROWS` rows each.

    Raises what `read_prompts` raises, and when it does.
    """
    prompts = read_prompts(annotations_uri, images_uri=images_uri, image_index_uri=image_index_uri)
    return _batches(prompts)


def _batches(prompts: Iterator[Prompt]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(prompts, BATCH_ROWS)):
        yield from rows_to_table(map(prompt_row, chunk), PROMPTS_SCHEMA).to_batches()


def read_prompts(annotations_uri: str, *, images_uri: str, image_index_uri: str | None = None) -> Iterator[Prompt]:
    """The prompts of an annotation file, in the file's order.

    `images_uri` is the folder that file names in the annotations are relative to. `image_index_uri` (detection results
    only) is a COCO JSON whose `images` say which file an image_id is.

    The call itself raises `AnnotationError` when the file is missing, invalid JSON or of no known format, and
    `StorageError` when it or the image folder cannot be read. The iterator raises `AnnotationError` for a line or row
    group that cannot be parsed, for an id that appears twice (rows are matched by id from run to run, so none can be
    made up), and at the end of a file without a single annotation.
    """
    data = _read_file(annotations_uri)
    folder = ImageFolder(images_uri)
    prompts = _recognised(data, annotations_uri, folder, image_index_uri)
    return _unique(prompts, annotations_uri)


def _recognised(data: bytes, uri: str, folder: ImageFolder, image_index_uri: str | None) -> Iterator[Prompt]:
    document = None if data.startswith(b"PAR1") else _parsed(data, uri)
    if isinstance(document, list):
        if document and not (isinstance(document[0], dict) and "image_id" in document[0]):
            raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got a list that begins with {document[0]!r:.80}")
        return coco.read_detections(document, name=uri, catalogue=_catalogue(folder, image_index_uri))
    if image_index_uri is not None:
        raise AnnotationError(f"{image_index_uri}: an image index is for COCO detection results, and {uri} is not that")
    if document is None:
        read_table = prompt_table.read_parquet if data.startswith(b"PAR1") else prompt_table.read_json_lines
        return read_table(data, name=uri, folder=folder)
    if not ("images" in document and "annotations" in document):
        raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got an object with {_keys(document)}")
    return coco.read_instances(document, name=uri, catalogue=coco.Catalogue(document, uri, folder))


def _catalogue(folder: ImageFolder, image_index_uri: str | None) -> coco.Catalogue | coco.CocoFileNames:
    if image_index_uri is None:
        return coco.CocoFileNames(folder)
    index = _parsed(_read_file(image_index_uri), image_index_uri)
    if not isinstance(index, dict) or "images" not in index:
        raise AnnotationError(f"{image_index_uri}: expected a COCO JSON with a list of images as image index")
    return coco.Catalogue(index, image_index_uri, folder)


def _parsed(data: bytes, uri: str) -> dict[str, Any] | list[Any] | None:
    """The JSON document; None when the file is JSON Lines."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise AnnotationError(f"{uri}: the file is empty: {EXPECTED}")
    if start[:1] not in (b"{", b"["):
        raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got a file that begins with {start[:40]!r}")
    try:
        document: dict[str, Any] | list[Any] = json.loads(data)
    except json.JSONDecodeError as error:
        if start.startswith(b"{") and error.msg == "Extra data":
            return None
        raise AnnotationError(
            f"{uri}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{uri}: not valid JSON: {one_line(error)}") from None
    if isinstance(document, dict) and "image" in document:
        return None
    return document


def _read_file(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except NotFoundError as error:
        raise AnnotationError(f"{uri}: no such annotation file") from error


def _unique(prompts: Iterator[Prompt], uri: str) -> Iterator[Prompt]:
    """Passes the prompts on; raises `AnnotationError` when there is none, or two with one id."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise AnnotationError(f"{uri}: expected ids that appear once, got id {prompt.prompt_id} twice")
        seen.add(prompt.prompt_id)
        yield prompt
    if not seen:
        raise AnnotationError(f"{uri}: expected at least one annotation, got none")


def _keys(document: dict[str, Any]) -> str:
    return f"keys {', '.join(document):.200}" if document else "no keys"
