"""Make a calibration from labelled masks, and the figures that say how good it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from stable_sam.calibration.features import LabelledMasks, curves_at
from stable_sam.calibration.fit import SAMPLE, divide, fit_curves, promised
from stable_sam.calibration.gain import THRESHOLDS, expected_gain, fit_gain, sizes_of, some_worse
from stable_sam.calibration.judge import Judgement, judge
from stable_sam.config import RefinerConfig
from stable_sam.config.calibration import Calibration, Curve, Promise, SizeSlice
from stable_sam.config.section import Section
from stable_sam.identity import ModelIdentity
from stable_sam.scores import GOOD_IOU, SCORES

COMPARED_WITH = "predicted_iou"
"""The score that a calibration is compared with."""


class CalibrationConfig(Section):
    """What a calibration promises, and how its masks are split."""

    target_iou: float = GOOD_IOU
    """Smallest IoU with the true mask of a good mask; all others are bad."""
    precision: float = 0.95
    """Promised share of good masks among the accepted masks."""
    reject_precision: float = 0.95
    """Promised share of bad masks among the rejected masks."""
    confidence: float = 0.95
    """Confidence of each of the two promises."""
    seed: int = 0
    """Seed of the split and of the folds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCount:
    """Number of masks that the thresholds give one route, and how many of these are good."""

    route: str
    masks: int
    good: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The figures of one set of masks that the curves were not fitted to."""

    name: str
    judgements: tuple[Judgement, ...]
    """How well the probability tells good masks from bad ones, followed by each score alone."""
    routes: tuple[RouteCount, ...]
    sizes: tuple[SizeSlice, ...]
    """IoU of the accepted masks and of their filled boxes, by size of the object."""
    quality: NDArray[np.float64]
    """(N,), the calibrated probability of each mask."""
    masks: LabelledMasks


def calibrate(
    masks: LabelledMasks, refiner: RefinerConfig, model: ModelIdentity, settings: CalibrationConfig
) -> tuple[Calibration, Held]:
    """Fit the curves to a part of the masks, and choose the thresholds on the others: see `divide`.

    Returns the calibration and the figures of the masks that the thresholds were chosen on. Raises `InputError` for too
    few masks to fit to, and when there are none to choose the thresholds on.
    """
    fitted, checked = divide(masks, settings.seed)
    intercept, curves = fit_curves(fitted, settings.target_iou, settings.seed)
    quality = _quality(intercept, curves, checked)
    good = checked.iou >= settings.target_iou
    reject = promised("reject", quality, good, settings.reject_precision, settings.confidence)
    learnt = fit_gain(fitted, settings.seed)
    if learnt is None:
        accept, gain = promised("accept", quality, good, settings.precision, settings.confidence), None
    else:
        unseen = _Judged(checked, quality, expected_gain(learnt.gain, checked))
        others = _Judged(fitted, _quality(intercept, curves, fitted), learnt.expected)
        accept, threshold = _accept(unseen, others, settings)
        gain = learnt.gain.model_copy(
            update={"threshold": threshold, "sizes": sizes_of(checked, unseen.accepted(accept.threshold, threshold))}
        )
    calibration = Calibration(
        target_iou=settings.target_iou,
        intercept=intercept,
        curves=curves,
        accept=accept,
        reject=_apart(accept, reject),
        gain_over_box=gain,
        **asdict(model.score_source(refiner)),
        fitted_on=dict(sorted(Counter(map(str, fitted.sets)).items())),
    )
    name = "random sample" if (checked.kinds == SAMPLE).all() else "kept apart"
    return calibration, held(name, calibration, checked)


def held(name: str, calibration: Calibration, masks: LabelledMasks) -> Held:
    """Judge a calibration, and each score alone, on masks that it was not fitted to.

    name: what the figures are called in tables and charts.
    """
    quality = _quality(calibration.intercept, calibration.curves, masks)
    gain = calibration.gain_over_box
    judged = _Judged(masks, quality, expected_gain(gain, masks))
    accepted = judged.accepted(calibration.accept.threshold, 0.0 if gain is None else gain.threshold)
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
        routes=tuple(_routes(calibration.reject, judged, accepted, target)),
        sizes=sizes_of(masks, accepted),
        quality=quality,
        masks=masks,
    )


def held_by_set(calibration: Calibration, masks: LabelledMasks) -> list[Held]:
    """Judge a calibration on each set of masks that it was not fitted on, in the order of their names."""
    return [held(name, calibration, masks.take(masks.sets == name)) for name in sorted(set(masks.sets))]


@dataclass(frozen=True, slots=True)
class _Judged:
    """N masks with their quality (N,) and their expected gain (N,), NaN where it is not known."""

    masks: LabelledMasks
    quality: NDArray[np.float64]
    gain: NDArray[np.float64]

    def accepted(self, from_quality: float | None, above_gain: float) -> NDArray[np.bool_]:
        """(N,) bool: which masks are accepted."""
        if from_quality is None:
            return np.zeros(len(self.masks), bool)
        return (self.quality >= from_quality) & ~(self.gain <= above_gain)


def _accept(checked: _Judged, others: _Judged, settings: CalibrationConfig) -> tuple[Promise, float]:
    """Return the promise about accepted masks and the threshold of the gain.

    The threshold is the lowest one at which the accepted masks of no object size are worse than their filled boxes,
    neither in `checked` nor in `others`, whose gains are cross-validated.
    """
    good = checked.masks.iou >= settings.target_iou
    for threshold in THRESHOLDS:
        worth = ~(checked.gain <= threshold)
        # Masks that are never accepted count as bad ones of no quality, so that they cannot loosen the promise.
        accept = promised("accept", checked.quality * worth, good & worth, settings.precision, settings.confidence)
        accepted = [(part.masks, part.accepted(accept.threshold, threshold)) for part in (checked, others)]
        if not any(some_worse(sizes_of(masks, which)) for masks, which in accepted):
            break
    return accept, float(threshold)


def _quality(intercept: float, curves: dict[str, Curve], masks: LabelledMasks) -> NDArray[np.float64]:
    quality: NDArray[np.float64] = 1 / (1 + np.exp(-curves_at(intercept, curves, masks)))
    return quality


def _apart(accept: Promise, reject: Promise) -> Promise:
    """`reject`, or a promise without a threshold where a mask could be both accepted and rejected."""
    meets = accept.threshold is not None and reject.threshold is not None and reject.threshold >= accept.threshold
    return reject.model_copy(update={"threshold": None, "masks": 0, "kept": 0, "possible": None}) if meets else reject


def _routes(reject: Promise, judged: _Judged, accepted: NDArray[np.bool_], target_iou: float) -> list[RouteCount]:
    good = judged.masks.iou >= target_iou
    rejected = np.zeros(len(good), bool) if reject.threshold is None else judged.quality <= reject.threshold
    chosen = {"accept": accepted, "review": ~accepted & ~rejected, "reject": rejected}
    return [
        RouteCount(route=route, masks=int(which.sum()), good=int(good[which].sum())) for route, which in chosen.items()
    ]
