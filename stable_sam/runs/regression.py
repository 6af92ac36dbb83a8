"""Finds out whether a night is worse than earlier nights, by its shares in review and failed and its median scores."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from stable_sam.config import RegressionConfig
from stable_sam.errors import InputError, NotFoundError
from stable_sam.table.log import list_runs, open_table
from stable_sam.table.query import query
from stable_sam.wording import counted

_COMMITS = 100
"""Commits that are searched for earlier nights, between which lie compactions and nights with too few prompts. All
commits are searched when the night itself is older."""
_MEASURES = {
    "share in review": ("avg((status = 'ok' AND route = 'review')::INT)", "review_rise", +1),
    "share failed": ("avg((status = 'failed')::INT)", "failed_rise", +1),
    "median prompt_stability": ("score_median(prompt_stability)", "prompt_stability_drop", -1),
    "median predicted_iou": ("score_median(predicted_iou)", "predicted_iou_drop", -1),
}
"""For each measure by name: its SQL over a night's rows, its threshold in `RegressionConfig`, and +1 when a higher
value is worse or -1 when a lower value is worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of a night, compared with its usual value."""

    name: str
    value: float
    """Figure of this night."""
    usual: float
    """Median of the figures of the earlier nights."""
    allowed: float
    """Largest change for the worse that is still usual."""
    worsening: float
    """Change from the usual value, positive for the worse."""

    @property
    def regressed(self) -> bool:
        """Whether the figure is worse than usual by more than the allowed change."""
        return self.worsening > self.allowed + 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class NightComparison:
    """A night compared with the nights before it."""

    table_uri: str
    run_id: str
    nights: int = 0
    """Number of earlier nights that this night was compared with."""
    measures: tuple[Measure, ...] = ()
    """The figures compared; none when there was nothing to compare."""
    note: str = ""
    """Why nothing was compared; empty when there are measures."""

    @property
    def regressions(self) -> tuple[str, ...]:
        """One line for each figure that is worse than usual."""
        return tuple(
            f"{measure.name} {measure.value:.3f}, usually {measure.usual:.3f} "
            f"(median of {counted(self.nights, 'night')}; a change of {measure.allowed:g} is usual)"
            for measure in self.measures
            if measure.regressed
        )

    def markdown(self) -> str:
        """Write the figures as a Markdown table, or why there are none."""
        if not self.measures:
            return f"Not compared with earlier nights: {self.note}"
        lines = [
            f"| {one.name} | {one.value:.3f} | {one.usual:.3f} | {one.allowed:g} | {'**worse**' * one.regressed} |"
            for one in self.measures
        ]
        header = (
            f"| compared with the median of {counted(self.nights, 'night')} | this night | usual | allowed change | |"
        )
        return "\n".join([header, "|---|---|---|---|---|", *lines])


def compare_nights(table_uri: str, run_id: str, config: RegressionConfig) -> NightComparison:
    """Compare a published night with the nights before it, by the prompts that each of them refined.

    Raises `NotFoundError` when there is no such table or run, and `StorageError`.
    """
    table = open_table(table_uri)
    runs = [] if table is None else list_runs(table, _COMMITS)
    if table is not None and all(run.run_id != run_id for run in runs):
        runs = list_runs(table)
    # A run that imported a review refined nothing.
    prompts = {run.run_id: 0 if run.is_review else run.rows - run.changes.get("withdrawn", 0) for run in runs}
    if run_id not in prompts:
        raise NotFoundError(f"{table_uri}: expected run {run_id} among the runs of the table, found none")
    if prompts[run_id] < config.min_prompts:
        return NightComparison(
            table_uri=table_uri,
            run_id=run_id,
            note=f"{counted(prompts[run_id], 'prompt')} refined, fewer than regression.min_prompts "
            f"{config.min_prompts}",
        )
    newest_first = list(prompts)
    earlier = [
        other for other in newest_first[newest_first.index(run_id) + 1 :] if prompts[other] >= config.min_prompts
    ]
    if len(earlier) < config.min_nights:
        return NightComparison(
            table_uri=table_uri,
            run_id=run_id,
            note=f"{counted(len(earlier), 'earlier night')} of at least {counted(config.min_prompts, 'prompt')}, "
            f"fewer than regression.min_nights {config.min_nights}",
        )
    compared = earlier[: config.nights]
    figures = _figures(table_uri, [run_id, *compared])
    measures = []
    for name, (_, threshold, direction) in _MEASURES.items():
        value = figures[run_id][name]
        before = [figure for other in compared if (figure := figures[other][name]) is not None]
        if value is None or not before:
            continue  # the score was not computed, or every prompt failed
        usual = median(before)
        measures.append(
            Measure(
                name=name,
                value=value,
                usual=usual,
                allowed=getattr(config, threshold),
                worsening=direction * (value - usual),
            )
        )
    return NightComparison(table_uri=table_uri, run_id=run_id, nights=len(compared), measures=tuple(measures))


def check_regressions(comparison: NightComparison, config: RegressionConfig) -> None:
    """Raise `InputError` for a night that is worse than usual, if the config asks for that."""
    if config.fail and comparison.regressions:
        raise InputError(
            f"{comparison.table_uri}: run {comparison.run_id} is published and worse than usual (regression.fail): "
            + "; ".join(comparison.regressions)
        )


def _figures(table_uri: str, run_ids: list[str]) -> dict[str, dict[str, float | None]]:
    columns = ", ".join(f'{sql} AS "{name}"' for name, (sql, _, _) in _MEASURES.items())
    names = ", ".join(f"'{run_id}'" for run_id in run_ids)
    sql = f"SELECT run_id, {columns} FROM history WHERE run_id IN ({names}) AND status <> 'withdrawn' GROUP BY run_id"
    return {row.pop("run_id"): row for row in query(table_uri, sql).to_pylist()}
