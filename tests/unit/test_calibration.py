"""Calibration on masks whose true probability is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from stable_sam.calibration.fit import LabelledMasks, fit_curves, promised
from stable_sam.calibration.judge import aurc, judge, risk_coverage
from stable_sam.calibration.load import calibrated_routing
from stable_sam.calibration.model import SCORES, Calibration, Curve, Promise
from stable_sam.calibration.run import CalibrationSettings, calibrate, held
from stable_sam.config import RefinerConfig, RoutingConfig, RunConfig
from stable_sam.errors import ConfigError, InputError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.routing import route, routed

MODEL = ModelIdentity(model_id="nano+plugin", weights_sha256="abc", dtype="float32")


def made_up(count: int, seed: int = 0) -> tuple[LabelledMasks, NDArray[np.float64]]:
    """Masks that are good with a probability that depends on two scores, and that probability."""
    rng = np.random.default_rng(seed)
    scores = {name: np.full(count, np.nan) for name in SCORES}
    scores["prompt_stability"], scores["predicted_iou"] = rng.random((2, count))
    scores["box_agreement"] = np.where(rng.random(count) < 0.3, np.nan, rng.random(count))
    probability = 1 / (1 + np.exp(-(8 * scores["prompt_stability"] + 2 * scores["predicted_iou"] - 5)))
    good = rng.random(count) < probability
    return (
        LabelledMasks(
            scores=scores,
            iou=np.where(good, 0.9, 0.3) + rng.random(count) / 20,
            pictures=np.array([f"s/{number // 4}" for number in range(count)]),
            sets=np.full(count, "s"),
        ),
        probability,
    )


def test_the_probability_is_learnt() -> None:
    masks, probability = made_up(4000)
    calibration, apart = calibrate(masks, RefinerConfig(), MODEL, CalibrationSettings())
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
    calibration, _ = calibrate(masks, RefinerConfig(), MODEL, CalibrationSettings())
    many = held("again", calibration, masks).quality
    one = [
        calibration.quality({name: float(values[row]) for name, values in masks.scores.items()}) for row in range(50)
    ]
    assert many[:50] == pytest.approx(one)


def test_the_promise_is_kept_on_other_masks() -> None:
    kept = []
    for seed in range(8):
        masks, _ = made_up(6000, seed)
        calibration, _ = calibrate(masks, RefinerConfig(), MODEL, CalibrationSettings(precision=0.9))
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
    file.write_text("[]")
    with pytest.raises(ConfigError, match="expected a calibration, got list"):
        calibrated_routing(routing, RefinerConfig(), MODEL)


def test_what_a_calibration_says_counts_and_not_where_it_lies() -> None:
    plain = RunConfig()
    elsewhere = RunConfig(routing=RoutingConfig(calibration_uri="s3://b/c.json", calibration=calibration()))
    here = RunConfig(routing=RoutingConfig(calibration=calibration()))
    other = RunConfig(routing=RoutingConfig(calibration=calibration(intercept=1.0)))
    assert elsewhere.content_hash() == here.content_hash()
    assert len({plain.content_hash(), here.content_hash(), other.content_hash()}) == 3
