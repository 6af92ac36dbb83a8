"""Compute the lines of the tables: means over objects with intervals, by set, by size, and for parts of objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stable_sam.evaluation.bootstrap import Estimate, bootstrap_means, estimate
from stable_sam.evaluation.by_object import ALL_SETS, ObjectMeans, set_names
from stable_sam.evaluation.evaluation_config import BASELINE, EvaluationConfig

WHOLE_SLICE = "all"
SHARES = {
    "under 0.1 % of the picture": (0.0, 0.001),
    "0.1-0.5 % of the picture": (0.001, 0.005),
    "0.5-2 % of the picture": (0.005, 0.02),
    "2-10 % of the picture": (0.02, 0.1),
    "over 10 % of the picture": (0.1, np.inf),
}
"""Slices by the object's fraction of its image; the upper border is excluded. Results files name them so."""
CELLS = {
    "under 1 cell": (0.0, 1.0),
    "1-2 cells": (1.0, 2.0),
    "2-4 cells": (2.0, 4.0),
    "4-8 cells": (4.0, 8.0),
    "over 8 cells": (8.0, np.inf),
}
"""Slices by the longer side of the object's box in cells of the image embedding; the upper border is excluded."""
PARTS = "parts"
"""Slice of the objects that are parts of another object of their image."""
_METRICS = {"miou": "iou", "mbiou": "boundary_iou", "msf": "union_iou", "drift": "drift"}
"""Each figure that has an interval, and the column whose mean it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLine:
    """One line of a table: means over the objects of a set and slice, each object being the mean over its prompts."""

    set: str
    slice: str
    """`all`, a size (a key of `SHARES` or `CELLS`), or `parts`."""
    method: str
    prompts: str
    objects: int
    masks: int
    miou: Estimate
    mbiou: Estimate
    msf: Estimate | None
    """None where each object has one prompt, because mSF compares the masks of several. For `worst-box` it compares the
    masks of the boxes that the search starts from."""
    drift: Estimate | None
    """Share of the masks that are nearer (by IoU) to the whole than to the part; None except for the slice of parts."""
    predicted_iou: float | None
    """Mean IoU that the model's IoU head estimates, for comparison with miou. None for the method box."""
    dsp_weight: float
    """Mean alpha_1; it is 0 for methods without the plugin."""
    to_sam: dict[str, Estimate]
    """Paired differences to SAM of miou, mbiou, msf and drift; empty for SAM, and where SAM was not measured."""


def summarise(by_kind: Sequence[ObjectMeans], settings: EvaluationConfig) -> list[TableLine]:
    """Compute the lines for each set, for all sets, for each size over all sets, and for the parts in each set."""
    names = set_names(by_kind)
    wanted = [(name, WHOLE_SLICE) for name in names]
    wanted += [(names[-1], size) for size in (*SHARES, *CELLS)] + [(name, PARTS) for name in names if name != ALL_SETS]
    return [score for name, part in wanted for objects in by_kind for score in _lines(objects, name, part, settings)]


def _chosen(objects: ObjectMeans, name: str, part: str) -> NDArray[np.bool_]:
    """(N,) bool: which objects are of the set `name`, or of any set for ALL_SETS, and of the slice `part`."""
    of_set = objects.of_set(name)
    if part == PARTS:
        return of_set & objects.is_part
    for values, ranges in ((objects.area_fraction, SHARES), (objects.box_cells, CELLS)):
        if part in ranges:
            low, high = ranges[part]
            return of_set & (values >= low) & (values < high)
    return of_set


def _lines(objects: ObjectMeans, name: str, part: str, settings: EvaluationConfig) -> Iterator[TableLine]:
    chosen = _chosen(objects, name, part)
    if not chosen.any():
        return
    measured = {metric: objects.means[column][:, chosen] for metric, column in _METRICS.items()}
    if part != PARTS:
        del measured["drift"]
    measured = {metric: values for metric, values in measured.items() if not np.isnan(values).any()}
    drawn = bootstrap_means(np.concatenate(list(measured.values())), settings.resamples, settings.seed)
    drawn_of = dict(zip(measured, np.split(drawn, len(measured), axis=1), strict=True))  # each (resamples, M)
    value_of = {metric: values.mean(axis=1) for metric, values in measured.items()}
    base = objects.methods.index(BASELINE) if BASELINE in objects.methods else None
    for index, method in enumerate(objects.methods):
        own = {metric: estimate(float(value_of[metric][index]), drawn_of[metric][:, index]) for metric in measured}
        to_sam = {}
        if base is not None and index != base:
            to_sam = {
                metric: estimate(
                    float(value_of[metric][index] - value_of[metric][base]),
                    drawn_of[metric][:, index] - drawn_of[metric][:, base],
                )
                for metric in measured
            }
        predicted_iou = float(objects.means["predicted_iou"][index, chosen].mean())
        yield TableLine(
            set=name,
            slice=part,
            method=method,
            prompts=objects.prompts,
            objects=int(chosen.sum()),
            masks=int(objects.masks[chosen].sum()),
            miou=own["miou"],
            mbiou=own["mbiou"],
            msf=own.get("msf"),
            drift=own.get("drift"),
            predicted_iou=None if np.isnan(predicted_iou) else predicted_iou,
            dsp_weight=float(objects.means["dsp_weight"][index, chosen].mean()),
            to_sam=to_sam,
        )
