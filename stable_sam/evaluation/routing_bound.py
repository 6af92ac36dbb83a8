"""Measure what choosing between the masks of SAM and another method could reach, a bound for every rule of choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_sam.evaluation.bootstrap import Estimate, bootstrap_means, estimate
from stable_sam.evaluation.by_object import ObjectMeans, set_names
from stable_sam.evaluation.evaluation_config import BASELINE, EvaluationConfig
from stable_sam.evaluation.prompts import GT_BOX


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingBound:
    """One method compared with SAM on the same prompts of a set: means over objects of means over their prompts.

    The fields `best_miou` to `share_of_bound` are None for `worst-box`, where each method has a box of its own and
    there are no two masks of one prompt to choose from.
    """

    set: str
    prompts: str
    method: str
    objects: int
    sam_miou: Estimate
    method_miou: Estimate
    best_miou: Estimate | None
    """mIoU when the better of the two masks is taken for each prompt, chosen with the true mask."""
    best_gain: Estimate | None
    """Paired difference of best_miou and sam_miou, which is the most that choosing could gain."""
    helps: Estimate | None
    """Share of the prompts for which the method's IoU is more than 0.02 above SAM's."""
    hurts: Estimate | None
    """Share of the prompts for which the method's IoU is more than 0.02 below SAM's."""
    share_of_bound: Estimate | None
    """(method_miou - sam_miou) / best_gain: the gain of the method alone as a part of the gain of the best choice;
    below 0 where the method loses. None where choosing gains nothing."""
    gap_closed: Estimate | None
    """(method_miou - sam_miou) / (SAM's mIoU with the true boxes of these objects - sam_miou): the gain of the method
    as a part of what SAM loses by weak prompts. None for `gt-box`, where `gt-box` was not evaluated, and where SAM does
    not clearly lose anything."""


def routing_bounds(by_kind: Sequence[ObjectMeans], settings: EvaluationConfig) -> list[RoutingBound]:
    """Compute a line for each set and all sets, each kind of prompt, and each method but SAM; none without SAM."""
    true_box = next((objects for objects in by_kind if objects.prompts == GT_BOX), None)
    return [
        bound
        for name in set_names(by_kind)
        for objects in by_kind
        if BASELINE in objects.methods
        for bound in _bounds(objects, true_box, name, settings)
    ]


def _bounds(
    objects: ObjectMeans, true_box: ObjectMeans | None, name: str, settings: EvaluationConfig
) -> Iterator[RoutingBound]:
    chosen = objects.of_set(name)
    if not chosen.any():
        return
    base = objects.methods.index(BASELINE)
    sam = objects.means["iou"][base, chosen]
    lost = None
    if true_box is not None and objects is not true_box:
        same = np.searchsorted(true_box.keys, objects.keys[chosen])
        lost = true_box.means["iou"][true_box.methods.index(BASELINE), same] - sam
    for index, method in enumerate(objects.methods):
        if index == base:
            continue
        means = {column: values[index, chosen] for column, values in objects.means.items()}
        measured = {"sam": sam, "method": means["iou"], "gained": means["iou"] - sam}
        if not np.isnan(means["best_iou"]).any():
            measured |= {column: means[column] for column in ("best_iou", "helps", "hurts")}
            measured["best_gain"] = means["best_iou"] - sam
        if lost is not None:
            measured["lost"] = lost
        drawn = bootstrap_means(np.stack(list(measured.values())), settings.resamples, settings.seed)
        drawn_of = dict(zip(measured, drawn.T, strict=True))
        own = {column: estimate(float(values.mean()), drawn_of[column]) for column, values in measured.items()}
        yield RoutingBound(
            set=name,
            prompts=objects.prompts,
            method=method,
            objects=int(chosen.sum()),
            sam_miou=own["sam"],
            method_miou=own["method"],
            best_miou=own.get("best_iou"),
            best_gain=own.get("best_gain"),
            helps=own.get("helps"),
            hurts=own.get("hurts"),
            share_of_bound=_share("gained", "best_gain", measured, drawn_of),
            gap_closed=_share("gained", "lost", measured, drawn_of),
        )


def _share(
    part: str, whole: str, measured: dict[str, NDArray[np.float64]], drawn_of: dict[str, NDArray[np.float64]]
) -> Estimate | None:
    """The mean of `part` divided by that of `whole`; None unless the mean of `whole` is positive in every sample."""
    if whole not in measured or drawn_of[whole].min() <= 0 or measured[whole].mean() <= 0:
        return None
    return estimate(float(measured[part].mean() / measured[whole].mean()), drawn_of[part] / drawn_of[whole])
