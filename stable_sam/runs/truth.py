"""Scores masks with true masks, which may be known for a part of a source: each mask's IoU with its true mask.

    truth file (COCO instances) --load_truth, cut_truth, when the run is planned--> a file of true masks for each shard
    masks of a shard, and its true masks --with_true_iou, before the shard is committed--> the column `true_iou`

A committed row never changes, so `true_iou` is committed with it. It depends only on the mask and on the truth, which
is part of the hash of the run's content like prompts and images: with another truth, a run is another run. Resumes,
second drivers, compaction, vacuum and readers of Parquet treat the column like any other, whereas a table of scores
beside the rows would have to be found by each of them.

An image belongs to the true image whose `file_name` its URI ends with. `match` finds a prompt's object in its image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from stable_sam.errors import AnnotationError, ImageError, StorageError
from stable_sam.formats.image_lookup import path_parts
from stable_sam.formats.image_names import composed
from stable_sam.formats.reading import open_annotations
from stable_sam.formats.source_annotation import id_text, image_size
from stable_sam.images.orientation import size_problem, turned_hw
from stable_sam.images.size import stored_size_of
from stable_sam.records import Prompt, RefinedMask
from stable_sam.rle import encode_segmentation, rle, rle_iou
from stable_sam.runs.manifest import ShardPlan
from stable_sam.storage.files import read_bytes, write_bytes
from stable_sam.storage.json_stream import JsonStream
from stable_sam.storage.parallel import ahead

TRUTH_SCHEMA = pa.schema(
    [
        ("image_uri", pa.string()),
        ("annotation_id", pa.string()),
        ("category", pa.string()),
        ("iscrowd", pa.bool_()),
        ("mask_size", pa.list_(pa.int32())),
        ("mask_counts", pa.string()),
    ]
)
"""One row for each true mask. An image without true masks has one row, which is null except for its URI."""
MIN_BOX_IOU = 0.25
"""A weak box that overlaps less with every object has no true mask: it is a false alarm, or the truth leaves its object
out. The value is low so that bad boxes of objects are scored as well."""
_CHECKED = 1000
_CHUNK = 10_000
"""Elements of the truth file that are Python objects at a time."""
_IMAGES = pa.schema(
    [("image_id", pa.string()), ("file_name", pa.string()), ("height", pa.int32()), ("width", pa.int32())]
)
_CATEGORIES = pa.schema([("category_id", pa.string()), ("category", pa.string())])
_ANNOTATIONS = pa.schema(
    [
        ("image_id", pa.string()),
        ("annotation_id", pa.string()),
        ("category_id", pa.string()),
        ("iscrowd", pa.bool_()),
        ("segmentation", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueMask:
    """The true mask of one object."""

    annotation_id: str
    category: str | None
    rle: Mapping[str, Any]
    """COCO RLE in the form that pycocotools takes."""
    box_xywh: tuple[float, float, float, float]
    """Tight box around the mask, in original pixels."""


def load_truth(connection: duckdb.DuckDBPyConnection, truth_uri: str) -> str:
    """Make the table `truth`, the annotations of the truth file for the images of `cut`.

    Returns a digest of it, empty when no image has truth. Raises an `AnnotationError` that names the file and the
    record when the file does not hold COCO instances, and `StorageError`.
    """
    for name, schema in (("images", _IMAGES), ("categories", _CATEGORIES), ("annotations", _ANNOTATIONS)):
        connection.register("chunk", schema.empty_table())
        connection.execute(f"CREATE TABLE truth_{name} AS SELECT * FROM chunk")
    _read(connection, truth_uri)
    connection.execute(
        r"""
        CREATE TABLE truth AS
        WITH known AS (
            SELECT DISTINCT shard, image_uri, image.image_id, height, width FROM (
                SELECT *, nfc_normalize(image_uri) AS composed, regexp_extract(composed, '[^/]*$') AS name FROM cut
            ) JOIN (SELECT *, regexp_extract(file_name, '[^/]*$') AS name FROM truth_images) image USING (name)
            WHERE suffix('/' || composed, '/' || file_name)
            QUALIFY dense_rank() OVER (PARTITION BY image_uri ORDER BY length(file_name) DESC, image.image_id) = 1
        )
        SELECT shard, image_uri, annotation_id, category, iscrowd, height, width, segmentation
        FROM known LEFT JOIN truth_annotations USING (image_id) LEFT JOIN truth_categories USING (category_id)
        """
    )
    fields = ("image_uri", "annotation_id", "category", "iscrowd", "height", "width", "segmentation")
    text = " || '|' || ".join(f"coalesce({field}::VARCHAR, '')" for field in fields)
    ((rows, digest),) = connection.execute(
        f"SELECT count(*), bit_xor(md5_number({text}))::VARCHAR FROM truth"
    ).fetchall()
    return f"{rows} {digest}" if rows else ""


def check_truth_sizes(connection: duckdb.DuckDBPyConnection, truth_uri: str) -> None:
    """Raise an `AnnotationError` when the truth states another size than that of an upright image.

    The headers of `_CHECKED` images of the table `truth` are read, because a frame that is mistaken is so in many
    images. An image that cannot be read is passed over: its prompts fail for that reason.
    """
    sizes = "SELECT DISTINCT image_uri, height, width FROM truth ORDER BY md5(image_uri), image_uri LIMIT $1"
    known = connection.execute(sizes, [_CHECKED]).fetchall()
    headers = ahead(_stored_size, (image_uri for image_uri, _, _ in known))
    for (image_uri, height, width), header in zip(known, headers, strict=True):
        if header is not None and (problem := size_problem((height, width), turned_hw(*header), header[1])):
            raise AnnotationError(f"{truth_uri}: image {image_uri}: {problem}; true masks are those of upright images")


def _stored_size(image_uri: str) -> tuple[tuple[int, int], int] | None:
    with suppress(ImageError, StorageError):
        return stored_size_of(image_uri)
    return None


def cut_truth(
    connection: duckdb.DuckDBPyConnection, shards: Sequence[ShardPlan], truth_uri: str
) -> tuple[ShardPlan, ...]:
    """Store the true masks of each shard and return the shards with their number of rows in `truth`.

    shards: the shards of the table `cut`, in its order.
    Raises an `AnnotationError` that names the annotation whose mask is invalid, and `StorageError`.
    """
    numbers = [number for (number,) in connection.execute("SELECT DISTINCT shard FROM cut ORDER BY shard").fetchall()]
    places = {number: place for place, number in enumerate(numbers)}
    known = list(shards)
    reader = connection.sql("SELECT * FROM truth ORDER BY shard, image_uri, annotation_id").to_arrow_reader(_CHUNK)
    rows = (row for batch in reader for row in batch.to_pylist())
    for number, of_shard in groupby(rows, key=lambda row: row["shard"]):
        table = pa.Table.from_pylist([_true_mask(row, truth_uri) for row in of_shard], schema=TRUTH_SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        shard = known[places[number]]
        write_bytes(shard.truth_uri, buffer.getvalue())
        known[places[number]] = replace(shard, truth=table.num_rows)
    return tuple(known)


def read_stored_truth(shard: ShardPlan) -> pa.Table:
    """Read the true masks (TRUTH_SCHEMA) of a shard; an empty table when there are none. Raises `StorageError`."""
    if not shard.truth:
        return TRUTH_SCHEMA.empty_table()
    data = read_bytes(shard.truth_uri)
    try:
        return pq.read_table(io.BytesIO(data), schema=TRUTH_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{shard.truth_uri}: expected a Parquet file of true masks: {error}") from error


def with_true_iou(prompts: Sequence[Prompt], masks: Sequence[RefinedMask], truth: pa.Table) -> list[RefinedMask]:
    """Return `masks` with their `true_iou`, for each prompt that matches a true mask of `truth` (TRUTH_SCHEMA)."""
    objects: dict[str, list[TrueMask]] = {}
    for row in truth.to_pylist():
        if row["mask_counts"] is not None and not row["iscrowd"]:
            objects.setdefault(row["image_uri"], []).append(_object(row))
    scored = []
    for prompt, mask in zip(prompts, masks, strict=True):
        item = match(prompt, objects.get(prompt.image_uri, ()))
        if item is None or mask.mask_counts is None or list(mask.mask_size or ()) != item.rle["size"]:
            scored.append(mask)
            continue
        scored.append(replace(mask, true_iou=rle_iou(rle(item.rle["size"], mask.mask_counts), item.rle)))
    return scored


def match(prompt: Prompt, objects: Sequence[TrueMask]) -> TrueMask | None:
    """Find the object of an image that a prompt means; None when there is none. Several prompts may mean one object.

    Objects of another category than the prompt's are ignored. An object with the prompt's annotation_id matches if the
    prompt has no box or their boxes overlap: equal ids alone mean nothing when both files count annotations from 1.
    Otherwise the object whose tight box has the highest IoU with the prompt's box matches, if this is at least
    `MIN_BOX_IOU`.
    """
    same = [one for one in objects if None in (one.category, prompt.category) or one.category == prompt.category]
    if not same:
        return None
    overlaps = np.ones(len(same))
    if prompt.box_xyxy is not None:
        x0, y0, x1, y1 = prompt.box_xyxy
        boxes = np.array([one.box_xywh for one in same], np.float64)
        overlaps = coco_mask.iou(np.array([[x0, y0, x1 - x0, y1 - y0]], np.float64), boxes, [0] * len(same))[0]
    for one, overlap in zip(same, overlaps, strict=True):
        if prompt.annotation_id is not None and one.annotation_id == prompt.annotation_id and overlap > 0:
            return one
    best = int(np.argmax(overlaps))
    return same[best] if prompt.box_xyxy is not None and overlaps[best] >= MIN_BOX_IOU else None


def _read(connection: duckdb.DuckDBPyConnection, uri: str) -> None:
    """Fill `truth_images`, `truth_categories` and `truth_annotations`, which the file may hold in any order."""
    readers = {
        "images": (_image, _IMAGES),
        "categories": (_category, _CATEGORIES),
        "annotations": (_annotation, _ANNOTATIONS),
    }
    found = set()
    with open_annotations(uri) as file:
        stream = JsonStream(file, uri)
        if stream.peek() != "{":
            raise AnnotationError(f"{uri}: expected COCO instances as truth, an object with images and annotations")
        for key in stream.members():
            if key not in readers or stream.peek() != "[":
                stream.skip()
                continue
            found.add(key)
            record, schema = readers[key]
            elements = enumerate(stream.elements())
            while chunk := [record(item, f"{uri}: {key}[{number}]") for number, item in islice(elements, _CHUNK)]:
                connection.register("chunk", pa.Table.from_pylist(chunk, schema=schema))
                connection.execute(f"INSERT INTO truth_{key} SELECT * FROM chunk")
    if missing := {"images", "annotations"} - found:
        raise AnnotationError(
            f"{uri}: expected COCO instances as truth, found no list {' and no list '.join(sorted(missing))}"
        )


def _image(item: Any, where: str) -> dict[str, Any]:
    image_id, size = (id_text(item.get("id")), image_size(item)) if isinstance(item, dict) else (None, None)
    if image_id is None or size is None:
        raise AnnotationError(f"{where}: expected an image with id, file_name, height and width, got {item!r:.80}")
    name = item.get("file_name") or str(item.get("coco_url") or "").rpartition("/")[2]
    if not isinstance(name, str) or not name:
        raise AnnotationError(f"{where}: expected an image with id, file_name, height and width, got {item!r:.80}")
    return {
        "image_id": image_id,
        "file_name": composed("/".join(path_parts(name))),
        "height": size[0],
        "width": size[1],
    }


def _category(item: Any, where: str) -> dict[str, Any]:
    category_id, name = (id_text(item.get("id")), item.get("name")) if isinstance(item, dict) else (None, None)
    if category_id is None or not isinstance(name, str):
        raise AnnotationError(f"{where}: expected a category with id and name, got {item!r:.80}")
    return {"category_id": category_id, "category": id_text(name)}


def _annotation(item: Any, where: str) -> dict[str, Any]:
    ids = (id_text(item.get("id")), id_text(item.get("image_id"))) if isinstance(item, dict) else (None, None)
    if None in ids or not item.get("segmentation"):
        raise AnnotationError(f"{where}: expected an annotation with id, image_id and segmentation, got {item!r:.80}")
    return {
        "annotation_id": ids[0],
        "image_id": ids[1],
        "category_id": id_text(item.get("category_id")),
        "iscrowd": bool(item.get("iscrowd")),
        "segmentation": json.dumps(item["segmentation"]),
    }


def _true_mask(row: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Convert a row of the table `truth` to a row of TRUTH_SCHEMA."""
    known = {name: row.get(name) for name in TRUTH_SCHEMA.names}
    if row["segmentation"] is None:
        return known
    try:
        mask = encode_segmentation(json.loads(row["segmentation"]), (row["height"], row["width"]))
    except ValueError as error:
        raise AnnotationError(f"{uri}: annotation {row['annotation_id']}: {error}") from None
    return known | {"mask_size": mask.size_hw, "mask_counts": mask.counts}


def _object(row: Mapping[str, Any]) -> TrueMask:
    mask = rle(row["mask_size"], row["mask_counts"])
    x, y, width, height = coco_mask.toBbox(mask).tolist()
    return TrueMask(
        annotation_id=row["annotation_id"], category=row["category"], rle=mask, box_xywh=(x, y, width, height)
    )
