"""Show the figures of a calibration: Markdown tables, and a chart of risk, coverage and reliability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np

from stable_sam.calibration.calibrate import COMPARED_WITH, Held
from stable_sam.calibration.gain import MIN_MASKS
from stable_sam.calibration.judge import REVIEW_SHARE, reliability, risk_coverage
from stable_sam.config.calibration import Calibration, GainOverBox, Promise, SizeSlice
from stable_sam.wording import counted

COLOURS = {"quality": "#1e78d0", COMPARED_WITH: "#9aa5b1", "prompt_stability": "#e0a030"}


def promise_line(promise: Promise) -> str:
    """Return one line that says what is promised, and what was found."""
    what = "good" if promise.route == "accept" else "bad"
    if promise.threshold is None:
        possible = "" if promise.possible is None else f", {math.floor(promise.possible * 100)}% can be promised"
        return (
            f"{promise.route}: no threshold promises {promise.precision:.0%} {what} masks at {promise.confidence:.0%} "
            f"confidence{possible}; {counted(promise.checked, 'mask')} checked"
        )
    sign = ">=" if promise.route == "accept" else "<="
    return (
        f"{promise.route}: quality {sign} {promise.threshold:.3f}; {promise.kept} of {counted(promise.masks, 'mask')} "
        f"{what} ({promise.masks / promise.checked:.0%} of {promise.checked:,} checked), promised "
        f"{promise.precision:.0%} at {promise.confidence:.0%} confidence"
    )


def gain_line(gain: GainOverBox | None) -> str:
    """Return one line that says how well the gain over the filled box can be predicted."""
    if gain is None:
        return f"gain over the filled box: not learnt, because fewer than {MIN_MASKS} boxes have a known IoU (--data)"
    return (
        f"gain over the filled box: accepted above {gain.threshold:.2f}; by cross-validation on "
        f"{counted(gain.masks, 'mask')} the mean error is {gain.error:.3f}, and Spearman's correlation with the true "
        f"gain {gain.spearman:.2f}"
    )


def markdown(calibration: Calibration, sets: Sequence[Held]) -> str:
    """Return the promises and the tables of all sets that the calibration was not fitted to, as Markdown."""
    promises = [promise_line(promise) + "  " for promise in (calibration.accept, calibration.reject)]
    lines = [*promises, gain_line(calibration.gain_over_box), ""]
    lines += [
        f"| masks | score | Spearman with IoU | AURC | less than {COMPARED_WITH} | least possible "
        f"| bad masks caught by {REVIEW_SHARE:.0%} review | most possible | calibration error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sets:
        baseline = next((row.aurc for row in one.judgements if row.score == COMPARED_WITH), None)
        for row in one.judgements:
            less = "" if not baseline or row.score == COMPARED_WITH else f"{1 - row.aurc / baseline:.0%}"
            error = "" if row.calibration_error is None else f"{row.calibration_error:.3f}"
            lines.append(
                f"| {one.name} ({row.masks}, {row.bad:.0%} bad) | {row.score} | {row.spearman:.2f} | {row.aurc:.3f} "
                f"| {less} | {row.aurc_best:.3f} | {row.caught:.0%} | {row.caught_best:.0%} | {error} |"
            )
    lines += ["", "| masks | route | of all | good |", "|---|---|---|---|"]
    for one in sets:
        for count in one.routes:
            good = f"{count.good / count.masks:.0%}" if count.masks else ""
            lines.append(f"| {one.name} | {count.route} | {count.masks / len(one.masks):.0%} | {good} |")
    lines += ["", f"| masks | {' | '.join(SIZE_COLUMNS)} |", "|---|---|---|---|---|---|"]
    lines += [f"| {one.name} | {' | '.join(row)} |" for one in sets for row in size_rows(one.sizes)]
    return "\n".join(lines) + "\n"


SIZE_COLUMNS = ("object", "accepted", "mask IoU", "box IoU", "gain")


def size_rows(sizes: Sequence[SizeSlice]) -> list[tuple[str, ...]]:
    """Return the cells under SIZE_COLUMNS: IoU of accepted masks and of their filled boxes, by size of the object."""
    return [
        (one.size, str(one.masks), f"{one.mask_iou:.3f}", f"{one.box_iou:.3f}", f"{one.mask_iou - one.box_iou:+.3f}")
        for one in sizes
    ]


def chart(calibration: Calibration, sets: Sequence[Held]) -> bytes:
    """Draw a PNG with two plots for each set: risk over coverage, and the share of good masks over the probability.

    The first compares the probability with two scores alone.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(sets), 6.4), layout="constrained")
    grid = figure.subplots(2, len(sets), squeeze=False)
    for one, (above, below) in zip(sets, grid.T, strict=True):
        bad = one.masks.iou < calibration.target_iou
        for score, colour in COLOURS.items():
            values = one.quality if score == "quality" else one.masks.scores[score]
            above.plot(*risk_coverage(np.nan_to_num(values, nan=-np.inf), bad), color=colour, label=score)
        above.plot(*risk_coverage(one.masks.iou, bad), color="black", linestyle=":", label="best possible")
        above.set(title=one.name, xlabel="coverage", ylabel="share of bad masks kept", xlim=(0, 1), ylim=(0, 1))
        below.plot((0, 1), (0, 1), color="black", linestyle=":")
        below.plot(*reliability(one.quality, ~bad), color=COLOURS["quality"], marker="o")
        below.set(
            xlabel="quality said", ylabel=f"share with IoU >= {calibration.target_iou:g}", xlim=(0, 1), ylim=(0, 1)
        )
    grid[0][0].legend(frameon=False, fontsize="small", loc="upper left")
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
