"""Calibration on masks whose true probability is known, and on reviewed masks of a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stable_sam.calibration.calibrate import CalibrationConfig, calibrate, held
from stable_sam.calibration.features import LabelledMasks
from stable_sam.calibration.fit import REVIEWED, SAMPLE, divide, fit_curves, promised
from stable_sam.calibration.judge import aurc, judge, risk_coverage
from stable_sam.config import RefinerConfig, RoutingConfig, RunConfig
from stable_sam.config.calibration import BOX_INPUTS, INPUTS, Curve
from stable_sam.errors import ConfigError, InputError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.routing import route, routed
from stable_sam.runs.calibrated import calibrated_routing
from tests.unit.calibration.made_up import MODEL, calibration, made_up


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
