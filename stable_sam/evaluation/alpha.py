"""Correlate alpha_1, the plugin's weight of the deformed features, with how good the prompts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import spearmanr

from stable_sam.evaluation.prompts import PromptKind
from stable_sam.evaluation.result_records import codes, numbers

ALL_BOXES, NOISY_BOXES, ALL_POINTS = "boxes", "boxes with noise", "points"
"""Groups of prompt kinds: all boxes, all boxes but the true one, and points, which are better the more they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaCorrelation:
    """Spearman's rho of alpha_1 with how good the prompts are; rho is near -1 for a plugin that tells good from bad."""

    group: str
    """Name of a prompt kind or of a group of kinds."""
    masks: int
    mean_alpha: float
    rho: float | None
    """None where all prompts are equally good, or alpha_1 is constant."""


def correlate_alpha(records: pa.Table, prompts: Sequence[str]) -> list[AlphaCorrelation]:
    """Correlate alpha_1 for every kind in `prompts` and every group of them that has records of stable-sam."""
    kinds = [PromptKind.parse(name) for name in prompts]
    boxes = [kind.name for kind in kinds if not kind.points]
    groups = {
        ALL_BOXES: boxes,
        NOISY_BOXES: [kind.name for kind in kinds if kind.is_noisy],
        ALL_POINTS: [kind.name for kind in kinds if kind.points],
        **{kind.name: [kind.name] for kind in kinds},
    }
    found = []
    for group, names in groups.items():
        alpha, quality = alpha_and_quality(records, names)
        if len(alpha):
            varied = np.ptp(alpha) > 0 and np.ptp(quality) > 0
            rho = float(spearmanr(alpha, quality).statistic) if varied else None
            found.append(AlphaCorrelation(group=group, masks=len(alpha), mean_alpha=float(alpha.mean()), rho=rho))
    return found


def alpha_and_quality(records: pa.Table, prompts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """alpha_1 and the column prompt_quality, each (N,), of the records of stable-sam with these kinds of prompts."""
    methods, method_names = codes(records, "method")
    kinds, kind_names = codes(records, "prompt")
    wanted = [kind_names.index(name) for name in prompts if name in kind_names]
    own = method_names.index("stable-sam") if "stable-sam" in method_names else -1
    rows = (methods == own) & np.isin(kinds, wanted)
    return numbers(records, "dsp_weight")[rows], numbers(records, "prompt_quality")[rows]
