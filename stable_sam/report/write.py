"""Write the HTML report of a masks table: one page that needs no other file, no server and no network."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from stable_sam.config import RunConfig
from stable_sam.report.entries import entries
from stable_sam.report.explanations import explanations
from stable_sam.report.figures import figures
from stable_sam.report.pictures import pictures
from stable_sam.report.risk import risk_coverage
from stable_sam.report.selection import select_rows
from stable_sam.scores import GOOD_IOU, IN_UNIT, SCORES
from stable_sam.storage.files import write_bytes
from stable_sam.table.query import connected
from stable_sam.wording import counted

SCRIPTS = ("masks.js", "drawing.js", "gallery.js", "large_view.js", "keys.js")
"""The scripts of the page, in the order in which they run."""
GALLERY_PROMPTS = 2000
"""Most prompts in the gallery unless another number is asked for."""


def write_report(
    table_uri: str,
    out_uri: str,
    *,
    limit: int = GALLERY_PROMPTS,
    images_max: int | None = None,
    explain: int = 0,
    seed: int = 0,
    config: RunConfig | None = None,
) -> int:
    """Write the report of a table to `out_uri`, and return the number of prompts in its gallery.

    The figures are those of the newest row of every prompt of the table. An image that cannot be read any more is
    replaced by the reason.

    limit: most prompts in the gallery. For a larger table they are a quarter drawn at random by `seed`, up to a quarter
    that the newest run changed most, and the worst.
    images_max: most images that are opened. Prompts on further images are left out, and the page says so.
    explain: number of prompts for which the page also shows what the decoder attends to: the worst that have a mask and
    were not accepted. With 0 neither the model nor torch is loaded.
    config: names the model for `explain`, which must be the one that made the masks; None takes the defaults.

    Raises `ConfigError` and `WeightsError` for the model, `NotFoundError` when there is no table, and `StorageError`.
    """
    with connected(table_uri) as connection:
        found, risk = figures(connection), risk_coverage(connection)
        rows = _of_first_images(select_rows(connection, limit=limit, seed=seed), images_max)
    seen = pictures(rows)
    explained = explanations(rows, explain, config or RunConfig())
    page = (
        _environment()
        .from_string(_file("page.html.jinja"))
        .render(
            table_uri=table_uri,
            labels={score.column: score.label for score in SCORES},
            figures=found,
            risk=risk,
            good_iou=GOOD_IOU,
            shown=len(rows),
            seed=seed,
            data=_json({"scores": _known_scores(), "entries": entries(rows, seen, explained)}),
            pictures=[*seen.webp, *explained.webp],
            style=Markup(_file("page.css")),
            script=(script := _script()),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        )
    )
    write_bytes(out_uri, page.encode("utf-8"))
    return len(rows)


def _known_scores() -> dict[str, dict[str, Any]]:
    """What the script of the page gets of each score, by its column."""
    return {
        score.column: {"label": score.label, "short": score.short, "higherIsBetter": score.higher_is_better}
        for score in IN_UNIT
    }


def _of_first_images(rows: list[dict[str, Any]], images_max: int | None) -> list[dict[str, Any]]:
    kept = set(list(dict.fromkeys(row["image_uri"] for row in rows))[:images_max])
    return [row for row in rows if row["image_uri"] in kept]


def _environment() -> Environment:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["counted"] = counted
    environment.filters["score"] = lambda value: "-" if value is None else f"{value:.3f}"
    environment.filters["percent"] = lambda part, whole: "-" if not whole else f"{100 * part / whole:.1f} %"
    return environment


def _file(name: str) -> str:
    return (files("stable_sam.report") / "page" / name).read_text(encoding="utf-8")


def _script() -> Markup:
    return Markup('\n"use strict";\n{\n' + "\n".join(_file(name) for name in SCRIPTS) + "}\n")


def _json(data: Any) -> Markup:
    """`data` as JSON inside a script element: nothing in it can end the element or begin another one."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
