"""What a mask is expected to gain over its weak box, filled: learnt, kept in the file and in the row, and routed by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stable_sam.calibration.calibrate import CalibrationConfig, calibrate, held
from stable_sam.calibration.features import LabelledMasks
from stable_sam.calibration.gain import expected_gain, fit_gain, some_worse
from stable_sam.calibration.labels import RECORDS_SCHEMA, box_labels, labelled, read_records
from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.config.calibration import BOX_INPUTS, INPUTS, Calibration, Curve, GainOverBox, scores_of
from stable_sam.errors import ConfigError
from stable_sam.identity import ModelIdentity, bundled_path, model_identity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.routing import route, routed
from stable_sam.rle import encode_mask
from tests.unit.calibration.made_up import calibration as without_gain

MODEL = ModelIdentity(model_id="nano+plugin", weights_sha256="abc", dtype="float32")
BOX = Prompt(prompt_id="p", image_id="i", image_uri="i.jpg", box_xyxy=(0, 0, 5, 5))
AS_GOOD = "the filled box is expected to be as good"
MASK = RefinedMask(prompt_id="p", status="ok", mask_size=(10, 10), area=20, predicted_iou=0.9)


def gain_of(masks: LabelledMasks) -> NDArray[np.float64]:
    return 0.3 * masks.scores["predicted_iou"] - 0.4 * masks.scores["mask_to_box_area"] + 0.1


def made_up(count: int, *, small_lose: float = 0.0, seed: int = 0) -> LabelledMasks:
    """Masks whose gain depends on two scores and some luck; those of small objects, which no score tells, gain less."""
    rng = np.random.default_rng(seed)
    scores = {name: np.full(count, np.nan) for name in (*INPUTS, *BOX_INPUTS)}
    scores["predicted_iou"], scores["mask_to_box_area"], scores["log_box_area"] = rng.random((3, count))
    is_small = rng.random(count) < 0.3
    iou = np.where(rng.random(count) < scores["predicted_iou"], 0.8, 0.5)
    masks = LabelledMasks(
        scores=scores,
        iou=iou,
        box_iou=iou + rng.normal(0, 0.05, count),
        object_share=np.where(is_small, 0.003, 0.2),
        images=np.array([f"s/{number // 4}" for number in range(count)]),
        sets=np.full(count, "s"),
        kinds=np.full(count, "noisy-box"),
    )
    return replace(masks, box_iou=masks.box_iou - gain_of(masks) + small_lose * is_small)


def test_the_gain_is_learnt_and_one_row_has_the_same_as_many() -> None:
    others = made_up(300, seed=1)
    calibration, _ = calibrate(made_up(3000), RefinerConfig(), MODEL, CalibrationConfig(precision=0.6))
    gain = calibration.gain_over_box
    assert gain is not None
    expected = expected_gain(gain, others)
    assert np.abs(expected - gain_of(others)).mean() < 0.01
    assert gain.spearman > 0.9
    assert gain.error == pytest.approx(0.04, abs=0.005), "luck alone"
    assert gain.threshold == 0
    for row in range(20):
        scores = {name: float(values[row]) for name, values in others.scores.items() if np.isfinite(values[row])}
        assert calibration.expected_gain(scores) == pytest.approx(expected[row])


def test_points_have_no_gain_and_too_few_boxes_teach_none() -> None:
    masks = made_up(600)
    points = np.arange(600) % 2 > 0
    scores = masks.scores | {name: np.where(points, np.nan, masks.scores[name]) for name in BOX_INPUTS}
    mixed = replace(masks, scores=scores, box_iou=np.where(points, np.nan, masks.box_iou))
    learnt = fit_gain(mixed, 0)
    assert learnt is not None
    assert learnt.gain.masks == 300
    assert np.isnan(learnt.expected[points]).all()
    assert np.isnan(expected_gain(learnt.gain, mixed)[points]).all()
    assert fit_gain(mixed.take(np.arange(390)), 0) is None
    calibration, apart = calibrate(
        replace(mixed, box_iou=np.full(600, np.nan)), RefinerConfig(), MODEL, CalibrationConfig(precision=0.6)
    )
    assert (calibration.gain_over_box, apart.sizes) == (None, ())


def test_accepted_masks_of_no_size_are_worse_than_their_boxes() -> None:
    settings = CalibrationConfig(precision=0.6)
    calibration, apart = calibrate(made_up(6000, small_lose=0.2), RefinerConfig(), MODEL, settings)
    gain = calibration.gain_over_box
    assert gain is not None
    assert gain.threshold > 0
    assert (gain.sizes, [one.size for one in gain.sizes]) == (apart.sizes, ["0.1-0.5 %", ">10 %"])
    assert not some_worse(gain.sizes)
    without = calibration.model_copy(update={"gain_over_box": gain.model_copy(update={"threshold": 0.0})})
    assert some_worse(held("as from 0 on", without, apart.masks).sizes)
    accept = next(one for one in held("o", calibration, made_up(6000, seed=1)).routes if one.route == "accept")
    assert accept.good >= 0.6 * accept.masks > 300


def calibration(**changes: object) -> Calibration:
    gain = {"intercept": 0.5, "curves": {"mask_to_box_area": Curve(x=(0.0, 1.0), y=(0.0, -1.0))}, "threshold": 0.1}
    known = GainOverBox.model_validate({**gain, "masks": 300, "error": 0.1, "spearman": 0.5})
    return without_gain(**{"gain_over_box": known, **changes})


@pytest.mark.parametrize(
    ("area", "predicted_iou", "where", "why"),
    [
        (20, 0.9, "review", f"quality 0.961 >= 0.900; {AS_GOOD} (gain -0.300 <= 0.100)"),
        (10, 0.9, "review", f"quality 0.961 >= 0.900; {AS_GOOD} (gain 0.100 <= 0.100)"),
        (5, 0.9, "accept", "quality 0.961 >= 0.900"),
        (20, 0.5, "review", f"quality 0.500 < 0.900; {AS_GOOD} (gain -0.300 <= 0.100)"),
        (5, 0.5, "review", "quality 0.500 < 0.900"),
        (20, 0.1, "reject", "quality 0.039 <= 0.100"),
    ],
)
def test_a_mask_that_is_expected_to_gain_nothing_is_for_review(
    area: int, predicted_iou: float, where: str, why: str
) -> None:
    mask = replace(MASK, area=area, predicted_iou=predicted_iou)
    answer = routed(BOX, mask, RoutingConfig(calibration=calibration()))
    assert (answer.route, answer.route_reason) == (where, why)
    assert answer.gain_over_box == pytest.approx(0.5 - area / 25)


def test_without_a_box_or_a_learnt_gain_quality_alone_routes() -> None:
    points = replace(BOX, box_xyxy=None, points_xy=((2.0, 2.0),), point_labels=(1,))
    for prompt, known in ((points, calibration()), (BOX, calibration(gain_over_box=None))):
        answer = routed(prompt, MASK, RoutingConfig(calibration=known))
        assert (answer.gain_over_box, answer.route) == (None, "accept")


@given(st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_a_higher_gain_never_sends_an_accepted_mask_to_review(quality: float, one: float, other: float) -> None:
    config = RoutingConfig(calibration=calibration())
    low, high = (route(replace(MASK, quality=quality, gain_over_box=gain), config)[0] for gain in sorted((one, other)))
    assert (low, high) in {(same, same) for same in ("accept", "review", "reject")} | {("review", "accept")}


def test_a_file_of_an_older_version_has_no_gain() -> None:
    old = json.loads(calibration().model_dump_json())
    del old["gain_over_box"]
    assert Calibration.from_json(json.dumps(old).encode(), "old.json") == calibration(gain_over_box=None)
    wrong = old | {"gain_over_box": {"intercept": 0, "curves": {"size": {"x": [0, 1], "y": [0, 1]}}}}
    with pytest.raises(ConfigError, match=r"wrong.json: gain_over_box"):
        Calibration.from_json(json.dumps(wrong).encode(), "wrong.json")


def test_labelled_masks_of_an_older_version_can_be_read_and_teach_no_gain(tmp_path: Path) -> None:
    file = str(tmp_path / "old.parquet")
    table = pq.read_table(bundled_path("nano_calibration_masks.parquet"))
    pq.write_table(table.drop_columns(["object_share", "box_iou", *BOX_INPUTS]), file)
    config = RefinerConfig()
    records = read_records(file, config, model_identity(config))
    assert records.schema == RECORDS_SCHEMA
    assert fit_gain(labelled(records), 0) is None


def test_the_box_is_compared_with_the_true_mask() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 10:30] = True
    encoded = encode_mask(mask)
    truth = {"size": list(encoded.size_hw), "counts": encoded.counts.encode()}
    assert box_labels((10, 10, 30, 30), truth) == {"object_share": 200 / 2400, "box_iou": 0.5}
    assert box_labels((0.6, 0, 0.7, 40), truth)["box_iou"] == 0, "no pixel's centre lies in it"
    assert box_labels(None, truth) == {"object_share": 200 / 2400, "box_iou": None}
    assert scores_of(BOX, MASK)["mask_to_box_area"] == 20 / 25
    assert scores_of(BOX, MASK)["log_box_area"] == pytest.approx(np.log10(0.25))


def test_the_bundled_calibration_accepts_no_size_of_masks_that_are_worse_than_their_boxes() -> None:
    file = Path(bundled_path("nano_calibration.json"))
    bundled = Calibration.from_json(file.read_bytes(), str(file)).gain_over_box
    assert bundled is not None
    assert sum(one.masks for one in bundled.sizes) >= 100
    assert all(one.mask_iou > one.box_iou for one in bundled.sizes)
