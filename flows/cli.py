"""The command line: `stable-sam COMMAND`. Each command lives in `flows/commands`."""

from __future__ import annotations

import sys

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
    move_images,
    query,
    refine,
    refine_image,
    report,
    train,
    vacuum,
)
from flows.commands.one_image import PointCommand
from stable_sam.errors import StableSamError

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
app.add_typer(train.app, name="train")


def main() -> None:
    """Run the command line; a `StableSamError` becomes one line on stderr and exit code 2."""
    try:
        app()
    except StableSamError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one place where errors meet the user
        sys.exit(2)
