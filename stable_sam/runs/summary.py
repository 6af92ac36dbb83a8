"""Summarises a published run from its table: prompts by status and route, with their median scores."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from stable_sam.errors import InputError
from stable_sam.records import Changes
from stable_sam.runs.truth_score import TruthScore
from stable_sam.scores import MEASURED
from stable_sam.table.query import connected, rows_of
from stable_sam.timing import STAGES, StageShares
from stable_sam.wording import counted

_JUDGED_AS = 100
"""A run that refined fewer prompts is judged as if it had refined this many: its own share of failures is chance."""
_SECONDS = ", ".join(f"{stage}_seconds" for stage in STAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """The prompts of one status and route."""

    status: str
    route: str
    prompts: int
    medians: tuple[float | None, ...]
    """Median scores in the order of `MEASURED`; None for a score that no prompt has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What one published run did."""

    table_uri: str
    run_id: str
    rows: tuple[SummaryRow, ...]
    up_to_date: bool = False
    """Whether nothing was done because the table already holds this run."""
    images: int = 0
    """Number of images that this driver refined. A resumed run has more images."""
    images_per_second: float | None = None
    """Images that each actor refined in a second, without its start-up; None when nothing was refined."""
    current_prompts: int | None = None
    """Number of current prompts of the table after this run; None for a run of an older version."""
    changes: Changes | None = None
    """How the source differed from the table before the run; None when that is not known."""

    an_error: str | None = None
    """Why the first of the prompts that failed did so; None when none failed."""

    truth: TruthScore | None = None
    """How good the masks are whose true masks are known; None when the run was given no truth."""
    stages: StageShares | None = None
    """How the run's time is shared among the stages; None when a shard did not record it."""

    @property
    def prompts(self) -> int:
        """Number of prompts that were refined; tombstones do not count."""
        return sum(row.prompts for row in self.rows)

    @property
    def failed(self) -> int:
        """Number of prompts that failed."""
        return sum(row.prompts for row in self.rows if row.status == "failed")

    def cells(self) -> list[list[str]]:
        """Return a printable table: the header, a line for each status and route with median scores, and the total."""
        header = ["status", "route", "prompts", *MEASURED]
        lines = [
            [row.status, row.route, str(row.prompts), *("-" if m is None else f"{m:.3f}" for m in row.medians)]
            for row in self.rows
        ]
        return [header, *lines, ["all", "", str(self.prompts), *("" for _ in MEASURED)]]

    def changes_line(self) -> str:
        """Say in words how many prompts were new, changed, withdrawn and unchanged; empty when that is not known."""
        return "" if self.changes is None else describe(self.changes)

    def markdown(self) -> str:
        """Write the summary in Markdown: lines about the run, its changes, truth and time, and the table of `cells`."""
        header, *lines = (f"| {' | '.join(line)} |" for line in self.cells())
        rule = "|" + "---|" * len(self.cells()[0])
        speed = "" if self.images_per_second is None else f", {self.images_per_second:.2f} images/s for each actor"
        counts = f"{counted(self.prompts, 'prompt')}, {self.failed} failed{speed}; medians of the scores"
        title = f"Run `{self.run_id}` of `{self.table_uri}`: {counts}"
        known = (self.changes_line(), *(part.line() for part in (self.truth, self.stages) if part is not None))
        said = [text for text in known if text]
        return "\n".join([title, "", *(part for text in said for part in (text, "")), header, rule, *lines])


def describe(changes: Changes) -> str:
    """Describe changes in one line, or in two when rows of an older version have no fingerprint."""
    counts = {
        "new": changes.new,
        "changed": changes.changed,
        "refined again": changes.refreshed,
        "withdrawn": changes.withdrawn,
        "unchanged": changes.unchanged,
    }
    why = {
        "changed": {
            "annotation": changes.prompt_changed, "image replaced": changes.image_changed,
            "image path": changes.image_moved, "unknown": changes.unknown,
        },
        "refined again": {
            "failed before": changes.failed, "other model or config": changes.other_model,
            "other version of stable-sam": changes.other_code,
        },
    }  # fmt: skip
    parts = []
    for name, count in counts.items():
        reasons = ", ".join(f"{reason} {n}" for reason, n in why.get(name, {}).items() if n)
        if count or name != "refined again":
            parts.append(f"{count} {name}" + (f" ({reasons})" if reasons else ""))
    line = f"Prompts: {', '.join(parts)}."
    if changes.image_moved:
        line += (
            " Images at another path count as other images unless their versions are equal; `stable-sam move-images` "
            "says that they are the same."
        )
    if changes.reviewed:
        line += f" Of the unchanged, {changes.reviewed} would have been refined if they were not reviewed."
    if changes.unknown:
        line += (
            "\nRows of an older version of stable-sam have no fingerprint, so this run counts their prompts as "
            f"changed: {changes.unknown}."
        )
    return line


def check_failures(summary: RunSummary, max_failed_fraction: float) -> None:
    """Raise `InputError` when more than `max_failed_fraction` of the prompts failed, or all of them.

    A run that refined fewer than 100 prompts of a larger table is judged as if it had refined more without failure, up
    to 100 or to the number of current prompts.
    """
    judged = max(summary.prompts, min(_JUDGED_AS, summary.current_prompts or 0))
    if summary.failed == 0:
        return
    if summary.failed == judged:
        what = f"all {summary.prompts} prompts failed" if summary.prompts > 1 else "the only prompt failed"
    elif summary.failed > max_failed_fraction * judged:
        few = f" (judged as {judged} prompts)" if judged > summary.prompts else ""
        share = f"more than max_failed_fraction {max_failed_fraction:g}{few}"
        what = f"{summary.failed} of {counted(summary.prompts, 'prompt')} failed, {share}"
    else:
        return
    why = "" if summary.an_error is None else f", one of them: {summary.an_error}"
    raise InputError(
        f"{summary.table_uri}: {what}; run {summary.run_id} is published, and its failed rows say why{why}"
    )


def summarize(table_uri: str, run_id: str, **more: Any) -> RunSummary:
    """Summarise a run from the rows of its table; `more` sets further fields. Raises `StorageError`."""
    medians = ", ".join(f"score_median({score})" for score in MEASURED)
    sql = (
        f"SELECT (SELECT current_prompts FROM runs WHERE run_id = '{run_id}') AS current_prompts, "
        f"status, route, count(*) AS prompts, min_by(error, prompt_id), {medians} FROM history "
        f"WHERE run_id = '{run_id}' AND status <> 'withdrawn' GROUP BY status, route ORDER BY status DESC, route"
    )
    figures = ", ".join(field.name for field in fields(TruthScore))
    with connected(table_uri) as connection:
        found = connection.sql(sql).fetchall()
        scores = rows_of(connection, f"SELECT {figures} FROM runs WHERE run_id = '{run_id}'")
        times = connection.sql(f"SELECT images, {_SECONDS} FROM runs WHERE run_id = '{run_id}'").fetchall()
    truth = next((TruthScore(**row) for row in scores if row["truth_matched"] is not None), None)
    rows = tuple(
        SummaryRow(status=status, route=route, prompts=prompts, medians=tuple(scores))
        for _, status, route, prompts, _, *scores in found
    )
    stages = None
    for images, *seconds in times:
        if None not in seconds:
            prompts = sum(row.prompts for row in rows)
            stages = StageShares(seconds=dict(zip(STAGES, seconds, strict=True)), images=images, prompts=prompts)
    return RunSummary(
        table_uri=table_uri,
        run_id=run_id,
        rows=rows,
        current_prompts=found[0][0] if found else None,
        an_error=next((error for _, _, _, _, error, *_ in found if error is not None), None),
        truth=truth,
        stages=stages,
        **more,
    )
