"""The table's columns are the records' fields, and rows keep their values."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from stable_sam.records import Prompt, Provenance, RefinedMask
from stable_sam.table.schema import (
    LATER_COLUMNS,
    MASKS_SCHEMA,
    PROMPTS_SCHEMA,
    SHARD_SCHEMA,
    mask_table,
    prompt_from_row,
    prompt_row,
    rows_to_table,
)

PROVENANCE = Provenance(
    run_id="r", shard_id="s", revision=1, model_id="m", weights_sha256="w", config_hash="c", code_version="v", dtype="d"
)


def names(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def test_columns_are_the_fields_of_the_records() -> None:
    assert set(MASKS_SCHEMA.names) == (names(Prompt) | names(RefinedMask) | names(Provenance)) - {"cause"}
    assert len(MASKS_SCHEMA.names) == len(set(MASKS_SCHEMA.names))
    assert set(SHARD_SCHEMA.names) == names(Prompt) - {"cause"}
    assert set(PROMPTS_SCHEMA.names) == names(Prompt) - {"fingerprint"}
    assert set(MASKS_SCHEMA.names) >= LATER_COLUMNS
    # Shared by two records, and so one column.
    assert names(Prompt) & names(RefinedMask) == {"prompt_id", "error"}
    assert not names(Provenance) & (names(Prompt) | names(RefinedMask))


def test_full_row_keeps_every_value() -> None:
    prompt = Prompt(
        prompt_id="7",
        image_id="1",
        image_uri="a.jpg",
        box_xyxy=(0.1, 2, 3, 4),
        points_xy=((5, 6.5),),
        point_labels=(1,),
    )
    mask = RefinedMask(
        prompt_id="7",
        status="ok",
        mask_size=(3, 4),
        mask_counts="abc",
        bbox_xywh=(0, 1, 2, 3),
        area=5,
        predicted_iou=0.5,
    )
    row = mask_table([(prompt, mask)], PROVENANCE).to_pylist()[0]
    assert row["box_xyxy"] == [0.1, 2, 3, 4]
    assert row["points_xy"] == [[5, 6.5]]
    assert row["point_labels"] == [1]
    assert row["mask_size"] == [3, 4]
    assert (row["area"], row["predicted_iou"], row["prompt_stability"]) == (5, 0.5, None)
    assert (row["revision"], row["run_id"], row["status"]) == (1, "r", "ok")


def test_the_masks_error_is_the_rows() -> None:
    prompt = Prompt(prompt_id="7", image_id="1", image_uri="", error="no image")
    [row] = mask_table([(prompt, RefinedMask(prompt_id="7", status="failed", error="other"))], PROVENANCE).to_pylist()
    assert row["error"] == "other"


def test_mask_of_another_prompt_is_refused() -> None:
    rows = [(Prompt(prompt_id="7", image_id="1", image_uri="a"), RefinedMask(prompt_id="8", status="ok"))]
    with pytest.raises(ValueError, match="expected the mask of prompt 7, got that of prompt 8"):
        mask_table(rows, PROVENANCE)


def test_a_value_of_another_type_is_refused() -> None:
    rows = [(Prompt(prompt_id="7", image_id="1", image_uri="a"), RefinedMask(prompt_id="7", status="ok", area="x"))]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit the schema"):
        mask_table(rows, PROVENANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"unknown columns \['extra'\]"),
        ({"image_id": "1", "prompt_id": None, "-image_uri": None}, r"missing columns \['image_uri'\]"),
        ({"score": "high"}, "does not fit the schema"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    row = prompt_row(Prompt(prompt_id="7", image_id="1", image_uri="a")) | change
    for name in [key for key in row if key.startswith("-")]:
        del row[name], row[name[1:]]
    with pytest.raises(ValueError, match=message):
        rows_to_table([row], PROMPTS_SCHEMA)


def test_prompt_survives_a_shard_file_row() -> None:
    prompt = Prompt(
        prompt_id="7",
        image_id="1",
        image_uri="a",
        box_xyxy=(1, 2, 3, 4),
        iscrowd=True,
        attributes='{"x": 1}',
        image_size=(6, 8),
    )
    assert prompt_from_row(rows_to_table([prompt_row(prompt)], PROMPTS_SCHEMA).to_pylist()[0]) == prompt


def test_types_are_deltas() -> None:
    for field in MASKS_SCHEMA:
        inner = field.type
        while pa.types.is_list(inner):
            inner = inner.value_type
        assert inner in (pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()), field
