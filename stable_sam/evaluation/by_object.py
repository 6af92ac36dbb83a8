"""Average the records over the prompts of each object, for each kind of prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stable_sam.evaluation.evaluation_config import BASELINE, EvaluationConfig
from stable_sam.evaluation.prompts import WORST_BOX
from stable_sam.evaluation.result_records import codes, numbers

ALL_SETS = "all objects"
"""Set name of the lines that average over the objects of all sets."""
DIFFERENT = 0.02
"""Difference in IoU above which a method helps or hurts; smaller differences cannot be seen."""
_COLUMNS = "iou", "boundary_iou", "union_iou", "whole_iou", "predicted_iou", "dsp_weight"


@dataclass(frozen=True, slots=True)
class ObjectMeans:
    """Means over the prompts of one kind for N objects and M methods."""

    prompts: str
    methods: tuple[str, ...]
    """The evaluated methods that answer this kind of prompt; the method box answers no points."""
    keys: NDArray[np.int64]
    """(N,), ascending; an object has the same key for all kinds of prompts."""
    sets: NDArray[np.str_]
    """(N,), name of each object's set."""
    area_fraction: NDArray[np.float64]
    """(N,), each object's fraction of its image."""
    box_cells: NDArray[np.float64]
    """(N,), longer side of each object's box in cells of the image embedding."""
    is_part: NDArray[np.bool_]
    """(N,), whether the object is a part of another one."""
    masks: NDArray[np.int64]
    """(N,), number of prompts of each object."""
    means: dict[str, NDArray[np.float64]]
    """By column (M, N): the mean over each object's prompts for each method; NaN where it was not measured. The columns
    are those of the records, and four more. drift: the mask is nearer to the whole than to the part. best_iou: IoU of
    the better mask of the method's and SAM's for the same prompt. helps, hurts: the method's IoU is more than DIFFERENT
    above or below SAM's. The last three are NaN for `worst-box`, where each method has a box of its own."""

    def of_set(self, name: str) -> NDArray[np.bool_]:
        """(N,) bool: which of the objects are of the set `name`; all of them for ALL_SETS."""
        return np.full(len(self.keys), True) if name == ALL_SETS else self.sets == name


def object_means(records: pa.Table, settings: EvaluationConfig) -> Iterator[ObjectMeans]:
    """Yield the means for each kind of prompt in `settings` that has records.

    records: a table that `join_records` returned. All methods that answer a kind have the same objects and prompts.
    """
    set_codes, sets = codes(records, "set")
    annotations, names = codes(records, "annotation")
    wholes, _ = codes(records, "whole")
    methods, method_names = codes(records, "method")
    kinds, kind_names = codes(records, "prompt")
    keys = set_codes * max(len(names), 1) + annotations
    columns = {name: numbers(records, name) for name in _COLUMNS}
    columns["drift"] = _where_known(columns["whole_iou"] > columns["iou"], columns["whole_iou"])
    area_fraction, box_cells = numbers(records, "area_fraction"), numbers(records, "box_cells")
    number = numbers(records, "number")
    for kind in settings.prompts:
        if kind not in kind_names:
            continue
        of_kind = kinds == kind_names.index(kind)
        rows_of = {
            method: np.flatnonzero(of_kind & (methods == method_names.index(method)))
            for method in settings.methods
            if method in method_names
        }
        # Rows are sorted by object and number, so that row n of every method is the same prompt.
        rows_of = {m: rows[np.lexsort((number[rows], keys[rows]))] for m, rows in rows_of.items() if len(rows)}
        same_prompts = BASELINE in rows_of and kind != WORST_BOX
        sam_iou = columns["iou"][rows_of[BASELINE]] if same_prompts else np.array(np.nan)
        means: dict[str, list[NDArray[np.float64]]] = {}
        for rows in rows_of.values():
            found, first, inverse, counts = np.unique(
                keys[rows], return_index=True, return_inverse=True, return_counts=True
            )
            values = {name: column[rows] for name, column in columns.items()}
            gain = values["iou"] - sam_iou
            values["best_iou"] = np.maximum(values["iou"], sam_iou)
            values["helps"], values["hurts"] = (_where_known(sign * gain > DIFFERENT, gain) for sign in (1, -1))
            for name, column in values.items():
                means.setdefault(name, []).append(np.bincount(inverse, column) / counts)
        yield ObjectMeans(
            prompts=kind,
            methods=tuple(rows_of),
            keys=found,
            sets=np.array(sets)[set_codes[rows][first]],
            area_fraction=area_fraction[rows][first],
            box_cells=box_cells[rows][first],
            is_part=wholes[rows][first] >= 0,
            masks=counts,
            means={name: np.stack(column) for name, column in means.items()},
        )


def set_names(by_kind: Sequence[ObjectMeans]) -> list[str]:
    """The names of the sets in their order, followed by ALL_SETS where there are several sets."""
    names = list(dict.fromkeys(str(name) for objects in by_kind for name in objects.sets))
    return names if len(names) == 1 else [*names, ALL_SETS]


def _where_known(condition: NDArray[np.bool_], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the condition holds and 0 where it does not; NaN where `known` is NaN."""
    return np.where(np.isnan(known), np.nan, condition.astype(np.float64))
