"""Weak annotations of any supported format as `Prompt` records; the format is recognised by the file's content.

    COCO instances JSON             {"images": [...], "annotations": [...]}         stable_sam/data/coco.py
    COCO detection results JSON     [{"image_id": ..., "bbox": ..., ...}, ...]      stable_sam/data/coco.py
    table of prompts                Parquet, or one JSON object a line              stable_sam/data/prompt_table.py

Every annotation becomes exactly one `Prompt`. One that cannot be used has the reason in `error`; a file that cannot be
understood as a whole raises `AnnotationError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

import pyarrow as pa

from stable_sam.data import coco, prompt_table, storage
from stable_sam.data.coco_catalogue import AnyCatalogue, CocoFileNames
from stable_sam.data.image_folder import ImageFolder
from stable_sam.data.json_stream import JsonStream
from stable_sam.data.prompt_columns import Chunk
from stable_sam.errors import AnnotationError, NotFoundError
from stable_sam.records import Prompt

EXPECTED = (
    "expected COCO instances JSON (images and annotations), COCO detection results JSON (a list of objects with "
    "image_id and bbox), or a table of prompts as Parquet or JSON Lines (image, and box_xyxy, bbox_xywh or points_xy)"
)
BATCH_ROWS = 10_000
"""Prompts read together: some megabytes."""
ROWS_ONE_BY_ONE = 500
"""Records held for those who take prompts one by one, and may want only the first."""
PARQUET = b"PAR1"


def read_prompt_batches(
    annotations_uri: str, *, images_uri: str, image_index_uri: str | None = None
) -> Iterator[pa.RecordBatch]:
    """The prompts of `read_prompts` as record batches of PROMPTS_SCHEMA, at most `BATCH_ROWS` rows each.

    Plain boxes are read and checked column by column, everything else row by row. Raises what `read_prompts` raises,
    and when it does.
    """
    return _batches(_open(annotations_uri, images_uri, image_index_uri, BATCH_ROWS))


def read_prompts(annotations_uri: str, *, images_uri: str, image_index_uri: str | None = None) -> Iterator[Prompt]:
    """The prompts of an annotation file, in the file's order.

    `images_uri` is the folder that file names in the annotations are relative to; an image outside is refused.
    `image_index_uri` (detection results only) is a COCO JSON whose `images` say which file an image_id is.

    Files of any length are read as a stream; what is kept is the list of the folder's images and, of a COCO file, that
    of its own. Whether an id appears twice is for the caller to find out.

    The call itself raises `AnnotationError` when the file is missing, of no known format, or a COCO file that is no
    JSON, and `StorageError` when it or the image folder cannot be read. The iterator raises `AnnotationError` for a
    line, detection or row group that cannot be parsed, and at the end of a file without a single annotation.
    """
    return _prompts(_open(annotations_uri, images_uri, image_index_uri, ROWS_ONE_BY_ONE))


def _batches(chunks: Iterator[Chunk]) -> Iterator[pa.RecordBatch]:
    return (chunk.batch() for chunk in chunks)


def _prompts(chunks: Iterator[Chunk]) -> Iterator[Prompt]:
    return (prompt for chunk in chunks for prompt in chunk.prompts())


def _open(uri: str, images_uri: str, image_index_uri: str | None, rows: int) -> Iterator[Chunk]:
    with ExitStack() as opened:
        file = opened.enter_context(_stream(uri))
        folder = ImageFolder(images_uri)
        chunks = _recognised(file, uri, folder, image_index_uri, rows)
        # From here on the file is closed where the chunks end.
        return _some(chunks, uri, opened.pop_all())


def _some(chunks: Iterator[Chunk], uri: str, opened: ExitStack) -> Iterator[Chunk]:
    found = False
    with opened:
        for chunk in chunks:
            found = True
            yield chunk
    if not found:
        raise AnnotationError(f"{uri}: expected at least one annotation, got none")


def _recognised(
    file: BinaryIO, uri: str, folder: ImageFolder, image_index_uri: str | None, rows: int
) -> Iterator[Chunk]:
    beginning = file.read(len(PARQUET))
    stream = JsonStream(file, uri)
    if beginning != PARQUET and stream.peek() == "[":
        _check_detections(stream, uri)
        return coco.read_detections(file, name=uri, catalogue=_catalogue(folder, image_index_uri), rows=rows)
    if image_index_uri is not None:
        raise AnnotationError(f"{image_index_uri}: an image index is for COCO detection results, and {uri} is not that")
    if beginning == PARQUET:
        return prompt_table.read_parquet(file, name=uri, folder=folder, rows=rows)
    if _is_json_lines(stream, file, uri):
        return prompt_table.read_json_lines(file, name=uri, folder=folder, rows=rows)
    return coco.read_instances(file, name=uri, folder=folder, rows=rows)


def _check_detections(stream: JsonStream, uri: str) -> None:
    for first in stream.elements():
        if not (isinstance(first, dict) and "image_id" in first):
            raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got a list that begins with {first!r:.80}")
        return


def _is_json_lines(stream: JsonStream, file: BinaryIO, uri: str) -> bool:
    """Whether the file is a table, one object a line, and not a COCO file; told by the keys of the first object."""
    first = stream.peek()
    if not first:
        raise AnnotationError(f"{uri}: the file is empty: {EXPECTED}")
    if first != "{":
        file.seek(0)
        raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got a file that begins with {file.read(40)!r}")
    keys = []
    for key in stream.members():
        if key in ("images", "annotations", "image"):
            return key == "image"
        keys.append(key[:200])
        del keys[20:]
        stream.skip()
    if stream.peek():
        return True
    found = f"keys {', '.join(keys):.200}" if keys else "no keys"
    raise AnnotationError(f"{uri}: unknown format: {EXPECTED}, got an object with {found}")


def _catalogue(folder: ImageFolder, image_index_uri: str | None) -> AnyCatalogue:
    if image_index_uri is None:
        return CocoFileNames(folder)
    with _stream(image_index_uri) as file:
        return coco.read_index(file, name=image_index_uri, folder=folder)


def _stream(uri: str) -> BinaryIO:
    try:
        return storage.open_stream(uri)
    except NotFoundError as error:
        raise AnnotationError(f"{uri}: no such annotation file") from error
