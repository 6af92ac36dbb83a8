"""`stable-sam query`: run SQL on the masks table."""

from __future__ import annotations

import enum
import io
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Table
from stable_sam.errors import ConfigError, InputError, shown
from stable_sam.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 200
"""Most rows that are shown in a terminal; the other formats write every row."""
SHOWN_CHARACTERS = 60
"""Most characters of one cell in the terminal; the run lengths of a mask can be thousands."""


class OutputFormat(enum.StrEnum):
    """Formats in which the rows of a query are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def query(
    table: Table,
    sql: Annotated[
        str | None,
        typer.Argument(
            metavar="SQL",
            help="One SQL statement on the views masks (the current rows), history, runs and others (see --views).",
        ),
    ] = None,
    form: Annotated[
        OutputFormat | None,
        typer.Option(
            "--format",
            help="Format of the rows; json is a list of objects. The default is the ending of --out, or a drawn table.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="File to write the rows to (path or URI), such as rows.csv, rows.json or rows.parquet. By default "
            "they are printed."
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="Ask the table as it was then: a run_id, a version, or an ISO date or time (UTC).", metavar="WHEN"
        ),
    ] = None,
    memory_limit: Annotated[
        str,
        typer.Option(help="Memory that the query may use before it writes to a temporary folder, such as 500MB."),
    ] = "2GB",
    views: Annotated[bool, typer.Option("--views", help="List the views and what each shows.")] = False,
) -> None:
    """Run SQL on the masks table.

    Example: `stable-sam query --table URI "SELECT route, count(*) FROM masks GROUP BY route"`
    """
    if views:
        _list_views()
        return
    if sql is None:
        raise ConfigError("query: expected an SQL statement, or --views to list the views, got none")
    form = form or _format_of(out)
    if form is OutputFormat.parquet and out is None:
        raise ConfigError("--format parquet: expected --out FILE as well, because a terminal cannot show Parquet")
    from stable_sam.storage.files import write_bytes
    from stable_sam.storage.uris import absolute_uri, check_outside
    from stable_sam.table.query import query as run_query

    if out is not None:
        check_outside(absolute_uri(out), absolute_uri(table))
    rows = run_query(absolute_uri(table), sql, as_of=as_of, memory_limit=memory_limit)
    if out is not None:
        write_bytes(out, _encode(rows, form))
        typer.echo(f"{counted(rows.num_rows, 'row')} written to {out}", err=True)
    elif form is OutputFormat.table:
        _show(rows)
    else:
        typer.echo(_encode(rows, form), nl=False)


def _format_of(out: str | None) -> OutputFormat:
    """Return the format that the ending of the file `out` names, so that no file holds a drawn table by accident."""
    if out is None:
        return OutputFormat.table
    for form in (OutputFormat.csv, OutputFormat.json, OutputFormat.parquet):
        if out.lower().endswith(f".{form}"):
            return form
    raise ConfigError(f"--out {out}: expected the ending .csv, .json or .parquet, or --format, got neither")


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
    """Rename a second column `n` to `n_2`, because JSON and most readers of Parquet take each name only once."""
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
    """The rows as CSV (RFC 4180), with lists as JSON and null as an empty field."""
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows.column_names)
    for values in _values(rows):
        writer.writerow([json.dumps(_plain(v), default=str) if isinstance(v, (list, dict)) else v for v in values])
    return text.getvalue().encode()


def _values(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows as tuples and not as dicts, because two columns of a query may have one name."""
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
    """`value` with null in the place of NaN and infinity, which JSON does not know."""
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
        console.print(
            f"{SHOWN_ROWS} of {rows.num_rows:,} rows are shown; --format csv, json or parquet writes all of them"
        )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown(text, SHOWN_CHARACTERS)
