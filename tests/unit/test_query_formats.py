"""`query` writes whatever SQL answers, or says in a line what it cannot."""

from __future__ import annotations

import csv
import io
import json

import duckdb
import pyarrow as pa
import pytest

from flows.commands.query import OutputFormat, _encode
from stable_sam.errors import InputError


def answer(sql: str) -> pa.Table:
    return duckdb.sql(sql).to_arrow_table()


def test_nested_values_are_json_in_csv() -> None:
    rows = answer(
        "SELECT [DATE '2020-01-01'] AS a, {'x': 1.5::DOUBLE, 'd': DATE '2020-01-01', 'n': 'nan'::DOUBLE} AS b"
    )
    (line,) = csv.DictReader(io.StringIO(_encode(rows, OutputFormat.csv).decode()))
    assert json.loads(line["a"]) == ["2020-01-01"]
    assert json.loads(line["b"]) == {"x": 1.5, "d": "2020-01-01", "n": None}


@pytest.mark.parametrize("form", [OutputFormat.csv, OutputFormat.json, OutputFormat.table])
@pytest.mark.parametrize("value", ["DATE '20000-01-01'", "TIMESTAMP '20000-01-01'", "DATE '0044-03-15 (BC)'"])
def test_dates_out_of_range_are_written(value: str, form: OutputFormat) -> None:
    assert _encode(answer(f"SELECT {value} AS a"), form)


@pytest.mark.parametrize("form", [OutputFormat.csv, OutputFormat.json, OutputFormat.table])
def test_within_a_list_they_are_one_line(form: OutputFormat) -> None:
    with pytest.raises(InputError, match="a date within it is out of range"):
        _encode(answer("SELECT [DATE '20000-01-01'] AS a"), form)
