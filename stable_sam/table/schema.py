"""The columns of the masks table: one Arrow schema of all fields of Prompt, RefinedMask and Provenance.

All types are types of Delta (lists of any length, int32, int64, double, string, boolean), so the Parquet files that
actors write can be the files of the published table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from stable_sam.records import Prompt, Provenance, RefinedMask

_DOUBLES = pa.list_(pa.float64())

MASKS_SCHEMA = pa.schema(
    [
        # keys
        ("run_id", pa.string()),
        ("shard_id", pa.string()),
        ("prompt_id", pa.string()),
        ("image_id", pa.string()),
        ("image_uri", pa.string()),
        ("annotation_id", pa.string()),
        ("category_id", pa.int64()),
        ("category", pa.string()),
        ("iscrowd", pa.bool_()),
        ("score", pa.float64()),
        ("attributes", pa.string()),
        # prompt in pixels of the upright image; image_size [h, w] as the source declares it
        ("image_size", pa.list_(pa.int32())),
        ("box_xyxy", _DOUBLES),
        ("points_xy", pa.list_(_DOUBLES)),
        ("point_labels", pa.list_(pa.int32())),
        ("fingerprint", pa.string()),
        # outcome
        ("status", pa.string()),
        ("error", pa.string()),
        # mask as COCO compressed RLE
        ("mask_size", pa.list_(pa.int32())),
        ("mask_counts", pa.string()),
        ("bbox_xywh", _DOUBLES),
        ("area", pa.int64()),
        # scores
        ("predicted_iou", pa.float64()),
        ("stability_score", pa.float64()),
        ("prompt_stability", pa.float64()),
        ("dsp_weight", pa.float64()),
        ("box_agreement", pa.float64()),
        ("quality", pa.float64()),
        ("gain_over_box", pa.float64()),
        ("second_pass", pa.string()),
        # the view of the image that the mask was made in
        ("view", pa.string()),
        ("tile_xywh", pa.list_(pa.int32())),
        ("route", pa.string()),
        ("route_reason", pa.string()),
        # what reviewers and true masks say
        ("verdict", pa.string()),
        ("true_iou", pa.float64()),
        # provenance
        ("revision", pa.int64()),
        ("model_id", pa.string()),
        ("weights_sha256", pa.string()),
        ("config_hash", pa.string()),
        ("code_version", pa.string()),
        ("dtype", pa.string()),
        ("logical_date", pa.string()),
    ]
)
"""Columns of the masks table, which has one row for each prompt of a run and null where the record has None."""

LATER_COLUMNS = frozenset(
    {"fingerprint", "quality", "gain_over_box", "second_pass", "view", "tile_xywh", "verdict", "true_iou"}
)
"""Columns that a table of an older version may lack. They are read as null."""

_PROMPT_FIELDS = tuple(field.name for field in dataclasses.fields(Prompt))
_MASK_FIELDS = tuple(field.name for field in dataclasses.fields(RefinedMask))
_PROVENANCE_FIELDS = tuple(field.name for field in dataclasses.fields(Provenance))

SHARD_SCHEMA = pa.schema([field for field in MASKS_SCHEMA if field.name in _PROMPT_FIELDS])
"""The columns of a shard file: the fields of Prompt."""

PROMPTS_SCHEMA = pa.schema(
    [*(field for field in SHARD_SCHEMA if field.name != "fingerprint"), pa.field("cause", pa.string())]
)
"""The columns of prompts as read from their source, before they have a fingerprint."""


def mask_table(rows: Sequence[tuple[Prompt, RefinedMask]], provenance: Provenance) -> pa.Table:
    """Make a table of MASKS_SCHEMA from prompts, their masks and their provenance.

    A row's `error` is that of the mask, because the refiner repeats the error of a bad prompt. Raises ValueError when
    a mask and its prompt have different prompt_ids, and for a value that does not have its column's type.
    """
    for prompt, mask in rows:
        if mask.prompt_id != prompt.prompt_id:
            raise ValueError(f"expected the mask of prompt {prompt.prompt_id}, got that of prompt {mask.prompt_id}")
    prompts, masks = [prompt for prompt, _ in rows], [mask for _, mask in rows]

    def column(name: str, type_: pa.DataType) -> pa.Array:
        if name in _PROVENANCE_FIELDS:
            return pa.repeat(pa.scalar(getattr(provenance, name), type_), len(rows))
        records: Sequence[Prompt | RefinedMask] = masks if name in _MASK_FIELDS else prompts
        return pa.array([getattr(record, name) for record in records], type_)

    try:
        return pa.Table.from_arrays([column(field.name, field.type) for field in MASKS_SCHEMA], schema=MASKS_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"row does not fit the schema: {error}") from error


def withdrawn_rows(prompts: pa.Table, provenance: Provenance) -> pa.Table:
    """Make tombstones from prompts (SHARD_SCHEMA): rows of status "withdrawn" without mask, scores, error and route."""
    given = {name: getattr(provenance, name) for name in _PROVENANCE_FIELDS} | {"status": "withdrawn", "error": None}
    columns = [
        pa.repeat(pa.scalar(given.get(field.name), field.type), prompts.num_rows)
        if field.name in given or field.name not in prompts.column_names
        else prompts[field.name]
        for field in MASKS_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=MASKS_SCHEMA)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Make a row of PROMPTS_SCHEMA from a prompt."""
    return {name: getattr(prompt, name) for name in PROMPTS_SCHEMA.names}


def prompt_from_row(row: Mapping[str, Any]) -> Prompt:
    """Make a prompt from a row of PROMPTS_SCHEMA or SHARD_SCHEMA, equal to the one that the row was made from."""
    box, size = row["box_xyxy"], row["image_size"]
    return Prompt(
        **{
            **row,
            "image_size": None if size is None else tuple(size),
            "box_xyxy": None if box is None else tuple(box),
            "points_xy": tuple((x, y) for x, y in row["points_xy"]),
            "point_labels": tuple(row["point_labels"]),
        }
    )


def rows_to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table from rows whose keys are exactly the schema's columns.

    `pa.Table.from_pylist` silently drops unknown keys and fills missing ones with null. Here both raise ValueError, as
    does a value that does not have its column's type.
    """
    rows = list(rows)
    expected = set(schema.names)
    for row in rows:
        if row.keys() != expected:
            unknown, missing = sorted(row.keys() - expected), sorted(expected - row.keys())
            raise ValueError(f"row does not fit the schema: unknown columns {unknown}, missing columns {missing}")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"row does not fit the schema: {error}") from error
