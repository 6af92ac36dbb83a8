"""Records to the lines of the tables: means over objects with their intervals, by set, by size, for parts of wholes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stable_sam.evaluation.bootstrap import Estimate, bootstrap_means, estimate
from stable_sam.evaluation.records import codes, numbers
from stable_sam.evaluation.settings import BASELINE, EvaluationConfig

ALL_SETS = "all objects"
"""Name of the lines that average over the objects of all sets."""
WHOLE_SLICE = "all"
SIZES = {"small": (0.0, 0.02), "medium": (0.02, 0.1), "large": (0.1, 1.0)}
"""Slices by the object's part of its picture, the upper border excluded (but 1)."""
PARTS = "parts"
"""Slice of the objects that are parts of another one of their picture."""
_METRICS = {"miou": "iou", "mbiou": "boundary_iou", "msf": "union_iou", "drift": "drift"}
"""Figures with an interval, by the column whose mean they are."""
_COLUMNS = "iou", "boundary_iou", "union_iou", "whole_iou", "predicted_iou", "dsp_weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One line of a table: means over the objects of a set and slice, each object being the mean over its prompts."""

    set: str
    slice: str
    """`all`, a size (see `SIZES`), or `parts`."""
    method: str
    prompts: str
    objects: int
    masks: int
    miou: Estimate
    mbiou: Estimate
    msf: Estimate | None
    """None where an object has one prompt: mSF compares the masks of several."""
    drift: Estimate | None
    """Of parts: how many of the masks have a higher IoU with the whole than with the part that was asked for."""
    predicted_iou: float
    """Mean of the IoU head's own estimate: near miou when the head is honest."""
    dsp_weight: float
    """Mean alpha_1; 0 for methods without the plugin."""
    to_sam: dict[str, Estimate]
    """Paired difference to SAM of miou, mbiou, msf and drift; empty for SAM, and where it was not measured."""


def summarise(records: pa.Table, settings: EvaluationConfig) -> list[Score]:
    """Every line of the tables: each set, all of them, the sizes over all sets, the parts of each set that has some.

    records: of `join_records`; every method has the same objects and prompts.
    """
    by_kind = list(_by_kind(records, settings))
    sets = list(dict.fromkeys(name for objects in by_kind for name in objects.sets))
    total = sets[0] if len(sets) == 1 else ALL_SETS
    wanted = [(name, WHOLE_SLICE) for name in dict.fromkeys((*sets, total))]
    wanted += [(total, size) for size in SIZES] + [(name, PARTS) for name in sets]
    return [score for name, part in wanted for objects in by_kind for score in _lines(objects, name, part, settings)]


@dataclass(frozen=True, slots=True)
class _Objects:
    """The objects that one kind of prompt asks for."""

    prompts: str
    sets: list[str]
    """(N,), as the next two."""
    area_fraction: NDArray[np.float64]
    is_part: NDArray[np.bool_]
    masks: NDArray[np.int64]
    """(N,), prompts of each object."""
    means: dict[str, NDArray[np.float64]]
    """By column (M, N): of each method, the mean over an object's prompts; NaN where it was not measured."""

    def of(self, name: str, part: str) -> NDArray[np.bool_]:
        """(N,): which of them are of the set `name`, or of all, and of the slice `part`."""
        chosen = np.array([name in (ALL_SETS, of_set) for of_set in self.sets])
        if part == PARTS:
            return chosen & self.is_part
        if part == WHOLE_SLICE:
            return chosen
        low, high = SIZES[part]
        return chosen & (self.area_fraction >= low) & ((self.area_fraction < high) | (high == 1.0))


def _by_kind(records: pa.Table, settings: EvaluationConfig) -> Iterator[_Objects]:
    set_codes, sets = codes(records, "set")
    annotations, names = codes(records, "annotation")
    wholes, _ = codes(records, "whole")
    methods, method_names = codes(records, "method")
    kinds, kind_names = codes(records, "prompt")
    keys = set_codes * max(len(names), 1) + annotations
    columns = {name: numbers(records, name) for name in ("area_fraction", *_COLUMNS)}
    drifted = (columns["whole_iou"] > columns["iou"]).astype(np.float64)
    columns["drift"] = np.where(np.isnan(columns["whole_iou"]), np.nan, drifted)
    for kind in settings.prompts:
        if kind not in kind_names:
            continue
        of_kind = kinds == kind_names.index(kind)
        means: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns}
        for method in settings.methods:
            rows = np.flatnonzero(of_kind & (methods == method_names.index(method)))
            _, first, inverse, counts = np.unique(
                keys[rows], return_index=True, return_inverse=True, return_counts=True
            )
            for name, values in columns.items():
                means[name].append(np.bincount(inverse, values[rows]) / counts)
        stacked = {name: np.stack(values) for name, values in means.items()}
        yield _Objects(
            prompts=kind,
            sets=[sets[code] for code in set_codes[rows][first]],
            area_fraction=columns["area_fraction"][rows][first],
            is_part=wholes[rows][first] >= 0,
            masks=counts,
            means=stacked,
        )


def _lines(objects: _Objects, name: str, part: str, settings: EvaluationConfig) -> Iterator[Score]:
    chosen = objects.of(name, part)
    if not chosen.any():
        return
    measured = {metric: objects.means[column][:, chosen] for metric, column in _METRICS.items()}
    if part != PARTS:
        del measured["drift"]
    measured = {metric: values for metric, values in measured.items() if not np.isnan(values).any()}
    drawn = bootstrap_means(np.concatenate(list(measured.values())), settings.resamples, settings.seed)
    drawn_of = dict(zip(measured, np.split(drawn, len(measured), axis=1), strict=True))  # each (resamples, M)
    value_of = {metric: values.mean(axis=1) for metric, values in measured.items()}
    base = settings.methods.index(BASELINE) if BASELINE in settings.methods else None
    for index, method in enumerate(settings.methods):
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
        yield Score(
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
            predicted_iou=float(objects.means["predicted_iou"][index, chosen].mean()),
            dsp_weight=float(objects.means["dsp_weight"][index, chosen].mean()),
            to_sam=to_sam,
        )
