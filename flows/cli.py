"""The command line: `stable-sam COMMAND`. Each command lives in `flows/commands`."""

from __future__ import annotations

import io
import os
import sys
import traceback

import typer

from flows.commands import (
    automations,
    backfill,
    calibrate,
    compact,
    demo_images,
    evaluate,
    explain,
    export,
    import_review,
    models,
    move_images,
    query,
    refine,
    refine_image,
    report,
    train,
    vacuum,
)
from flows.commands.one_image import PointCommand
from stable_sam.errors import ConfigError, StableSamError, shown
from stable_sam.storage.machine import explained_os_error

app = typer.Typer(
    name="stable-sam",
    help="Refine weak boxes and points to masks, each with a stability score, a quality and a route.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("refine")(refine.refine)
app.command("backfill")(backfill.backfill)
app.command("refine-image", cls=PointCommand)(refine_image.refine_image)
app.command("explain", cls=PointCommand)(explain.explain)
app.command("query")(query.query)
app.command("compact")(compact.compact)
app.command("move-images")(move_images.move_images)
app.command("vacuum")(vacuum.vacuum)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("import-review")(import_review.import_review)
app.command("calibrate")(calibrate.calibrate)
app.command("evaluate")(evaluate.evaluate)
app.command("automations")(automations.automations)
app.command("demo-images")(demo_images.demo_images)
app.add_typer(models.app, name="models")
app.add_typer(train.app, name="train")


def main() -> None:
    """Run the command line; a `StableSamError` or an error of the system becomes one line on stderr and exit code 2."""
    _use_utf8()
    try:
        _check_arguments()
        app()
    except StableSamError as error:
        message = str(error)
        _let_go(error)
    except OSError as error:
        message = shown(explained_os_error(error))
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 - the one place where errors meet the user
    sys.exit(2)


def _check_arguments() -> None:
    """Raise `ConfigError` for an argument whose bytes are not UTF-8: no table and no SQL can hold it."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{argument}: expected an argument in UTF-8, got one in another encoding") from None


def _let_go(error: BaseException | None) -> None:
    """Drop what the calls held that an error went through: Prefect keeps the error until the process ends, and DuckDB
    then complains, in many lines, about each of its objects that are still there."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _use_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has fewer letters than file names.

    The terminal keeps its own encoding; what it cannot show is replaced.
    """
    if sys.getfilesystemencoding() != "utf-8":
        variables = {"PYTHONUTF8": "1", "PYTHONIOENCODING": sys.stdout.encoding}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
