"""Sum up a table as Markdown for Prefect, which cannot show the HTML report itself."""

from __future__ import annotations

import html

from stable_sam.report.figures import Figures, figures
from stable_sam.scores import SCORES
from stable_sam.table.query import connected, rows_of
from stable_sam.table.views import OUTCOME, OUTCOMES, WORST_FIRST
from stable_sam.wording import counted

WORST = 10
"""Number of the worst prompts that are listed."""
CATEGORIES = 10
"""Number of the largest categories that are listed."""


def digest(table_uri: str) -> str:
    """Return counts and medians by category, and the worst prompts with their reasons; raises `StorageError`."""
    sql = f"""
        SELECT prompt_id, category, image_uri, {OUTCOME} AS outcome, coalesce(error, route_reason) AS reason
        FROM masks WHERE status <> 'reviewed' ORDER BY {WORST_FIRST} LIMIT {WORST}
    """
    with connected(table_uri) as connection:
        found, rows = figures(connection), rows_of(connection, sql)
    worst = [
        [row["prompt_id"], row["category"] or "", row["image_uri"].rpartition("/")[2], row["outcome"], row["reason"]]
        for row in rows
    ]
    return "\n\n".join(
        [
            f"{counted(found.total, 'prompt')}: "
            + ", ".join(f"{found.counts[one]:,} {one}" for one in reversed(OUTCOMES)),
            _by_category(found),
            "The worst prompts:",
            _table(["prompt", "category", "image", "outcome", "reason"], worst),
        ]
    )


def _by_category(found: Figures) -> str:
    [categories] = [group for group in found.groups if group.by == "category"]
    outcomes = [one for one in reversed(OUTCOMES) if found.counts[one]]
    medians = [f"median {score.label}" for score in SCORES if score.column in found.medians]
    header = ["category", "prompts", *outcomes, *medians]
    lines = [
        [
            row["name"] or "none",
            f"{row['prompts']:,}",
            *(f"{row[one]:,}" for one in outcomes),
            *("-" if row[name] is None else f"{row[name]:.3f}" for name in found.medians),
        ]
        for row in categories.rows[:CATEGORIES]
    ]
    return _table(header, lines)


def _table(header: list[str], lines: list[list[str | None]]) -> str:
    rows = [[_cell(text) for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def _cell(text: str | None) -> str:
    """`text` escaped, so that it can neither leave its cell nor be read as markup."""
    escaped = html.escape(" ".join((text or "").split()))
    return "".join(f"\\{letter}" if letter in "\\|`*_[]~" else letter for letter in escaped)
