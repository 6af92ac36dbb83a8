"""`stable-sam query` over a published table, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError, NotFoundError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.runs.commits import write_part
from stable_sam.runs.manifest import read_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.table.query import query


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("query")
    (root / "images").mkdir()
    manifest = plan_run(
        [
            Prompt(prompt_id=f"{k:03}", image_id="1", image_uri="1.jpg", category='a "cat", [bold]' if k else None)
            for k in range(250)
        ],
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(root / "images"),
            output_uri=str(root / "table"),
            config=RunConfig(),
        ),
        ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32"),
    )
    assert manifest is not None
    for shard in manifest.shards:
        rows = [
            (p, RefinedMask(prompt_id=p.prompt_id, status="ok", mask_size=(3, 4), prompt_stability=0.5, route="review"))
            for p in read_shard(shard.uri)
        ]
        write_part(manifest, shard, rows)
    publish(manifest)
    return manifest.output_uri


def ask(table: str, sql: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["query", "--table", table, sql, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_table_is_the_default(table: str) -> None:
    shown = ask(table, "SELECT route, count(*) AS n, avg(prompt_stability) AS mean FROM masks GROUP BY route")
    for expected in ("route", "review", "250", "0.5"):
        assert expected in shown


def test_markup_in_cells_is_text(table: str) -> None:
    assert 'a "cat", [bold]' in ask(table, "SELECT category FROM masks WHERE prompt_id = '001'")


def test_control_characters_in_cells_are_shown_as_such(table: str) -> None:
    assert r"a\x1b[2J\nb" in ask(table, "SELECT 'a' || chr(27) || '[2J' || chr(10) || 'b' AS text")


def test_long_results_say_that_there_is_more(table: str) -> None:
    shown = ask(table, "SELECT prompt_id FROM masks ORDER BY prompt_id")
    assert "200 of 250 rows" in shown
    assert "│ 199" in shown
    assert "│ 200" not in shown


def test_csv_has_every_row_and_quotes(table: str) -> None:
    text = ask(table, "SELECT prompt_id, category, mask_size FROM masks ORDER BY prompt_id", "--format", "csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == 251
    assert rows[:3] == [
        ["prompt_id", "category", "mask_size"],
        ["000", "", "[3, 4]"],
        ["001", 'a "cat", [bold]', "[3, 4]"],
    ]


def test_json_is_json(table: str) -> None:
    sql = "SELECT prompt_id, 'nan'::DOUBLE AS nan, published_at FROM masks, runs ORDER BY prompt_id LIMIT 1"
    (row,) = json.loads(ask(table, sql, "--format", "json"))
    assert (row["prompt_id"], row["nan"]) == ("000", None)
    assert row["published_at"][:2] == "20"


def test_columns_of_one_name_are_all_there(table: str, tmp_path: Path) -> None:
    sql, path = "SELECT 1 AS n, 2 AS n, 3 AS n_2, 4 AS n", tmp_path / "rows.parquet"
    assert json.loads(ask(table, sql, "--format", "json")) == [{"n": 1, "n_3": 2, "n_2": 3, "n_4": 4}]
    ask(table, sql, "--format", "parquet", "--out", str(path))
    assert pq.read_table(path).to_pylist() == [{"n": 1, "n_3": 2, "n_2": 3, "n_4": 4}]


def test_the_table_may_lie_below_the_home_folder(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(table).parent))
    assert "250" in ask("~/table", "SELECT count(*) FROM masks")


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_out_writes_a_file(table: str, tmp_path: Path, form: str) -> None:
    path = tmp_path / "deep" / f"rows.{form}"
    assert ask(table, "SELECT prompt_id, mask_size FROM masks", "--format", form, "--out", str(path)) == ""
    if form == "parquet":
        assert pq.read_table(path).num_rows == 250
    else:
        assert b"prompt_id" in path.read_bytes()


def test_the_ending_of_the_file_says_the_format(table: str, tmp_path: Path) -> None:
    sql = "SELECT prompt_id FROM masks ORDER BY 1"
    for form in ("csv", "json", "parquet"):
        for name, options in {"asked.x": ("--format", form), f"told.{form.upper()}": ()}.items():
            ask(table, sql, *options, "--out", str(tmp_path / name))
        assert (tmp_path / "asked.x").read_bytes() == (tmp_path / f"told.{form.upper()}").read_bytes()
    for name in ("rows.txt", "rows", "rows.table", "a.csv/rows"):
        with pytest.raises(ConfigError, match=r"expected the ending .csv, .json or .parquet, or --format"):
            ask(table, sql, "--out", str(tmp_path / name))
        assert not (tmp_path / name).exists()


def test_memory_limit(table: str) -> None:
    sql = "SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'"
    (usual,) = query(table, sql).to_pylist()
    assert usual["value"] in ask(table, sql)
    assert "64.0 MiB" in ask(table, sql, "--memory-limit", "64MiB")


def test_parquet_does_not_go_to_the_terminal(table: str) -> None:
    with pytest.raises(ConfigError, match="expected --out FILE"):
        ask(table, "SELECT 1", "--format", "parquet")


@pytest.mark.parametrize("there", [True, False])
def test_no_table_there(tmp_path: Path, there: bool) -> None:
    place = tmp_path if there else tmp_path / "nothing"
    with pytest.raises((NotFoundError, StorageError), match=f"^{place}: expected a masks table"):
        ask(str(place), "SELECT 1")
    assert not (tmp_path / "nothing").exists()
