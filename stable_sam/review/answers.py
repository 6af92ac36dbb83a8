"""Turns the answers of reviewers into rows of the table: every import that changes something is a run of its own.

    files of a tool --stable_sam.formats.*.review--> Answer for each prompt --import_answers--> one table version

A prompt whose newest row has the status `reviewed` is not refined again: see `stable_sam.runs.compare`. The masks of
one import are held in memory, as run lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pyarrow as pa

import stable_sam
from stable_sam.config import RunConfig, tile_config
from stable_sam.errors import ConfigError, InputError, NotFoundError, StorageError
from stable_sam.formats.review_records import Answer
from stable_sam.identity import ModelIdentity
from stable_sam.records import Changes, Prompt, RefinedMask, Verdict
from stable_sam.review.decide import DECISIONS, decide, newest_rows, reviewed_row
from stable_sam.rle import mask_iou
from stable_sam.runs.commits import write_part
from stable_sam.runs.manifest import ID_DIGITS, RunManifest, json_sha256, read_manifest, write_shards
from stable_sam.runs.publish import publish
from stable_sam.scores import FROM_MODEL
from stable_sam.storage.files import create_bytes, iter_files
from stable_sam.storage.uris import join
from stable_sam.table.current import MADE_BEFORE_REVIEW
from stable_sam.table.log import REVIEW_MODEL, RunInfo, is_review, newest_run
from stable_sam.table.query import query
from stable_sam.table.schema import SHARD_SCHEMA, rows_to_table

MAX_REJECTED_FRACTION = 0.5
"""Largest part of the answers that may be deletions, because half a file looks like many deletions."""
_FEW_ANSWERS = 20
"""Fewer answers than these are not checked for it."""
_SHARD_ROWS = 2_000
STILL = timedelta(minutes=30)
"""A run that wrote nothing for so long is taken to have ended, because a shard takes about a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewReport:
    """What an import did, or with `dry_run` would do, as numbers of prompts."""

    corrected: int = 0
    """Prompts whose mask a person changed."""
    confirmed: int = 0
    """Prompts whose mask a person looked at and left as it was."""
    rejected: int = 0
    """Prompts whose mask a person deleted."""
    unchanged: int = 0
    """Prompts whose mask is as it was sent, while nothing says that somebody looked; they are not imported."""
    already: int = 0
    """Prompts whose row in the table is reviewed and says the same; they are not imported."""
    problems: tuple[str, ...] = ()
    """A line for each object or prompt of the files that could not be imported."""
    run_id: str | None = None
    """The run that was published; None when there was nothing to publish."""

    @property
    def imported(self) -> int:
        """Number of rows of the run: corrected, confirmed and rejected prompts."""
        return self.corrected + self.confirmed + self.rejected


@dataclass(slots=True)
class _Decisions:
    rows: list[tuple[Prompt, RefinedMask]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def import_answers(
    table_uri: str,
    answers: Sequence[Answer],
    *,
    reviewer: str | None = None,
    confirm_unchanged: bool = False,
    unchanged_iou: float = 1.0,
    max_rejected_fraction: float = MAX_REJECTED_FRACTION,
    dry_run: bool = False,
    force: bool = False,
) -> ReviewReport:
    """Publish what people decided as rows of status `reviewed`, in one run.

    Importing the same answers again does nothing.

    `answers` has at most one answer for each prompt. An answer becomes a problem when its prompt is unknown or
    withdrawn, its mask is of another size, or the row that was sent has since been replaced by another mask; all other
    answers are imported.
    `reviewer` names who decided. A reviewer may correct their own earlier answers to the same export.
    `confirm_unchanged` takes an unchanged mask as confirmed even when the file does not say that somebody looked.
    `unchanged_iou` is the IoU with the sent mask from which a mask counts as unchanged; it is below 1 for tools that
    draw masks anew.
    `dry_run` only counts. `force` imports even while another run is being made, which then has to start again.

    Raises `NotFoundError` when there is no table, `ConfigError` while another run is being made, `InputError` when
    more than `max_rejected_fraction` of the answers are deletions, and `StorageError`, also when another run was
    published meanwhile; then nothing is imported.
    """
    parent = newest_run(table_uri)
    if parent is None:
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a finished refine), found none")
    _check_rejected(table_uri, answers, max_rejected_fraction)
    made_by = REVIEW_MODEL if reviewer is None else f"{REVIEW_MODEL}:{reviewer}"
    decided = _Decisions()
    left = {answer.prompt_id: answer for answer in answers}
    for row in newest_rows(table_uri, answers, made_by):
        answer = left.pop(row["prompt_id"])
        what = decide(row, answer, answer.checked or confirm_unchanged, unchanged_iou, reviewer is not None)
        if what in DECISIONS:
            decided.counts[what] += 1
        else:
            decided.problems.append(f"{answer.where}: prompt {answer.prompt_id}: {what}")
        if what in get_args(Verdict):
            decided.rows.append(reviewed_row(row, answer, what))
    decided.problems += [
        f"{answer.where}: prompt {answer.prompt_id}: expected a prompt of {table_uri}, found none"
        for answer in left.values()
    ]
    report = ReviewReport(
        corrected=decided.counts["corrected"],
        confirmed=decided.counts["confirmed"],
        rejected=decided.counts["rejected"],
        unchanged=decided.counts["unchanged"],
        already=decided.counts["already"],
        problems=tuple(decided.problems),
    )
    if dry_run or not decided.rows:
        return report
    if not force:
        check_no_night(table_uri, parent)
    manifest = _manifest(table_uri, parent, decided.rows, made_by)
    _publish(manifest, decided.rows)
    return replace(report, run_id=manifest.run_id)


def reviewed_masks(table_uri: str) -> pa.Table:
    """Return what people decided beside what the model had predicted, as labels for calibration and training.

    The table has a row for each prompt whose current row is reviewed: its prompt and image; `verdict`;
    `true_mask_size` and `true_mask_counts` (null for a rejected prompt); from the newest row that a model made,
    `mask_size`, `mask_counts`, `area`, the scores, `second_pass`, `view`, `model_route` and the model; `jitter_count`,
    `jitter_scale`, `stability_offset` and `tiles` of that row's run; and `true_iou`, the IoU of the two masks (0 for a
    rejected prompt). Raises what `stable_sam.table.query.query` raises.
    """
    from_model = ("mask_size", "mask_counts", "area", *FROM_MODEL, "second_pass", "view", "model_id", "weights_sha256",
                  "dtype", "config_hash")  # fmt: skip
    from_review = ("prompt_id", "image_id", "image_uri", "category_id", "category", "iscrowd", "score", "box_xyxy",
                   "points_xy", "point_labels", "verdict")  # fmt: skip
    table = query(
        table_uri,
        f"""
        SELECT {", ".join(f"m.{name}" for name in from_review)},
               m.mask_size AS true_mask_size, m.mask_counts AS true_mask_counts,
               {", ".join(f"h.{name}" for name in from_model)}, h.route AS model_route, r.jitter_count,
               r.jitter_scale, r.stability_offset, r.tiles
        FROM masks m JOIN ({MADE_BEFORE_REVIEW}) h USING (prompt_id) LEFT JOIN runs r ON r.run_id = h.run_id
        WHERE m.status = 'reviewed'
        ORDER BY m.image_uri, m.prompt_id
        """,
    )
    masks = (table[name].to_pylist() for name in ("mask_size", "mask_counts", "true_mask_size", "true_mask_counts"))
    ious = [mask_iou(*both) or 0.0 for both in zip(*masks, strict=True)]
    return table.append_column("true_iou", pa.array(ious, pa.float64()))


def _check_rejected(table_uri: str, answers: Sequence[Answer], max_fraction: float) -> None:
    rejected = sum(answer.mask is None for answer in answers)
    if len(answers) < _FEW_ANSWERS or rejected <= max_fraction * len(answers):
        return
    lost = sum(answer.lost_id for answer in answers)
    raise InputError(
        f"{table_uri}: expected files that hold most of the {len(answers)} masks that were sent, got deletions of "
        f"{rejected}; nothing was imported; "
        + (
            f"{lost} masks came back without their prompt_id, and a tool that loses these may lose masks, too: look "
            "which masks its files lack"
            if lost
            else f"if people really deleted them, set --max-rejected (now {max_fraction:g}) to 1"
        )
    )


def _manifest(table_uri: str, parent: RunInfo, rows: Sequence[tuple[Prompt, RefinedMask]], made_by: str) -> RunManifest:
    """Return the manifest of the import's run, which continues `parent` and leaves all other rows as they are."""
    measured = {name: getattr(parent, name) for name in ("jitter_count", "jitter_scale", "stability_offset")}
    known = {name: value for name, value in measured.items() if value is not None}
    config = RunConfig.from_dict({"refiner": known | tile_config(parent.tiles)})
    content = [[mask.prompt_id, mask.verdict, mask.mask_counts] for _, mask in rows]
    content_hash = json_sha256([made_by, stable_sam.__version__, content])
    current = parent.current_prompts
    if current is None:
        current = query(table_uri, "SELECT count(*) AS n FROM masks").to_pylist()[0]["n"]
    return RunManifest(
        run_id=json_sha256([content_hash, parent.run_id])[:ID_DIGITS],
        parent_run_id=parent.run_id,
        revision=parent.revision + 1,
        content_hash=content_hash,
        source_hash=parent.source_hash,
        # An import reads nothing from the source, so the next night has the same changes to find as before.
        source_version=parent.source_version,
        annotations_uri=parent.annotations_uri,
        images_uri=parent.images_uri,
        output_uri=table_uri,
        config=config,
        model=ModelIdentity(model_id=made_by, weights_sha256="", dtype=""),
        config_hash=parent.config_hash,
        code_version=stable_sam.__version__,
        logical_date=None,
        changes=Changes(unchanged=current),
        current_prompts=current,
        prompts=len(rows),
        images=len({prompt.image_uri for prompt, _ in rows}),
        shards=(),
        tombstones=(),
    )


def _publish(manifest: RunManifest, rows: Sequence[tuple[Prompt, RefinedMask]]) -> None:
    """Commit the rows in shards and publish them as one version; a killed import is resumed by starting it again."""
    chunks = [rows[start : start + _SHARD_ROWS] for start in range(0, len(rows), _SHARD_ROWS)]
    tables = (_shard(chunk) for chunk in chunks)
    manifest = replace(manifest, shards=write_shards(tables, manifest.folder_uri, manifest.content_hash))
    create_bytes(manifest.uri, manifest.to_json().encode())
    for shard, chunk in zip(manifest.shards, chunks, strict=True):
        write_part(manifest, shard, chunk)
    publish(manifest)


def _shard(rows: Sequence[tuple[Prompt, RefinedMask]]) -> tuple[pa.Table, int]:
    plain = [
        {name: value for name, value in asdict(prompt).items() if name in SHARD_SCHEMA.names} for prompt, _ in rows
    ]
    return rows_to_table(plain, SHARD_SCHEMA), len({prompt.image_uri for prompt, _ in rows})


def check_no_night(table_uri: str, newest: RunInfo) -> None:
    """Raise `ConfigError` when a run that continues `newest` wrote something within the last `STILL` minutes.

    Such a run could not be published after an import, because it would no longer continue the newest run.
    """
    touched: dict[str, datetime] = {}
    for file in iter_files(join(table_uri, "_runs")):
        run_id = file.path.partition("/")[0]
        touched[run_id] = max(file.modified, touched.get(run_id, file.modified))
    now = datetime.now(UTC)
    for run_id, when in touched.items():
        if run_id != newest.run_id and when > now - STILL and _continues(table_uri, run_id, newest):
            minutes = max(0, int((now - when).total_seconds() // 60))
            raise ConfigError(
                f"{table_uri}: run {run_id} is being made (it wrote {minutes} min ago) and could not be published "
                "after an import: import when it has ended, or import by force and start that run again"
            )


def _continues(table_uri: str, run_id: str, newest: RunInfo) -> bool:
    try:
        manifest = read_manifest(join(table_uri, "_runs", run_id, "manifest.json"))
    except StorageError:
        return False  # the manifest is of another version of the code, or not written yet
    return manifest.parent_run_id == newest.run_id and not is_review(manifest.model.model_id)
