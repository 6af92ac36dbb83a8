"""Reads a table with a row for each prompt, as Parquet or as JSON Lines.

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

Every other column goes into `attributes`, except for values of more than 200 characters. A category_id, category,
iscrowd, score or attributes of another type also goes there, because no mask depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.errors import AnnotationError, StableSamError, one_line
from stable_sam.formats.columns import convert
from stable_sam.formats.columns.check import Chunk, PlaceCounter, different
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.prompt_table.rows import (
    OWN_COLUMNS,
    PROMPT_COLUMNS,
    Row,
    Rows,
    TableChunk,
    attributes_of,
    prompt_chunk,
)

EXPECTED = f"expected a table of prompts with a column image and one of {', '.join(PROMPT_COLUMNS)}"
PARQUET = b"PAR1"
"""The first bytes of a Parquet file."""
MAX_LINE_BYTES = 16 * 2**20
"""Longest line of JSON Lines, because a line is held as a whole."""
MAX_BATCH_BYTES = 2**25
"""Size of the rows of a Parquet file that are read together; of rows with long lists, fewer are read at a time."""
SAMPLE_ROWS = 16
"""Number of rows from which the size of all rows is estimated."""
BUFFER_BYTES = 2**22
"""Bytes of a column that are read at a time, whatever the size of a row group."""


def read_prompt_table(file: BinaryIO, *, name: str, images: ImageLookup, rows: int) -> Iterator[Chunk]:
    """Read Parquet or JSON Lines, whichever the file is; raises what `read_parquet` and `read_json_lines` raise."""
    is_parquet = file.read(len(PARQUET)) == PARQUET
    file.seek(0)
    return (read_parquet if is_parquet else read_json_lines)(file, name=name, images=images, rows=rows)


def read_parquet(file: BinaryIO, *, name: str, images: ImageLookup, rows: int) -> Iterator[Chunk]:
    """Return chunks of at most `rows` rows.

    Raises `AnnotationError` for a damaged file, for missing columns, and for a column that appears twice.
    """
    with _explained(f"{name}: not a readable Parquet file"):
        parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES)
        columns = parquet.schema_arrow.names
    if "image" not in columns or not set(PROMPT_COLUMNS) & set(columns):
        raise AnnotationError(f"{name}: {EXPECTED}, got {', '.join(columns):.200}")
    if len(set(columns)) < len(columns):
        raise AnnotationError(f"{name}: expected every column once, got {', '.join(columns):.200}")
    return _read(_parquet_chunks(parquet, name, rows), images)


def read_json_lines(file: BinaryIO, *, name: str, images: ImageLookup, rows: int) -> Iterator[Chunk]:
    """Return chunks of at most `rows` lines that are not blank.

    Raises `AnnotationError` for a first line without an image and for a line that is not a JSON object.
    """
    _, first = next(_json_rows(file, name), ("", {}))
    if "image" not in first:
        raise AnnotationError(f"{name}: {EXPECTED}, got a first line with {', '.join(first):.200}")
    return _read(_json_chunks(_json_rows(file, name), rows), images)


def _parquet_chunks(file: pq.ParquetFile, name: str, rows: int) -> Iterator[TableChunk]:
    number = 0
    with _explained(f"{name}: not a readable Parquet file"):
        batches = file.iter_batches(batch_size=min(rows, _rows_of_size(file)))
    while True:
        with _explained(f"{name}: damaged after row {number}"):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # finds text that is not valid Unicode
            chunk = _parquet_chunk(batch, name, number)
        yield chunk
        number += batch.num_rows


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Raise `AnnotationError` for all that Arrow raises on a damaged file, which goes from OSError to RuntimeError."""
    try:
        yield
    except StableSamError:
        raise
    except (pa.ArrowException, OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise AnnotationError(f"{problem}: {one_line(error)}") from error


def _rows_of_size(file: pq.ParquetFile) -> int:
    """Return the number of rows that take about `MAX_BATCH_BYTES`, estimated from the first `SAMPLE_ROWS`.

    The metadata of the columns are not used, because pyarrow ends the process when damaged metadata are read.
    """
    first = next(file.iter_batches(batch_size=SAMPLE_ROWS), None)
    return max(1, int(MAX_BATCH_BYTES * first.num_rows / max(first.nbytes, 1))) if first else 1


def _parquet_chunk(batch: pa.RecordBatch, name: str, before: int) -> TableChunk:
    def column(wanted: str) -> pa.Array | None:
        return batch.column(wanted) if wanted in batch.schema.names else None

    def listed(some: pa.RecordBatch) -> list[Row]:
        # Arrow holds values that Python does not, such as a date before the year 1.
        with _explained(f"{name}: a value near row {before + 1} cannot be read"):
            return list(some.to_pylist())

    def attributes() -> pa.Array | None:
        others = [n for n in batch.schema.names if n not in OWN_COLUMNS or n == "attributes"]
        some = [n for n in others if batch.column(n).null_count < batch.num_rows]
        return pa.array(map(attributes_of, listed(batch.select(some))), pa.string()) if some else None

    def records(rows: Rows) -> list[tuple[str, Row]]:
        found = listed(batch.take(pa.array(rows)))
        return [(f"{name}: row {before + row + 1}", record) for row, record in zip(rows, found, strict=True)]

    image = batch.column("image")
    if pa.types.is_string(image.type):
        encoded = image.dictionary_encode(null_encoding="encode")
        images = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    else:
        images = different(image.to_pylist())
    return TableChunk(length=batch.num_rows, images=images, column=column, attributes=attributes, records=records)


def _json_chunks(rows: Iterator[tuple[str, Row]], size: int) -> Iterator[TableChunk]:
    while chunk := list(islice(rows, size)):
        yield _json_chunk(chunk)


def _json_chunk(chunk: Sequence[tuple[str, Row]]) -> TableChunk:
    rows = [row for _, row in chunk]

    def attributes() -> pa.Array | None:
        if all(row.keys() <= OWN_COLUMNS and row.get("attributes") is None for row in rows):
            return None
        return pa.array(map(attributes_of, rows), pa.string())

    return TableChunk(
        length=len(rows),
        images=different([row.get("image") for row in rows]),
        column=lambda wanted: convert.column_of(rows, wanted),
        attributes=attributes,
        records=lambda numbers: [chunk[number] for number in numbers],
    )


def _json_rows(file: BinaryIO, name: str) -> Iterator[tuple[str, Row]]:
    file.seek(0)
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES:
            raise AnnotationError(
                f"{name}: line {number}: expected a line below {MAX_LINE_BYTES} bytes, got a longer one"
            )
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{name}: line {number}: not valid JSON: {one_line(error)}") from None
        if not isinstance(row, dict):
            raise AnnotationError(f"{name}: line {number}: expected a JSON object, got {row!r:.80}")
        yield f"{name}: line {number}", row


def _read(chunks: Iterator[TableChunk], images: ImageLookup) -> Iterator[Chunk]:
    places, position = PlaceCounter(len(images.folder), images.folder.number), 0
    for chunk in chunks:
        yield prompt_chunk(chunk, images, places, position)
        position += chunk.length
