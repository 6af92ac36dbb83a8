"""`stable-sam models`: list the base models, and download their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from stable_sam.bases import Base

app = typer.Typer(help="List the base models, and download their weights.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a base, as `stable-sam models` lists it.")]
Hq = Annotated[bool, typer.Option("--hq", help="The published HQ-SAM of this base instead of its weights.")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON, with addresses and hashes.")] = False,
) -> None:
    """List the base models: size, licence, and whether they and a plugin for them are on this machine."""
    if context.invoked_subcommand is not None:
        return
    from stable_sam.bases import BASES

    if as_json:
        import json

        typer.echo(json.dumps([_facts(base) for base in BASES.values()], indent=1))
        return
    from rich.console import Console

    from stable_sam.bases.cache import cache_folder

    Console().print(_table(list(BASES.values())))
    typer.echo("\nhere, plugin: on this machine. HQ-SAM: the download of --hq. input: pixels.")
    typer.echo(f"stable-sam models get NAME downloads a base to {cache_folder()}")
    lacking = {base.name: base.lacks for base in BASES.values() if base.lacks is not None}
    for command in dict.fromkeys(lacking.values()):
        names = ", ".join(name for name, needed in lacking.items() if needed == command)
        typer.echo(f"{names} need one package more: {command}")


@app.command("get")
def get(name: Name, hq: Hq = False) -> None:
    """Download the published weights of a base to the cache folder, and check their size and SHA-256.

    A download that was interrupted continues where it stopped. The environment variable STABLE_SAM_MODELS moves the
    folder.
    """
    from stable_sam.bases.cache import published_file
    from stable_sam.bases.download import download
    from stable_sam.wording import file_size

    base = _base(name)
    published = published_file(base, hq=hq)
    with _progress(published.name) as show:
        path = download(published, show)
    typer.echo(f"{path}: {file_size(published.size)}, {base.licence}, SHA-256 {published.sha256[:16]} as published")
    if base.lacks is not None:
        typer.echo(f"{name} needs one package more: {base.lacks}")


@app.command("path")
def path(
    name: Name,
    hq: Hq = False,
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Where the plugin of this base belongs, to copy a trained one there.")
    ] = False,
) -> None:
    """Print where the file of a base lies in the cache folder, or where it will be."""
    from stable_sam.bases.cache import cached_path, plugin_path, published_file

    base = _base(name)
    published = published_file(base, hq=hq)
    typer.echo(plugin_path(base) if plugin else cached_path(published))


def _base(name: str) -> Base:
    from stable_sam.bases import BASES
    from stable_sam.errors import ConfigError

    if name not in BASES:
        raise ConfigError(f"NAME: expected one of {', '.join(BASES)}, got {name!r}")
    return BASES[name]


def _facts(base: Base) -> dict[str, Any]:
    from dataclasses import asdict

    from stable_sam.bases.cache import cached_file, cached_plugin

    return asdict(base) | {
        "here": base.file is None or cached_file(base.file) is not None,
        "plugin": base.file is None or cached_plugin(base) is not None,
        "hq_here": base.hq_file is not None and cached_file(base.hq_file) is not None,
    }


def _table(bases: list[Base]) -> Table:
    from rich.table import Table

    from stable_sam.wording import file_size

    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("base", "model", "params", "download", "licence", "input", "here", "plugin", "HQ-SAM"):
        table.add_column(column, justify="right" if column in ("params", "download", "input") else "left", no_wrap=True)
    for base in bases:
        facts = _facts(base)
        table.add_row(
            base.name,
            base.title,
            f"{base.parameters / 1e6:.1f} M",
            "bundled" if base.file is None else file_size(base.file.size),
            base.licence,
            str(base.input_side),
            "yes" if facts["here"] else "no",
            "yes" if facts["plugin"] else "no",
            "here" if facts["hq_here"] else "-" if base.hq_file is None else file_size(base.hq_file.size),
        )
    return table


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, and a line for every tenth elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    tenths = 0

    def line(done: int, total: int) -> None:
        nonlocal tenths
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            console.print(f"{name}: {tenths}0 %", highlight=False)

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name)

        def draw(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield draw if console.is_terminal else line
