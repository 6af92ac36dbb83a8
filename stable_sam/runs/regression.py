"""Is a night worse than those before it? Its shares of review and failure and its median scores against theirs."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from stable_sam.config import RegressionConfig
from stable_sam.errors import InputError, NotFoundError
from stable_sam.table.log import list_runs, open_table
from stable_sam.table.query import query

_COMMITS = 100
"""Commits looked through for earlier nights: compactions and nights without enough prompts lie between them."""
_MEASURES = {
    "share in review": ("avg((status = 'ok' AND route = 'review')::INT)", "review_rise", +1),
    "share failed": ("avg((status = 'failed')::INT)", "failed_rise", +1),
    "median prompt_stability": ("score_median(prompt_stability)", "prompt_stability_drop", -1),
    "median predicted_iou": ("score_median(predicted_iou)", "predicted_iou_drop", -1),
}
"""Name: SQL over a night's rows, its threshold in `RegressionConfig`, and the direction in which it gets worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of a night beside the usual one."""

    name: str
    tonight: float
    usual: float
    """Median of the nights compared with."""
    allowed: float
    """Largest change for the worse that is still usual."""
    worsening: float
    """Change for the worse, positive when it is one."""

    @property
    def regressed(self) -> bool:
        """Whether it is worse than usual nights are; what lies on the threshold is not."""
        return self.worsening > self.allowed + 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class NightComparison:
    """A run beside those before it; without measures when there was nothing to compare, and `note` says why."""

    table_uri: str
    run_id: str
    nights: int = 0
    """Nights compared with."""
    measures: tuple[Measure, ...] = ()
    note: str = ""

    @property
    def regressions(self) -> tuple[str, ...]:
        """A line for each figure that is worse than usual."""
        return tuple(
            f"{measure.name} {measure.tonight:.3f}, usually {measure.usual:.3f} (median of {self.nights} nights; "
            f"a change of {measure.allowed:g} is usual)"
            for measure in self.measures
            if measure.regressed
        )

    def markdown(self) -> str:
        """The figures as a table, or why there are none."""
        if not self.measures:
            return f"Not compared with earlier nights: {self.note}"
        lines = [
            f"| {one.name} | {one.tonight:.3f} | {one.usual:.3f} | {one.allowed:g} | {'**worse**' * one.regressed} |"
            for one in self.measures
        ]
        header = f"| against the median of {self.nights} nights | this night | usual | allowed change | |"
        return "\n".join([header, "|---|---|---|---|---|", *lines])


def compare_nights(table_uri: str, run_id: str, config: RegressionConfig) -> NightComparison:
    """Compare a published run with the nights before it; only what each refined counts, not what it left as it was.

    Raises `NotFoundError` when there is no such table or run, `StorageError`.
    """
    table = open_table(table_uri)
    runs = [] if table is None else list_runs(table, _COMMITS)
    # A night refined nothing of what people brought back.
    prompts = {run.run_id: 0 if run.is_review else run.rows - run.changes.get("withdrawn", 0) for run in runs}
    if run_id not in prompts:
        raise NotFoundError(f"{table_uri}: expected run {run_id} among the newest of the table, found none")
    if prompts[run_id] < config.min_prompts:
        return NightComparison(
            table_uri=table_uri,
            run_id=run_id,
            note=f"{prompts[run_id]} prompts refined, fewer than regression.min_prompts {config.min_prompts}",
        )
    newest_first = list(prompts)
    earlier = [
        other for other in newest_first[newest_first.index(run_id) + 1 :] if prompts[other] >= config.min_prompts
    ]
    if len(earlier) < config.min_nights:
        return NightComparison(
            table_uri=table_uri,
            run_id=run_id,
            note=f"{len(earlier)} earlier nights of at least {config.min_prompts} prompts, "
            f"fewer than regression.min_nights {config.min_nights}",
        )
    compared = earlier[: config.nights]
    figures = _figures(table_uri, [run_id, *compared])
    measures = []
    for name, (_, threshold, direction) in _MEASURES.items():
        tonight = figures[run_id][name]
        before = [figure for other in compared if (figure := figures[other][name]) is not None]
        if tonight is None or not before:
            continue  # a score that was not computed, or of which every prompt failed
        usual = median(before)
        measures.append(
            Measure(
                name=name,
                tonight=tonight,
                usual=usual,
                allowed=getattr(config, threshold),
                worsening=direction * (tonight - usual),
            )
        )
    return NightComparison(table_uri=table_uri, run_id=run_id, nights=len(compared), measures=tuple(measures))


def check_regressions(comparison: NightComparison, config: RegressionConfig) -> None:
    """Raise `InputError` for a night that is worse than usual, when the configuration asks for that."""
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
