"""Labelled masks from the reviews of a table, and the command that learns from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.calibration.fit import REVIEWED, SAMPLE
from stable_sam.calibration.labels import RECORDS_SCHEMA, labelled, read_records, without_tiles, write_records
from stable_sam.calibration.reviewed import reviewed_labels
from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, ConfigError, InputError
from stable_sam.identity import model_identity
from stable_sam.records import Prompt
from stable_sam.review.selection import selected
from stable_sam.table.query import in_sample, query
from tests.report_table import Scripted, answer, picture, publish_night
from tests.unit.calibration.made_up import HALF, MODEL, made_up, review


def a_table(root: Path, names: Sequence[str]) -> str:
    """One night: a mask for each name, the left half of one of three pictures."""
    prompts = [
        Prompt(
            prompt_id=name, image_id=str(number % 3), image_uri=picture(root / f"images/{number % 3}.png", 60, 40),
            box_xyxy=(1, 1, 30, 40), score=0.5,
        )
        for number, name in enumerate(names)
    ]  # fmt: skip
    scores = {"predicted_iou": 0.6, "stability_score": 0.7, "prompt_stability": 0.8, "box_agreement": 0.9}
    masks = [answer(name, HALF, route="accept" if name < "3" else "review", **scores) for name in names]
    return publish_night(root, prompts, masks)


def test_reviewed_masks_of_a_table_are_labels(tmp_path: Path) -> None:
    table = a_table(tmp_path, [str(number) for number in range(8)])
    model, ours = Scripted.identity, RefinerConfig()
    assert reviewed_labels(table, ours, model).lines()[0].startswith(f"{table}: 0 reviewed masks (0 of 3 accept,")
    review(table, {"1": "corrected", "4": "rejected"})
    known = reviewed_labels(table, ours, model)
    assert any("None of them was confirmed" in line for line in known.lines())
    review(table, {"5": "confirmed"})
    known = reviewed_labels(table, ours, model)
    assert (known.reviewed, known.waiting) == ({"accept": 1, "review": 2}, {"accept": 2, "review": 3})
    assert known.lines() == [
        f"{table}: 3 reviewed masks (1 of 3 accept, 2 of 5 review, 0 of 0 reject). People chose them, so the curves "
        "are fitted to them but the promises are checked on others."
    ]
    rows = {row["prompt_id"]: row for row in known.records.to_pylist()}
    assert {name: row["iou"] for name, row in rows.items()} == {"1": 0.5, "4": 0.0, "5": 1.0}
    assert rows["4"] == {
        "set": table, "picture": str(tmp_path / "images/1.png"), "prompt_id": "4", "kind": REVIEWED, "iou": 0.0,
        "second_pass": None, "prompt_stability": 0.8, "predicted_iou": 0.6, "stability_score": 0.7, "dsp_weight": None,
        "box_agreement": 0.9, "log_area": pytest.approx(np.log10(0.5)), "score": 0.5,
        "log_box_area": pytest.approx(np.log10(29 * 39 / 2400)), "mask_to_box_area": pytest.approx(1200 / (29 * 39)),
        "object_share": None, "box_iou": None,
    }  # fmt: skip
    assert (rows["5"]["object_share"], rows["5"]["box_iou"]) == (0.5, pytest.approx(29 * 39 / 1200))
    assert set(labelled(known.records).images) == {f"{table}/{tmp_path}/images/{number}.png" for number in (1, 2)}


def test_masks_of_another_model_are_left_out_and_counted(tmp_path: Path) -> None:
    table = a_table(tmp_path, ["1", "2"])
    review(table, {"1": "confirmed"})
    for refiner, model in (
        (RefinerConfig(), MODEL),
        (RefinerConfig(jitter_count=4), Scripted.identity),
        (RefinerConfig(stability_offset=2), Scripted.identity),
        (RefinerConfig(dtype="bfloat16"), replace(Scripted.identity, dtype="bfloat16")),
    ):
        known = reviewed_labels(table, refiner, model)
        assert (known.records.num_rows, known.left_out, known.waiting) == (0, 1, {})
        assert any(line.startswith("1 more mask is left out") for line in known.lines())


def test_a_sample_counts_when_all_of_it_was_reviewed(tmp_path: Path) -> None:
    names = [str(number) for number in range(24)]
    table = a_table(tmp_path, names)
    sampled = [row["prompt_id"] for row in query(table, f"SELECT * FROM masks WHERE {in_sample(0.4)}").to_pylist()]
    assert 4 < len(sampled) < 16
    with selected(table, sample=0.4) as selection:
        assert selection.objects == len(sampled)
    model, ours = Scripted.identity, RefinerConfig()
    with pytest.raises(
        InputError, match=r"expected all masks .* in the sample of 0.4 to be reviewed, none is: export --sample 0.4"
    ):
        reviewed_labels(table, ours, model, 0.4)
    others = [name for name in names if name not in sampled][:3]
    review(table, dict.fromkeys([*sampled[2:], *others], "confirmed"))
    with pytest.raises(InputError, match="to be reviewed, 2 masks are not: "):
        reviewed_labels(table, ours, model, 0.4)
    review(table, dict.fromkeys(sampled[:2], "rejected"))
    # What a night made after the review cannot have been reviewed.
    a_table(tmp_path, [*names, *(f"new-{number}" for number in range(30))])
    known = reviewed_labels(table, ours, model, 0.4)
    kinds = {row["prompt_id"]: row["kind"] for row in known.records.to_pylist()}
    assert kinds == dict.fromkeys(sampled, SAMPLE) | dict.fromkeys(others, REVIEWED)
    assert f"{len(sampled)} of them in the random sample" in known.lines()[0]
    assert set(reviewed_labels(table, ours, model).records["kind"].to_pylist()) == {REVIEWED}


def test_samples_are_random_nested_and_parts(tmp_path: Path) -> None:
    import duckdb

    for part in (0.05, 0.5, 1):
        sql = f"SELECT count(*) FROM (SELECT range::VARCHAR AS prompt_id FROM range(20000)) WHERE {in_sample(part)}"
        ((count,),) = duckdb.sql(sql).fetchall()
        assert count == pytest.approx(20_000 * part, abs=300)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="sample: expected a part above 0 and up to 1"):
            in_sample(wrong)


def records(count: int) -> pa.Table:
    masks, _ = made_up(count)
    rows = [
        {"set": "s", "picture": masks.images[row], "prompt_id": str(row), "kind": "noisy-box", "iou": masks.iou[row]}
        | {name: None if np.isnan(values[row]) else values[row] for name, values in masks.scores.items()}
        for row in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA)


def test_records_of_another_model_are_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "records.parquet")
    write_records(records(10), file, RefinerConfig(), MODEL)
    assert without_tiles(file, RefinerConfig()) == RefinerConfig()
    assert without_tiles("bundled", RefinerConfig()) == RefinerConfig()
    assert read_records(file, RefinerConfig(), MODEL) == records(10)
    with pytest.raises(
        ConfigError, match="expected masks made with jitter_count 2, .* got masks made with jitter_count 8"
    ):
        read_records(file, RefinerConfig(jitter_count=2), MODEL)
    with pytest.raises(ConfigError, match="masks made with weights_sha256"):
        read_records("bundled", RefinerConfig(), MODEL)
    with pytest.raises(AnnotationError, match="expected labelled masks as Parquet"):
        read_records(__file__, RefinerConfig(), MODEL)


def test_the_command_learns_from_bundled_masks_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "identity", model_identity(RefinerConfig()))
    table = a_table(tmp_path, [str(number) for number in range(6)])
    review(table, {"0": "confirmed", "4": "corrected"})
    out, saved = tmp_path / "calibration.json", tmp_path / "records.parquet"
    arguments = ["calibrate", "--records", "bundled", "--table", table, "--out", str(out), "--precision", "0.8"]
    arguments += ["--reject-precision", "0.99"]
    result = CliRunner().invoke(app, [*arguments, "--save-records", str(saved)], catch_exceptions=False)
    assert result.output.startswith(f"{table}: 2 reviewed masks (1 of 3 accept, 1 of 3 review, 0 of 0 reject).")
    assert "can be promised" in result.output, "99 % of bad ones cannot"
    fitted = json.loads(out.read_text())["fitted_on"]
    assert fitted[table] == 2
    assert len(fitted) == 3
    # Saved and read again they are still masks that people chose.
    again = ["calibrate", "--records", str(saved), "--out", str(tmp_path / "again.json"), "--precision", "0.8"]
    again += ["--reject-precision", "0.99"]
    CliRunner().invoke(app, again, catch_exceptions=False)
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()
    for wrong, message in (
        (["--sample", "1"], "4 masks are not: export"),
        (["--sample", "3"], "sample: expected a part"),
    ):
        with pytest.raises((InputError, ConfigError), match=message):
            CliRunner().invoke(app, [*arguments, *wrong], catch_exceptions=False)
