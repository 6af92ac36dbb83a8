"""Imports reviewed masks from the files of a tool into the table: see docs/review.md."""

from __future__ import annotations

from dataclasses import replace

from stable_sam.errors import ConfigError, shown
from stable_sam.formats.registry import REVIEW_READERS
from stable_sam.formats.review_files import open_files
from stable_sam.formats.review_records import collect
from stable_sam.review.answers import MAX_REJECTED_FRACTION, ReviewReport, import_answers


def import_review(
    table_uri: str,
    from_uri: str,
    form: str,
    *,
    sent_uri: str | None = None,
    reviewer: str | None = None,
    confirm_unchanged: bool = False,
    unchanged_iou: float = 1.0,
    max_rejected_fraction: float = MAX_REJECTED_FRACTION,
    dry_run: bool = False,
    force: bool = False,
) -> ReviewReport:
    """Read the files at `from_uri` (a file or a folder) and publish what people decided, as `import_answers` does.

    `form` is a format of `REVIEW_READERS`. `sent_uri` is the folder of the export, or its list of what was sent, when
    that list does not lie beside the files. The other arguments are those of `import_answers`.

    Raises `ConfigError` for an unknown format, `AnnotationError` for a file that is not of this format, and what
    `import_answers` raises.
    """
    if form not in REVIEW_READERS:
        raise ConfigError(f"--format: expected {', '.join(REVIEW_READERS)}, got {form!r}")
    if not 0 < unchanged_iou <= 1:
        raise ConfigError(f"unchanged IoU: expected more than 0 and at most 1, got {unchanged_iou:g}")
    answers, problems = collect(REVIEW_READERS[form](open_files(from_uri, sent_uri)))
    report = import_answers(
        table_uri,
        answers,
        reviewer=reviewer,
        confirm_unchanged=confirm_unchanged,
        unchanged_iou=unchanged_iou,
        max_rejected_fraction=max_rejected_fraction,
        dry_run=dry_run,
        force=force,
    )
    return replace(report, problems=tuple(map(shown, (*problems, *report.problems))))
