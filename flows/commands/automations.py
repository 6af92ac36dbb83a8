"""`stable-sam automations`: let the Prefect server react to runs that hang, fail, are late or are a regression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def automations(
    notify: Annotated[
        str | None,
        typer.Option(
            help="Notification block of the server as TYPE/NAME, such as slack-webhook/oncall; none by default."
        ),
    ] = None,
    file: Annotated[
        Path,
        typer.Option(help="YAML file with the automations; by default the one in a checkout of this repository."),
    ] = Path("deployments/automations.yaml"),
) -> None:
    """Create the automations of a file on the Prefect server that PREFECT_API_URL names, or update them."""
    from prefect.settings import PREFECT_API_URL

    from flows.automations import apply_automations
    from flows.prefect_setup import check_prefect_api
    from stable_sam.errors import ConfigError

    if PREFECT_API_URL.value() is None:
        raise ConfigError(
            "PREFECT_API_URL: expected the URL of a permanent Prefect server, such as "
            "http://127.0.0.1:4200/api, got none"
        )
    check_prefect_api()
    for name in apply_automations(file, notify):
        typer.echo(name)
    if notify is None:
        typer.echo("Nobody will be notified: name a notification block with --notify.", err=True)
