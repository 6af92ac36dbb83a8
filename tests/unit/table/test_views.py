"""The views, the functions, the table from Python and other readers, over a table whose masks the test draws itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

import stable_sam.table.masks_table
from flows.cli import app
from stable_sam.errors import ConfigError, InputError
from stable_sam.records import Prompt
from stable_sam.rle import encode_mask
from stable_sam.table.current import CURRENT
from stable_sam.table.query import query
from stable_sam.table.views import VIEWS, documented
from tests.report_table import answer, picture, publish_night


def filled(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((10, 20), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two sources on one picture; then one box is moved and a prompt comes in its place, another is withdrawn."""
    root = tmp_path_factory.mktemp("views")
    uri = picture(root / "images" / "a.png", 20, 10)

    def prompt(prompt_id: str, source: str | None, category: str, box: tuple[float, float, float, float]) -> Prompt:
        attributes = None if source is None else f'{{"annotation_source": "{source}"}}'
        return Prompt(
            prompt_id=prompt_id, image_id="1", image_uri=uri, box_xyxy=box, category=category, attributes=attributes
        )

    prompts = [
        prompt("a", "yolo", "cat", (0, 0, 5, 5)),
        prompt("b", "rcnn", "cat", (0, 0, 5, 5)),
        prompt("c", "rcnn", "dog", (10, 0, 15, 5)),
        prompt("d", None, "dog", (0, 0, 20, 10)),
    ]
    answers = [
        answer("a", filled(0, 0, 5, 5), quality=0.9, route="accept", route_reason="quality 0.900 >= 0.850"),
        answer("b", filled(0, 0, 4, 5), quality=0.5, route_reason="quality 0.500 < 0.850"),
        answer("c", filled(11, 0, 15, 5), quality=0.2, route="reject"),
        answer("d", status="failed", error="no picture", route="reject"),
    ]
    publish_night(root, prompts, answers, "2026-11-21")
    moved = [replace(prompts[0], box_xyxy=(0, 0, 6, 5)), *prompts[1:3], prompt("e", "yolo", "cat", (1, 1, 3, 3))]
    answers = [answer("a", filled(0, 0, 5, 4), quality=0.7, gain_over_box=-0.1),
               answer("e", filled(1, 1, 3, 3), quality=0.6)]  # fmt: skip
    return publish_night(root, moved, answers, "2026-11-22")


def ask(table: str, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = query(table, sql).to_pylist()
    return rows


def test_by_category_source_route_and_night(table: str) -> None:
    assert ask(table, "SELECT category, prompts, accept, review, reject, median_quality FROM by_category") == [
        {"category": "cat", "prompts": 3, "accept": 0, "review": 3, "reject": 0, "median_quality": 0.6},
        {"category": "dog", "prompts": 1, "accept": 0, "review": 0, "reject": 1, "median_quality": 0.2},
    ]
    assert ask(table, "SELECT median_gain_over_box AS gain FROM by_category") == [{"gain": -0.1}, {"gain": None}]
    assert ask(table, "SELECT source, prompts FROM by_source") == [
        {"source": "rcnn", "prompts": 2},
        {"source": "yolo", "prompts": 2},
    ]
    assert ask(table, "SELECT outcome, share FROM by_route") == [
        {"outcome": "reject", "share": 0.25},
        {"outcome": "review", "share": 0.75},
    ]
    assert ask(table, "SELECT logical_date, prompts FROM by_night") == [
        {"logical_date": "2026-11-21", "prompts": 2},
        {"logical_date": "2026-11-22", "prompts": 2},
    ]


def test_worst_first_and_why(table: str) -> None:
    assert [row["prompt_id"] for row in ask(table, "SELECT prompt_id FROM worst LIMIT 3")] == ["c", "b", "e"]
    reasons = query(table, "SELECT * FROM reasons", as_of="0").to_pylist()
    assert {"outcome": "accept", "reason": "quality # >= #", "prompts": 1} in reasons
    assert {"outcome": "failed", "reason": "no picture", "prompts": 1} in reasons


def test_what_the_newest_run_changed_and_the_one_before(table: str) -> None:
    columns = "prompt_id, change, route_before, route, prompt_changed, mask_iou, area_before, area, quality_before"
    assert [tuple(row.values()) for row in ask(table, f"SELECT {columns} FROM changes ORDER BY prompt_id")] == [
        ("a", "mask changed", "accept", "review", True, 0.8, 25, 20, 0.9),
        ("d", "withdrawn", "reject", None, False, None, None, None, None),
        ("e", "new", None, "review", False, None, None, 4, None),
    ]
    before = query(table, "SELECT DISTINCT change FROM changes", as_of="0").to_pylist()
    assert before == [{"change": "new"}]


def test_disagreement_of_box_and_mask(table: str) -> None:
    rows = ask(table, "SELECT prompt_id, box_iou(box_xyxy, mask_box_xyxy) AS iou FROM box_disagreement")
    assert [row["prompt_id"] for row in rows] == ["a", "b", "c", "e"]
    assert [row["iou"] for row in rows] == pytest.approx([20 / 30, 0.8, 0.8, 1.0])


def test_disagreement_of_detectors_on_one_image(table: str) -> None:
    rows = ask(table, "SELECT source, prompt_id, other_prompt_id, mask_iou FROM source_disagreement")
    assert [tuple(row.values()) for row in rows] == [
        ("rcnn", "c", None, 0.0),
        ("yolo", "e", "b", pytest.approx(4 / 20)),
        ("yolo", "a", "b", pytest.approx(16 / 24)),
        ("rcnn", "b", "a", pytest.approx(16 / 24)),
    ]


def test_drift(table: str) -> None:
    rows = ask(table, "SELECT revision, prompts, accept_share, failed_share, median_quality FROM drift")
    assert [tuple(row.values()) for row in rows] == [(1, 4, 0.25, 0.25, 0.5), (2, 2, 0.0, 0.0, pytest.approx(0.65))]


def test_medians_of_a_large_table_are_estimated_in_little_memory(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many = "SELECT score_median(x) AS median FROM (SELECT (range * 7919 % 3000000) / 3e6 AS x FROM range(3000000))"
    with pytest.raises(ConfigError, match="memory limit of 60MB"):
        query(table, many, memory_limit="60MB")
    exact = ask(table, "SELECT * FROM by_category")
    monkeypatch.setattr("stable_sam.table.query.EXACT_MEDIANS_ROWS", 6)  # of the seven that the table has
    (found,) = query(table, many, memory_limit="60MB").to_pylist()
    assert found["median"] == pytest.approx(0.5, abs=1e-3)
    assert ask(table, "SELECT * FROM by_category") == exact, "of few rows they are exact all the same"


def test_of_a_join_the_right_side_is_held(table: str) -> None:
    """DuckDB knows no number of rows here, and held the millions of the left side to look the runs up."""
    with stable_sam.table.open(table) as masks:
        plan = masks.sql("SELECT * FROM masks LEFT JOIN runs USING (run_id)").explain()
    assert "Join Type: LEFT" in plan
    assert "Join Type: RIGHT" not in plan


def test_every_view_is_listed_and_answers(table: str) -> None:
    result = CliRunner().invoke(app, ["query", "--table", table, "--views"], catch_exceptions=False)
    listed = [line.split()[0] for line in result.stdout.splitlines()]
    assert listed == ["masks", "history", "runs", *(name for name in VIEWS if not name.startswith("_"))]
    page = Path(__file__).parents[3] / "docs" / "querying.md"
    assert result.stdout in page.read_text()
    with stable_sam.table.open(table) as opened:
        for name in documented():
            assert opened.arrow(f"SELECT * FROM {name.upper()}").num_rows > 0
    with pytest.raises(ConfigError, match="^query: expected an SQL statement, or --views"):
        CliRunner().invoke(app, ["query", "--table", table], catch_exceptions=False)


GOOD = encode_mask(filled(0, 0, 5, 5)).counts


@pytest.mark.parametrize(
    ("size", "counts"),
    [("[1, 1]", "x'y"), ("[10, 20]", "1"), ("[10, 20]", "~~~"), ("[10]", GOOD), ("[10, 20]", "a" * 40)],
)
def test_mask_iou_of_what_is_no_mask(table: str, size: str, counts: str) -> None:
    quoted = counts.replace("'", "''")
    with pytest.raises(InputError, match="^SQL: "):
        ask(table, f"SELECT mask_iou({size}, '{quoted}', {size}, '{GOOD}')")


@pytest.mark.parametrize("size", ["[0, 0]", "[-1, -1]", "[65536, 65536]", "[20, 10]", "NULL"])
def test_mask_iou_of_other_sizes_is_null(table: str, size: str) -> None:
    assert ask(table, f"SELECT mask_iou({size}, '{GOOD}', [10, 20], '{GOOD}') AS iou") == [{"iou": None}]
    assert ask(table, "SELECT mask_iou([0, 0], '', [0, 0], '') AS iou") == [{"iou": None}]


def test_mask_iou_of_many_rows(table: str) -> None:
    sql = f"""
        SELECT mask_iou(CASE WHEN n % 3 > 0 THEN [10, 20] END, '{GOOD}', [10, 20 + n % 2]::INT[], '{GOOD}') AS iou
        FROM range(6000) numbers(n) ORDER BY n
    """
    assert [row["iou"] for row in ask(table, sql)] == [1.0 if n % 3 and not n % 2 else None for n in range(6000)]


def test_from_python(table: str) -> None:
    with stable_sam.table.open(table) as opened:
        assert opened.masks.filter("category = 'cat'").aggregate("count(*)").fetchall() == [(3,)]
        assert sorted(opened.masks.aggregate("category, count(*)").fetchall()) == [("cat", 3), ("dog", 1)]
        assert len(opened.history.fetchall()) == 7
        assert [row[0] for row in opened.runs.project("revision").order("revision").fetchall()] == [1, 2]
        assert opened.arrow("SELECT prompt_id FROM masks ORDER BY 1").column(0).to_pylist() == ["a", "b", "c", "e"]
        with pytest.raises(InputError, match="^SQL: "):
            opened.sql("SELECT * FROM read_text('/etc/hostname')")
        with pytest.raises(InputError, match="^SQL: expected a query"):
            opened.sql("")
    with pytest.raises(duckdb.Error):
        opened._connection.sql("SELECT 1")
    with stable_sam.table.open(table, as_of="0") as earlier:
        assert earlier.arrow("SELECT prompt_id FROM masks").num_rows == 4


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_package_that_is_not_installed_is_named(table: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_sam.table.masks_table, "find_spec", lambda name: None)
    with (
        stable_sam.table.open(table) as opened,
        pytest.raises(ConfigError, match=f"^{package}: expected this package for a DataFrame, found none"),
    ):
        getattr(opened, package)("SELECT 1")
    assert package not in sys.modules


def test_plain_delta_and_parquet_readers_see_the_same_rows(table: str) -> None:
    expected = ask(table, "SELECT * FROM masks ORDER BY prompt_id")
    delta = DeltaTable(table)
    with duckdb.connect() as plain:
        plain.register("history", delta.to_pyarrow_dataset())
        assert plain.sql(f"SELECT * FROM ({CURRENT}) ORDER BY prompt_id").to_arrow_table().to_pylist() == expected
    # Without SQL: Arrow alone, over the Parquet files that the log names.
    files = [str(Path(uri)) for uri in delta.file_uris()]
    rows = pa.concat_tables(pq.read_table(file) for file in files)
    newest = {row["prompt_id"]: row for row in rows.sort_by("revision").to_pylist()}
    assert [newest[key] for key in sorted(newest) if newest[key]["status"] != "withdrawn"] == expected
