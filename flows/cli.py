"""The command line: `stable-sam COMMAND`. Each command lives in `flows/commands`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer

from flows import commands
from stable_sam.errors import StableSamError

app = typer.Typer(
    name="stable-sam",
    help="Weak boxes and points in, masks with a stability score for every prompt out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _found in pkgutil.iter_modules(commands.__path__):
    _name = _found.name
    _module = importlib.import_module(f"{commands.__name__}.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name.replace("_", "-"))
    else:
        app.command(_name.replace("_", "-"), cls=getattr(_module, "COMMAND_CLASS", None))(getattr(_module, _name))


def main() -> None:
    """Run the command line; a `StableSamError` becomes one line on stderr and exit code 2."""
    try:
        app()
    except StableSamError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one place where errors meet the user
        sys.exit(2)
