"""Does alpha_1, the weight of the deformed features, know how good the prompt is? Rank correlations of the records."""

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
"""Groups of kinds: every box, every box but the true one, and points, whose quality is their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaCorrelation:
    """Spearman's rho of alpha_1 with the prompts' true quality; a plugin that knows it has a rho near -1."""

    group: str
    """One kind of prompt, or one of the groups."""
    masks: int
    mean_alpha: float
    rho: float | None
    """None where all prompts have one quality, or alpha_1 is constant."""


def correlate_alpha(records: pa.Table, prompts: Sequence[str]) -> list[AlphaCorrelation]:
    """Correlations of every group of `prompts` that has records of stable-sam; none without it."""
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
    """alpha_1 and quality (N,) of stable-sam's prompts of these kinds."""
    methods, method_names = codes(records, "method")
    kinds, kind_names = codes(records, "prompt")
    wanted = [kind_names.index(name) for name in prompts if name in kind_names]
    own = method_names.index("stable-sam") if "stable-sam" in method_names else -1
    rows = (methods == own) & np.isin(kinds, wanted)
    return numbers(records, "dsp_weight")[rows], numbers(records, "prompt_quality")[rows]
