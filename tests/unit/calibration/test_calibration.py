"""Calibration on masks whose true probability is known, and on reviewed masks of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.calibration.calibrate import CalibrationConfig, calibrate, held
from stable_sam.calibration.features import LabelledMasks
from stable_sam.calibration.fit import REVIEWED, SAMPLE, divide, fit_curves, promised
from stable_sam.calibration.judge import aurc, judge, risk_coverage
from stable_sam.calibration.labels import RECORDS_SCHEMA, labelled, read_records, without_tiles, write_records
from stable_sam.calibration.reviewed import reviewed_labels
from stable_sam.config import RefinerConfig, RoutingConfig, RunConfig
from stable_sam.config.calibration import BOX_INPUTS, INPUTS, Calibration, Curve, Promise
from stable_sam.errors import AnnotationError, ConfigError, InputError
from stable_sam.formats.review_records import Answer
from stable_sam.identity import ModelIdentity, model_identity
from stable_sam.records import Prompt, RefinedMask, Verdict
from stable_sam.refining.routing import route, routed
from stable_sam.review.answers import import_answers
from stable_sam.review.selection import selected
from stable_sam.rle import encode_mask
from stable_sam.runs.calibrated import calibrated_routing
from stable_sam.table.query import in_sample, query
from tests.report_table import Scripted, answer, picture, publish_night

MODEL = ModelIdentity(model_id="nano+plugin", weights_sha256="abc", dtype="float32")


def made_up(count: int, seed: int = 0) -> tuple[LabelledMasks, NDArray[np.float64]]:
    """Masks that are good with a probability that depends on two scores, and that probability."""
    rng = np.random.default_rng(seed)
    scores = {name: np.full(count, np.nan) for name in (*INPUTS, *BOX_INPUTS)}
    scores["prompt_stability"], scores["predicted_iou"] = rng.random((2, count))
    scores["box_agreement"] = np.where(rng.random(count) < 0.3, np.nan, rng.random(count))
    probability = 1 / (1 + np.exp(-(8 * scores["prompt_stability"] + 2 * scores["predicted_iou"] - 5)))
    good = rng.random(count) < probability
    return (
        LabelledMasks(
            scores=scores,
            iou=np.where(good, 0.9, 0.3) + rng.random(count) / 20,
            box_iou=np.full(count, np.nan),
            object_share=np.full(count, np.nan),
            images=np.array([f"s/{number // 4}" for number in range(count)]),
            sets=np.full(count, "s"),
            kinds=np.full(count, "noisy-box"),
        ),
        probability,
    )


def test_the_probability_is_learnt() -> None:
    masks, probability = made_up(4000)
    calibration, apart = calibrate(masks, RefinerConfig(), MODEL, CalibrationConfig())
    assert set(calibration.curves) == {"prompt_stability", "predicted_iou", "box_agreement"}
    rows = [
        {name: None if np.isnan(values[row]) else float(values[row]) for name, values in masks.scores.items()}
        for row in range(300)
    ]
    learnt = np.array([calibration.quality(row) for row in rows])
    assert np.abs(learnt - probability[:300]).mean() < 0.04
    quality = apart.judgements[0]
    assert quality.calibration_error is not None
    assert quality.calibration_error < 0.04
    assert quality.aurc < next(one.aurc for one in apart.judgements if one.score == "prompt_stability")


def test_one_row_and_many_have_the_same_quality() -> None:
    masks, _ = made_up(1000)
    calibration, _ = calibrate(masks, RefinerConfig(), MODEL, CalibrationConfig())
    many = held("again", calibration, masks).quality
    one = [
        calibration.quality({name: float(values[row]) for name, values in masks.scores.items()}) for row in range(50)
    ]
    assert many[:50] == pytest.approx(one)


def test_the_promise_is_kept_on_other_masks() -> None:
    kept = []
    for seed in range(8):
        masks, _ = made_up(6000, seed)
        calibration, _ = calibrate(masks, RefinerConfig(), MODEL, CalibrationConfig(precision=0.9))
        others, _ = made_up(4000, seed + 100)
        accept = next(count for count in held("o", calibration, others).routes if count.route == "accept")
        assert accept.masks > 400, "a promise is easily kept by accepting nothing"
        kept.append(accept.good / accept.masks >= 0.9)
    assert sum(kept) >= 7


def test_no_threshold_keeps_a_promise_that_cannot_be_kept() -> None:
    rng = np.random.default_rng(0)
    promise = promised("accept", rng.random(2000), rng.random(2000) < 0.6, 0.95, 0.95)
    assert promise.threshold is None
    assert promise.checked == 2000


def test_equal_qualities_stand_or_fall_together() -> None:
    quality = np.repeat([0.9, 0.5], 500)
    good = np.repeat([True, False], 500)
    assert promised("accept", quality, good, 0.95, 0.95).threshold == 0.9
    assert promised("reject", quality, good, 0.95, 0.95).threshold == 0.5
    good[400:500] = False  # 80 % of the upper half
    assert promised("accept", quality, good, 0.95, 0.95).threshold is None


def test_too_few_masks_are_refused() -> None:
    masks, _ = made_up(150)
    with pytest.raises(InputError, match="at least 200 masks"):
        fit_curves(masks, 0.75, 0)
    masks, _ = made_up(400)
    with pytest.raises(InputError, match="400 good and 0 bad"):
        fit_curves(replace(masks, iou=np.ones(400)), 0.75, 0)


def test_risk_and_coverage_of_a_score_that_knows_and_one_that_does_not() -> None:
    bad = np.array([False, False, True, True])
    coverage, risk = risk_coverage(np.array([0.9, 0.8, 0.2, 0.1]), bad)
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert aurc(np.zeros(4), bad) == pytest.approx(0.5), "equal scores know nothing"


def test_what_a_review_can_catch_is_bounded() -> None:
    iou = np.array([0.1] * 5 + [0.9] * 5)
    found = judge("x", iou, iou, 0.75)
    assert (found.caught, found.caught_best) == (0.4, 0.4)
    assert found.aurc == found.aurc_best


def calibration(**changes: object) -> Calibration:
    promise = {"precision": 0.95, "confidence": 0.95, "masks": 1, "kept": 1, "checked": 1}
    plain = {
        "target_iou": 0.75,
        "intercept": 0.0,
        "curves": {"predicted_iou": Curve(x=(0.0, 1.0), y=(-4.0, 4.0))},
        "accept": Promise(route="accept", threshold=0.9, **promise),  # type: ignore[arg-type]
        "reject": Promise(route="reject", threshold=0.1, **promise),  # type: ignore[arg-type]
        "weights_sha256": "abc",
        "jitter_count": 8,
        "jitter_scale": 0.1,
        "second_pass_from": RefinerConfig().second_pass_from,
    }
    return Calibration.model_validate(plain | changes)


@pytest.mark.parametrize(("iou", "where"), [(0.95, "accept"), (0.5, "review"), (0.05, "reject")])
def test_quality_routes(iou: float, where: str) -> None:
    mask = RefinedMask(prompt_id="p", status="ok", mask_size=(10, 10), area=50, predicted_iou=iou)
    prompt = Prompt(prompt_id="p", image_id="i", image_uri="i.jpg", box_xyxy=(0, 0, 5, 5))
    answer = routed(prompt, mask, RoutingConfig(calibration=calibration()))
    assert answer.route == where
    assert answer.quality == pytest.approx(1 / (1 + np.exp(-(8 * iou - 4))))
    assert answer.route_reason is not None
    assert answer.route_reason.startswith(f"quality {answer.quality:.3f}")


def test_a_mask_of_a_tile_has_a_quality_where_tiles_were_calibrated() -> None:
    mask = RefinedMask(prompt_id="p", status="ok", mask_size=(10, 10), area=50, predicted_iou=0.95, view="tile")
    prompt = Prompt(prompt_id="p", image_id="i", image_uri="i.jpg", box_xyxy=(0, 0, 5, 5))
    of_whole_images, of_tiles = calibration(), calibration(tiles=RefinerConfig().tile_rule)
    assert routed(prompt, mask, RoutingConfig(calibration=of_whole_images)).quality is None
    assert routed(prompt, mask, RoutingConfig(calibration=of_tiles)).quality is not None


def test_an_empty_mask_is_rejected_whatever_its_quality() -> None:
    mask = RefinedMask(prompt_id="p", status="ok", mask_size=(10, 10), area=0, predicted_iou=1.0, quality=0.99)
    assert route(mask, RoutingConfig(calibration=calibration())) == ("reject", "empty mask")


def test_curves_are_flat_outside_and_say_what_a_missing_score_means() -> None:
    curve = Curve(x=(0.0, 1.0, 3.0), y=(0.0, 2.0, -2.0), missing=-7.0)
    assert [curve.at(x) for x in (-5, 0, 0.5, 1, 2, 3, 9)] == [0, 0, 1, 2, 0, -2, -2]
    assert curve.at(None) == curve.at(float("nan")) == -7.0


def test_a_calibration_for_another_model_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "c.json"
    file.write_text(calibration().model_dump_json())
    routing = RoutingConfig(calibration_uri=str(file))
    assert calibrated_routing(routing, RefinerConfig(), MODEL).calibration == calibration()
    other = ModelIdentity(model_id="vit_b", weights_sha256="other", dtype="float32")
    with pytest.raises(ConfigError, match="calibrated for weights_sha256 abc, the run has other"):
        calibrated_routing(routing, RefinerConfig(), other)
    with pytest.raises(ConfigError, match="calibrated for jitter_count 8, the run has 2"):
        calibrated_routing(routing, RefinerConfig(jitter_count=2), MODEL)
    with pytest.raises(ConfigError, match="calibrated for second_pass_from 0.0, the run has None"):
        calibrated_routing(routing, RefinerConfig(second_pass="off"), MODEL)
    with pytest.raises(ConfigError, match="calibrated for stability_offset 1.0, the run has 2.0"):
        calibrated_routing(routing, RefinerConfig(stability_offset=2), MODEL)
    half = replace(MODEL, dtype="bfloat16")
    with pytest.raises(ConfigError, match="calibrated for dtype float32, the run has bfloat16"):
        calibrated_routing(routing, RefinerConfig(dtype="bfloat16"), half)
    file.write_text(calibration(tiles="below 9 cells, 9 times as wide").model_dump_json())
    with pytest.raises(ConfigError, match="calibrated for tiles below 9 cells, 9 times as wide, the run has"):
        calibrated_routing(routing, RefinerConfig(), MODEL)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="expected a calibration, got list"):
        calibrated_routing(routing, RefinerConfig(), MODEL)


def test_a_calibration_that_does_not_say_its_dtype_and_offset_is_of_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(calibration().model_dump(mode="json", exclude={"dtype", "stability_offset"})))
    found = calibrated_routing(RoutingConfig(calibration_uri=str(file)), RefinerConfig(), MODEL)
    assert found.calibration == calibration()
    with pytest.raises(ConfigError, match="calibrated for stability_offset 1.0, the run has 0.5"):
        calibrated_routing(RoutingConfig(calibration_uri=str(file)), RefinerConfig(stability_offset=0.5), MODEL)


def test_a_source_of_scores_is_another_in_each_thing_that_changes_a_score() -> None:
    config = RefinerConfig()
    source = MODEL.score_source(config)
    assert source.differs(MODEL.score_source(config.model_copy(update={"prompt_chunk_size": 3}))) is None
    changes = {
        "jitter_count": 2, "jitter_scale": 0.3, "stability_offset": 2.0, "second_pass": "off", "tiles": "off",
    }  # fmt: skip
    for name, value in changes.items():
        other = source.differs(MODEL.score_source(config.model_copy(update={name: value})))
        assert other is not None
        assert other[0].startswith(name)
    assert source.differs(replace(MODEL, dtype="bfloat16").score_source(config)) == ("dtype", "float32", "bfloat16")


def test_what_a_calibration_says_counts_and_not_where_it_lies() -> None:
    plain = RunConfig()
    elsewhere = RunConfig(routing=RoutingConfig(calibration_uri="s3://b/c.json", calibration=calibration()))
    here = RunConfig(routing=RoutingConfig(calibration=calibration()))
    other = RunConfig(routing=RoutingConfig(calibration=calibration(intercept=1.0)))
    assert elsewhere.content_hash() == here.content_hash()
    assert len({plain.content_hash(), here.content_hash(), other.content_hash()}) == 3


def test_a_promise_is_never_checked_on_masks_that_people_chose() -> None:
    drawn, _ = made_up(3000)
    chosen = replace(made_up(3000, 1)[0], iou=np.zeros(3000), kinds=np.full(3000, REVIEWED))
    chosen = replace(chosen, images=np.char.add("t/", chosen.images))
    fitted, checked = divide(joined(drawn, chosen), 0)
    assert set(checked.kinds) == {"noisy-box"}
    assert len(checked) == len(divide(drawn, 0)[1])
    assert len(fitted) + len(checked) == 6000
    with pytest.raises(InputError, match="got 3,000 masks that people chose to review; add --records or --data"):
        divide(chosen, 0)


def test_the_promise_is_of_the_table_when_a_sample_of_it_was_reviewed() -> None:
    """The bundled masks are better than those of the table, and people reviewed its worst masks first."""
    bundled, _ = made_up(1500)
    kept = []
    for seed in range(3):
        table, probability = made_up(20_000, seed + 10)
        worse = np.where(np.random.default_rng(seed).random(20_000) < 0.15, 0.2, table.iou)
        table = replace(table, iou=worse, images=np.char.add("t/", table.images))
        sample = np.zeros(20_000, bool)
        sample[np.random.default_rng(seed).permutation(20_000)[:1500]] = True
        worst = np.zeros(20_000, bool)
        worst[np.argsort(probability)[:1000]] = True
        kinds = np.where(sample, SAMPLE, REVIEWED)
        known = replace(table, kinds=kinds).take(sample | worst)
        fitted, checked = divide(joined(bundled, known), 0)
        assert len(checked) == 1500
        assert not set(fitted.images) & set(checked.images)
        calibration, apart = calibrate(joined(bundled, known), RefinerConfig(), MODEL, CalibrationConfig(precision=0.7))
        assert apart.name == "random sample"
        accept = next(count for count in held("t", calibration, table).routes if count.route == "accept")
        assert accept.masks > 2000
        kept.append(accept.good / accept.masks >= 0.7)
    assert all(kept)


def test_what_could_be_promised_is_told() -> None:
    good = np.arange(1000) % 10 > 0
    promise = promised("accept", np.ones(1000), good, 0.95, 0.95)
    assert promise.threshold is None
    assert promise.possible is not None
    assert promise.possible == pytest.approx(0.87, abs=0.02)
    assert promised("accept", np.ones(1000), good, promise.possible, 0.95).threshold == 1
    assert promised("accept", np.ones(3), np.zeros(3, bool), 0.95, 0.95).possible == 0


def test_masks_that_are_all_right_can_be_judged() -> None:
    found = judge("x", np.array([0.2, 0.5]), np.ones(2), 0.75)
    assert (found.spearman, found.aurc) == (0, 0)


def joined(*parts: LabelledMasks) -> LabelledMasks:
    return LabelledMasks(
        scores={name: np.concatenate([part.scores[name] for part in parts]) for name in (*INPUTS, *BOX_INPUTS)},
        iou=np.concatenate([part.iou for part in parts]),
        box_iou=np.concatenate([part.box_iou for part in parts]),
        object_share=np.concatenate([part.object_share for part in parts]),
        images=np.concatenate([part.images for part in parts]),
        sets=np.concatenate([part.sets for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
    )


HALF = np.arange(40 * 60).reshape(40, 60) % 60 < 30


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


def review(table: str, verdicts: Mapping[str, Verdict]) -> None:
    masks = {"confirmed": encode_mask(HALF), "corrected": encode_mask(HALF[:, ::-1] | HALF), "rejected": None}
    import_answers(
        table,
        [
            Answer(prompt_id=name, mask=masks[verdict], revision=None, checked=True, where="by hand")
            for name, verdict in verdicts.items()
        ],
        max_rejected_fraction=1,
    )


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
