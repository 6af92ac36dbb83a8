"""From labelled masks to a calibration and to the figures that say what it is worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from stable_sam.calibration.fit import SAMPLE, LabelledMasks, divide, fit_curves, promised
from stable_sam.calibration.judge import Judgement, judge
from stable_sam.calibration.model import Calibration, Curve, Promise
from stable_sam.config import RefinerConfig
from stable_sam.config_section import Section
from stable_sam.identity import ModelIdentity
from stable_sam.scores import SCORES

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
        **asdict(model.score_source(refiner)),
        fitted_on=dict(sorted(Counter(map(str, fitted.sets)).items())),
    )
    name = "random sample" if (checked.kinds == SAMPLE).all() else "kept apart"
    return calibration, held(name, calibration, checked)


def held(name: str, calibration: Calibration, masks: LabelledMasks) -> Held:
    """Judge a calibration, and each score alone, on masks that it was not fitted on."""
    quality = _quality(calibration.intercept, calibration.curves, masks)
    target = calibration.target_iou
    singles = [
        (score.column, masks.scores[score.column] * (1 if score.higher_is_better else -1))
        for score in SCORES
        if score.kind == "measured" and np.isfinite(masks.scores[score.column]).any()
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


def _quality(intercept: float, curves: dict[str, Curve], masks: LabelledMasks) -> NDArray[np.float64]:
    odds = np.full(len(masks), intercept)
    for name, curve in curves.items():
        values = masks.scores[name]
        there = np.isfinite(values)
        odds += np.where(there, np.interp(np.where(there, values, 0), curve.x, curve.y), curve.missing)
    quality: NDArray[np.float64] = 1 / (1 + np.exp(-odds))
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
