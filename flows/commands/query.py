"""`stable-sam query`: SQL over the masks table."""

from __future__ import annotations

import enum
import io
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stable_sam.errors import ConfigError, InputError, shown

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 200
"""A terminal is no place for more; the other formats write every row."""
SHOWN_CHARACTERS = 60
"""Of one cell in the terminal: run lengths can be thousands."""


class OutputFormat(enum.StrEnum):
    """How the rows are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def query(
    table: Annotated[str, typer.Option(help="The URI given to refine as --output.")],
    sql: Annotated[
        str | None, typer.Argument(help="One statement; views: masks (current rows), history, runs and more (--views).")
    ] = None,
    form: Annotated[OutputFormat, typer.Option("--format", help="json: a list of objects.")] = OutputFormat.table,
    out: Annotated[str | None, typer.Option(help="File to write, local or s3://; terminal if not given.")] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="What readers saw then: a run_id, a version, or an ISO date or timestamp (UTC).", metavar="WHEN"
        ),
    ] = None,
    memory_limit: Annotated[
        str, typer.Option(help="What the query may hold before it spills to a temporary folder, such as 500MB.")
    ] = "2GB",
    views: Annotated[bool, typer.Option("--views", help="List the views and what each says.")] = False,
) -> None:
    """Ask the masks table: stable-sam query --table URI "SELECT route, count(*) FROM masks GROUP BY route"."""
    if views:
        _list_views()
        return
    if sql is None:
        raise ConfigError("query: expected a statement, or --views for what can be asked")
    if form is OutputFormat.parquet and out is None:
        raise ConfigError("--format parquet: expected --out FILE, a terminal cannot show it")
    from stable_sam.storage.files import absolute_uri, write_bytes
    from stable_sam.table.query import query as run_query

    rows = run_query(absolute_uri(table), sql, as_of=as_of, memory_limit=memory_limit)
    if out is not None:
        write_bytes(out, _encode(rows, form))
        typer.echo(f"{rows.num_rows} rows written to {out}", err=True)
    elif form is OutputFormat.table:
        _show(rows)
    else:
        typer.echo(_encode(rows, form), nl=False)


def _list_views() -> None:
    from stable_sam.table.views import documented

    meanings = documented()
    for name, meaning in meanings.items():
        typer.echo(f"{name:<{max(map(len, meanings))}}  {meaning}")


def _encode(rows: pa.Table, form: OutputFormat) -> bytes:
    match form:
        case OutputFormat.parquet:
            import pyarrow.parquet as pq

            buffer = io.BytesIO()
            pq.write_table(rows.rename_columns(_different(rows.column_names)), buffer, compression="zstd")
            return buffer.getvalue()
        case OutputFormat.csv:
            return _csv(rows)
        case OutputFormat.json:
            names = _different(rows.column_names)
            plain = [_plain(dict(zip(names, values, strict=True))) for values in _values(rows)]
            return (json.dumps(plain, default=str) + "\n").encode()
        case OutputFormat.table:
            return _rendered(rows)


def _different(names: list[str]) -> list[str]:
    """A second column `n` becomes `n_2`: an object has each name once, and so have most readers of Parquet."""
    taken, different = set(names), []
    for index, name in enumerate(names):
        new, number = name, 1
        while name in names[:index] and new in taken:
            number += 1
            new = f"{name}_{number}"
        taken.add(new)
        different.append(new)
    return different


def _csv(rows: pa.Table) -> bytes:
    """RFC 4180; lists as JSON, nothing for null."""
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows.column_names)
    for values in _values(rows):
        writer.writerow([json.dumps(_plain(v), default=str) if isinstance(v, (list, dict)) else v for v in values])
    return text.getvalue().encode()


def _values(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Row by row; not as dicts, because two columns of a query may have one name."""
    for batch in rows.to_batches(max_chunksize=10_000):
        yield from zip(*map(_of_column, batch.columns), strict=True)


def _of_column(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # Python knows the years 1 to 9999
        try:
            values = column.cast("string").to_pylist()
        except pa.ArrowException as error:
            raise InputError(f"SQL: {error}: a date within it is out of range; cast it to VARCHAR") from None
    return values


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _show(rows: pa.Table) -> None:
    from rich.console import Console

    _print_table(rows, Console())


def _rendered(rows: pa.Table) -> bytes:
    from rich.console import Console

    text = io.StringIO()
    _print_table(rows, Console(file=text))
    return text.getvalue().encode()


def _print_table(rows: pa.Table, console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.width = 10_000
    shown = Table(*rows.column_names)
    for values in _values(rows.slice(0, SHOWN_ROWS)):
        shown.add_row(*(Text(_cell(value)) for value in values))
    console.print(shown)
    if rows.num_rows > SHOWN_ROWS:
        console.print(f"{SHOWN_ROWS} of {rows.num_rows} rows; --format csv, json or parquet writes all of them")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown(text, SHOWN_CHARACTERS)
