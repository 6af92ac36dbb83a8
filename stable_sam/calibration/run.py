"""From labelled masks to a calibration and to the figures that say what it is worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.calibration.features import LabelledMasks, curves_at
from stable_sam.calibration.fit import SAMPLE, divide, fit_curves, promised
from stable_sam.calibration.judge import Judgement, judge
from stable_sam.calibration.model import Calibration, Curve, Promise
from stable_sam.config import RefinerConfig
from stable_sam.config_section import Section
from stable_sam.identity import ModelIdentity

SINGLE_SCORES = ("prompt_stability", "predicted_iou", "stability_score", "dsp_weight", "box_agreement")
"""Scores that are judged alone beside the probability; all but `dsp_weight` are higher for better masks."""
BASELINE = "predicted_iou"


class CalibrationSettings(Section):
    """What is promised."""

    target_iou: float = 0.75
    precision: float = 0.95
    """Promised share of good masks among the accepted."""
    reject_precision: float = 0.95
    """Promised share of bad masks among the rejected."""
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCount:
    """What the thresholds make of N masks."""

    route: str
    masks: int
    good: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The figures of one set of masks that the fit did not see."""

    name: str
    judgements: tuple[Judgement, ...]
    """The probability first, then each score alone."""
    routes: tuple[RouteCount, ...]
    quality: NDArray[np.float64]
    masks: LabelledMasks


def calibrate(
    masks: LabelledMasks, refiner: RefinerConfig, model: ModelIdentity, settings: CalibrationSettings
) -> tuple[Calibration, Held]:
    """Fit on a part of the masks, choose the thresholds on others (see `divide`); returns the figures of these too.

    Raises `InputError` when there are too few masks, or none to check on.
    """
    fitted, checked = divide(masks, settings.seed)
    intercept, curves = fit_curves(fitted, settings.target_iou, settings.seed)
    quality = _quality(intercept, curves, checked)
    good = checked.iou >= settings.target_iou
    accept, reject = (
        promised(route, quality, good, precision, settings.confidence)
        for route, precision in (("accept", settings.precision), ("reject", settings.reject_precision))
    )
    calibration = Calibration(
        target_iou=settings.target_iou,
        intercept=intercept,
        curves=curves,
        accept=accept,
        reject=_apart(accept, reject),
        weights_sha256=model.weights_sha256,
        jitter_count=refiner.jitter_count,
        jitter_scale=refiner.jitter_scale,
        second_pass_from=model.second_pass_from(refiner),
        tiles=refiner.tile_rule,
        fitted_on=dict(sorted(Counter(map(str, fitted.sets)).items())),
    )
    name = "random sample" if (checked.kinds == SAMPLE).all() else "kept apart"
    return calibration, held(name, calibration, checked)


def held(name: str, calibration: Calibration, masks: LabelledMasks) -> Held:
    """Judge a calibration, and each score alone, on masks that it was not fitted on."""
    quality = _quality(calibration.intercept, calibration.curves, masks)
    target = calibration.target_iou
    singles = [
        (score, masks.scores[score] * (-1 if score == "dsp_weight" else 1))
        for score in SINGLE_SCORES
        if np.isfinite(masks.scores[score]).any()
    ]
    return Held(
        name=name,
        judgements=(
            judge("quality", quality, masks.iou, target, probability=True),
            *(judge(score, values, masks.iou, target) for score, values in singles),
        ),
        routes=tuple(_routes(calibration, quality, masks.iou >= target)),
        quality=quality,
        masks=masks,
    )


def to_json(one: Held) -> dict[str, Any]:
    """Plain values for json.dump, without the masks."""
    return {
        "name": one.name,
        "judgements": [asdict(judgement) for judgement in one.judgements],
        "routes": [asdict(count) for count in one.routes],
    }


def _quality(intercept: float, curves: dict[str, Curve], masks: LabelledMasks) -> NDArray[np.float64]:
    quality: NDArray[np.float64] = 1 / (1 + np.exp(-curves_at(intercept, curves, masks)))
    return quality


def _apart(accept: Promise, reject: Promise) -> Promise:
    """A mask is never both: where the thresholds meet, nothing is rejected."""
    meets = accept.threshold is not None and reject.threshold is not None and reject.threshold >= accept.threshold
    return reject.model_copy(update={"threshold": None, "masks": 0, "kept": 0, "possible": None}) if meets else reject


def _routes(calibration: Calibration, quality: NDArray[np.float64], good: NDArray[np.bool_]) -> list[RouteCount]:
    nothing = np.zeros(len(quality), bool)
    accept, reject = calibration.accept.threshold, calibration.reject.threshold
    accepted = nothing if accept is None else quality >= accept
    rejected = nothing if reject is None else quality <= reject
    chosen = {"accept": accepted, "review": ~accepted & ~rejected, "reject": rejected}
    return [
        RouteCount(route=route, masks=int(which.sum()), good=int(good[which].sum())) for route, which in chosen.items()
    ]
