"""`stable-sam automations`: what the Prefect server does by itself about runs that are stuck, red, late or worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def automations(
    notify: Annotated[
        str | None,
        typer.Option(help="Notification block on the server, TYPE/NAME, such as slack-webhook/oncall."),
    ] = None,
    file: Annotated[Path, typer.Option(help="The automations.")] = Path("deployments/automations.yaml"),
) -> None:
    """Put the automations on the Prefect server that PREFECT_API_URL names. Run again, it brings them up to date."""
    from prefect.settings import PREFECT_API_URL

    from flows.automations import apply_automations
    from flows.prefect_setup import check_prefect_api
    from stable_sam.errors import ConfigError

    if PREFECT_API_URL.value() is None:
        raise ConfigError(
            "PREFECT_API_URL: expected the URL of a Prefect server that stays, such as "
            "http://127.0.0.1:4200/api, got none"
        )
    check_prefect_api()
    for name in apply_automations(file, notify):
        typer.echo(name)
    if notify is None:
        typer.echo("Nobody is notified: name a block with --notify.", err=True)
