"""A table of prompts, one row each, as Parquet or as JSON Lines.

    image            text    path below the image folder, or a full URI (required)
    box_xyxy         list    [x0, y0, x1, y1] pixels          at most one of the two; a row needs a box,
    bbox_xywh        list    [x, y, width, height] pixels     points, or both
    points_xy        list    [[x, y], ...] pixels
    point_labels     list    1 = on the object, 0 = background, one for each point; absent: all 1
    prompt_id        text or whole number, unique; absent: `{image}:{place among the rows of its image}`, from 0
    annotation_id    text or whole number
    category_id      whole number
    category         text
    iscrowd          0 or 1
    score            number
    attributes       JSON object, as an object or as text

Every other column goes into `attributes`, values of more than 200 characters excepted; so does a category_id,
category, iscrowd, score or attributes of another type, which is no reason to go without the mask.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.data.image_folder import ImageFolder, relative_name
from stable_sam.data.source_annotation import SourceAnnotation, attributes_json, checked_prompt, id_text
from stable_sam.errors import AnnotationError, ImageError, one_line
from stable_sam.records import Prompt

PROMPT_COLUMNS = ("box_xyxy", "bbox_xywh", "points_xy")
OWN_COLUMNS = frozenset(
    {"prompt_id", "image", *PROMPT_COLUMNS, "point_labels", "annotation_id"}
    | {"category_id", "category", "iscrowd", "score", "attributes"}
)
EXPECTED = f"expected a table of prompts with a column image and one of {', '.join(PROMPT_COLUMNS)}"
ROWS_AT_A_TIME = 4096


def read_parquet(data: bytes, *, name: str, folder: ImageFolder) -> Iterator[Prompt]:
    """One prompt for each row; raises `AnnotationError` for a damaged file or one without the needed columns."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise AnnotationError(f"{name}: not a readable Parquet file: {one_line(error)}") from error
    columns = file.schema_arrow.names
    if "image" not in columns or not set(PROMPT_COLUMNS) & set(columns):
        raise AnnotationError(f"{name}: {EXPECTED}, got {', '.join(columns):.200}")
    return _read(_parquet_rows(file, name), folder)


def read_json_lines(data: bytes, *, name: str, folder: ImageFolder) -> Iterator[Prompt]:
    """One prompt for each line that is not blank; raises `AnnotationError` for a line that is not a JSON object."""
    _, first = next(_json_rows(data, name), ("", {}))
    if "image" not in first:
        raise AnnotationError(f"{name}: {EXPECTED}, got a first line with {', '.join(first):.200}")
    return _read(_json_rows(data, name), folder)


def _parquet_rows(file: pq.ParquetFile, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}: row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise AnnotationError(f"{name}: damaged after row {number}: {one_line(error)}") from error


def _json_rows(data: bytes, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{name}: line {number}: not valid JSON: {one_line(error)}") from None
        if not isinstance(row, dict):
            raise AnnotationError(f"{name}: line {number}: expected a JSON object, got {row!r:.80}")
        yield f"{name}: line {number}", row


def _read(rows: Iterator[tuple[str, dict[str, Any]]], folder: ImageFolder) -> Iterator[Prompt]:
    places: Counter[str] = Counter()
    for position, (where, row) in enumerate(rows):
        problems = []
        try:
            image_id, image_uri = _image(row.get("image"), folder)
        except ImageError as error:
            problems.append(str(error))
            image_id, image_uri = id_text(row.get("image")) or "", ""
        prompt_id = id_text(row.get("prompt_id"))
        if prompt_id is None:
            if row.get("prompt_id") is not None:
                problems.append(f"expected text or a whole number as prompt_id, got {row['prompt_id']!r:.80}")
            prompt_id = f"{image_id}:{places[image_id]}" if image_id else f"row-{position}"
        places[image_id] += 1
        yield checked_prompt(
            SourceAnnotation(
                prompt_id=prompt_id,
                where=f"{where} (prompt {prompt_id})",
                image_id=image_id,
                image_uri=image_uri,
                problem="; ".join(problems) or None,
                box_xyxy=row.get("box_xyxy"),
                box_xywh=row.get("bbox_xywh"),
                points_xy=row.get("points_xy"),
                point_labels=row.get("point_labels"),
                annotation_id=id_text(row.get("annotation_id")),
                category_id=row.get("category_id"),
                category=row.get("category"),
                iscrowd=row.get("iscrowd"),
                score=row.get("score"),
                attributes=_attributes(row),
            )
        )


def _image(given: Any, folder: ImageFolder) -> tuple[str, str]:
    """(image_id, image_uri) of a row."""
    if isinstance(given, str) and "://" in given:
        return given, folder.find_uri(given)
    return relative_name(given), folder.find(given)


def _attributes(row: Mapping[str, Any]) -> str | None:
    """The row's attributes and its further columns as JSON; what is no JSON object is an attribute `attributes`."""
    given = row.get("attributes")
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            given = json.loads(given)
    others = {column: value for column, value in row.items() if column not in OWN_COLUMNS}
    return attributes_json(others | (given if isinstance(given, dict) else {"attributes": given}), known=())
