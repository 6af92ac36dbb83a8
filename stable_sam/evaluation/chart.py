"""Draw the charts of an evaluation: bars of mIoU, and alpha_1 against how good the prompts are."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stable_sam.evaluation.alpha import alpha_and_quality
from stable_sam.evaluation.averages import WHOLE_SLICE, TableLine
from stable_sam.evaluation.evaluate import Evaluation
from stable_sam.evaluation.evaluation_config import BASELINE
from stable_sam.evaluation.prompts import GT_BOX, PromptKind
from stable_sam.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"box": "#d8c9b0", "sam": "#9aa5b1", "hq-sam": "#e0a030", "stable-sam": "#1e78d0"}
LABELS = {"box": "box, filled", "sam": "SAM", "hq-sam": "HQ-SAM", "stable-sam": "Stable-SAM"}
MAX_DOTS = 5000
"""Most prompts that are drawn as dots; the binned means are those of all prompts."""
BINS = 10


def bar_chart(evaluation: Evaluation) -> bytes:
    """Draw a PNG of mIoU over all objects by kind of prompt, with the methods side by side, as the paper's Figure 1.

    Error bars are 95 % intervals. A dashed line is SAM's mIoU with the ground-truth box, which the paper claims that
    Stable-SAM reaches with bad prompts.
    """
    from matplotlib.figure import Figure

    lines = [line for line in evaluation.scores if line.slice == WHOLE_SLICE]
    lines = [line for line in lines if line.set == lines[-1].set]  # the last lines are those of all sets
    methods = evaluation.settings.methods
    kinds = list(dict.fromkeys(line.prompts for line in lines))
    figure = Figure(figsize=(max(6.5, 1.6 + 0.45 * len(kinds) * len(methods)), 4.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        of_kind = {line.prompts: line.miou for line in lines if line.method == method}
        scores = list(of_kind.values())
        values = np.array([score.value for score in scores])
        ends = np.array([(score.value - score.low, score.high - score.value) for score in scores])
        places = np.array([kinds.index(kind) for kind in of_kind]) + (number - (len(methods) - 1) / 2) * width
        axes.bar(places, values, width, color=COLOURS[method], label=LABELS[method])
        axes.errorbar(places, values, yerr=np.maximum(ends.T, 0), fmt="none", ecolor="black", capsize=2, elinewidth=1)
    if (level := _level(lines)) is not None:
        axes.axhline(level, color=COLOURS[BASELINE], linestyle="--", linewidth=1.5, label="SAM, ground-truth box")
    axes.set_xticks(np.arange(len(kinds)), kinds, rotation=20)
    axes.set_ylabel("mIoU")
    axes.set_ylim(0, 1)
    objects = counted(max(line.objects for line in lines), "object")
    axes.set_title(f"{evaluation.model.model}, {lines[0].set}: {objects}")
    axes.legend(ncols=2, loc="upper center", frameon=False, fontsize="small")
    return _png(figure)


def alpha_plot(records: pa.Table, prompts: Sequence[str]) -> bytes:
    """Draw a PNG of alpha_1 against the IoU of weak and true box, and against the number of points, with binned means.

    records: a table that `join_records` returned. prompts: the kinds of prompts that are drawn.
    """
    from matplotlib.figure import Figure

    kinds = [PromptKind.parse(name) for name in prompts]
    panels = (
        ("IoU of the weak box with the true one", [kind.name for kind in kinds if not kind.points]),
        ("number of points", [kind.name for kind in kinds if kind.points]),
    )
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        alpha, quality = alpha_and_quality(records, names)
        axes.set_xlabel(label)
        axes.set_ylabel("alpha_1")
        if len(alpha) == 0:
            continue
        some = np.random.default_rng(0).permutation(len(alpha))[:MAX_DOTS]
        axes.scatter(quality[some], alpha[some], s=4, alpha=0.25, color=COLOURS["stable-sam"], linewidths=0)
        centres, means = binned_means(quality, alpha)
        axes.plot(centres, means, "o-", color="black", label="mean")
        axes.legend(frameon=False)
    return _png(figure)


def binned_means(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean x and mean y of at most BINS bins: one bin for each value of x, or equally full bins of more values."""
    starts = np.unique(x)
    if len(starts) > BINS:
        starts = np.unique(np.quantile(x, np.arange(BINS) / BINS))
    bins = np.searchsorted(starts, x, side="right") - 1
    bins = np.unique(bins, return_inverse=True)[1]  # the rounding of a quantile may leave a bin empty
    counts = np.bincount(bins)
    return np.bincount(bins, x) / counts, np.bincount(bins, y) / counts


def _level(lines: Sequence[TableLine]) -> float | None:
    """SAM's mIoU with the ground-truth box; None where it was not measured."""
    return next((line.miou.value for line in lines if (line.method, line.prompts) == (BASELINE, GT_BOX)), None)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
