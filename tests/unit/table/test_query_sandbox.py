"""SQL of a stranger: it reads the table, and touches nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from stable_sam.errors import ConfigError, InputError
from stable_sam.table import query as query_module
from stable_sam.table.query import query
from stable_sam.table.schema import MASKS_SCHEMA

SECRET = "wJalrXUtnFEMI-not-a-real-key"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("sandbox")
    rows = [{"prompt_id": name, "revision": 1, "status": "ok"} for name in ("a", "b")]
    write_deltalake(str(root), pa.Table.from_pylist(rows, schema=MASKS_SCHEMA))
    return str(root)


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_module, "list_runs", lambda table: [])


ATTACKS = [
    "SELECT * FROM '{file}'",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_parquet('{folder}/*.parquet')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM 'https://example.invalid/x.parquet'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "COPY masks TO '{folder}/stolen.csv'",
    "COPY (SELECT 1) TO '.tmp/stolen.csv'",
    "SELECT 1; COPY masks TO '{folder}/stolen.csv'",
    "EXPORT DATABASE '{folder}/stolen'",
    "COPY (SELECT 1) TO ':memory:'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO ':memory:'",
    "COPY (PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b)) TO ':memory:'",
    "PREPARE p AS COPY (SELECT 1) TO ':memory:'; EXECUTE p",
    "EXPORT DATABASE ':memory:'",
    "ATTACH '{folder}/stolen.db'",
    "ATTACH '{file}' AS other (READ_ONLY)",
    "INSTALL httpfs",
    "LOAD '{file}'",
    "LOAD httpfs",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "SET temp_directory = '{folder}'",
    "SET allowed_directories = ['/']",
    "SET python_enable_replacements = true",
    "PRAGMA enable_profiling",
    "SELECT getenv('AWS_SECRET_ACCESS_KEY')",
    "SELECT * FROM SECRET",
    "SELECT * FROM table_uri",
    "CREATE MACRO steal() AS TABLE SELECT * FROM read_text('{file}'); SELECT * FROM steal()",
    "SELECT * FROM query('SELECT * FROM read_text(''{file}'')')",
    "DROP VIEW history; SELECT * FROM history",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_sql_reaches_nothing_but_the_table(
    attack: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "private.txt"
    file.write_text("private")
    with pytest.raises(InputError, match="^SQL: ") as raised:
        query(table, attack.format(file=file, folder=tmp_path))
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["private.txt"]


def test_no_setting_tells_a_secret(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    settings = query(table, "SELECT * FROM duckdb_settings()")
    assert SECRET not in str(settings.to_pylist())


def test_what_does_not_fit_into_memory_is_spilled_and_removed(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [row] = query(table, "SELECT value FROM duckdb_settings() WHERE name = 'temp_directory'").to_pylist()
    assert not Path(row["value"]).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_query_larger_than_its_memory_is_spilled(table: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # About 100 MB to sort, of rows that are not worth compressing.
    sql = "SELECT count(*) AS n FROM (SELECT sha256(k::VARCHAR) AS h FROM range(1_000_000) t(k) ORDER BY h OFFSET 1)"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert query(table, sql, memory_limit="40MB").to_pylist() == [{"n": 999_999}]
    assert list(tmp_path.iterdir()) == []


def test_a_query_that_cannot_be_spilled_says_so_in_one_line(table: str) -> None:
    sql = "SELECT list(sha256(k::VARCHAR)) AS all FROM range(1_000_000) t(k)"
    with pytest.raises(ConfigError, match=r"^SQL: expected a query for which .* 40MB is enough") as raised:
        query(table, sql, memory_limit="40MB")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("limit", ["", "0GB", "-1GB", "80%", "1000000TB", "1GB'", "lots"])
def test_a_memory_limit_is_a_number_and_a_unit(limit: str, table: str) -> None:
    with pytest.raises(ConfigError, match="^memory limit .*: expected a number and a unit"):
        query(table, "SELECT 1", memory_limit=limit)


def test_the_table_is_still_read(table: str) -> None:
    assert query(table, "SELECT count(*) AS n FROM history WHERE prompt_id = 'a'").to_pylist() == [{"n": 1}]
