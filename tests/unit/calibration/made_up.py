"""Masks and models that are made up for tests of the calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stable_sam.calibration.features import LabelledMasks
from stable_sam.config import RefinerConfig
from stable_sam.config.calibration import BOX_INPUTS, INPUTS, Calibration, Curve, Promise
from stable_sam.formats.review_records import Answer
from stable_sam.identity import ModelIdentity
from stable_sam.records import Verdict
from stable_sam.review.answers import import_answers
from stable_sam.rle import encode_mask

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


HALF = np.arange(40 * 60).reshape(40, 60) % 60 < 30


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
