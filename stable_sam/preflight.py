"""What can be known to be wrong before any work starts, said within seconds and in one line."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from stable_sam.config import RunConfig
from stable_sam.data.annotations import read_prompts
from stable_sam.data.storage import check_output, exists
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.identity import model_identity


def check_run(
    *, annotations_uri: str, images_uri: str, output_uri: str, config: RunConfig, image_index_uri: str | None = None
) -> None:
    """Raise the `StableSamError` that the run would meet: model, annotations, images, output, credentials.

    The output comes last because checking it writes there (a probe object, removed again).
    """
    check_weights(config)
    next(read_prompts(annotations_uri, images_uri=images_uri, image_index_uri=image_index_uri))
    check_output(output_uri)


def check_weights(config: RunConfig) -> None:
    """Raise `WeightsError` when the weights are not there; does not download those that lie elsewhere."""
    model = config.refiner
    given = [uri for uri in (model.checkpoint_uri, model.plugin_uri, model.hq_uri) if uri is not None]
    for uri in given:
        if not exists(uri):
            raise WeightsError(f"{uri}: no such weights file")
    if not given:
        model_identity(model)


def check_logical_date(logical_date: str | None) -> None:
    """Raise `ConfigError` for anything but an ISO date such as 2025-11-23, or None."""
    if logical_date is None:
        return
    try:
        date.fromisoformat(logical_date)
    except ValueError:
        raise ConfigError(f"logical date: expected YYYY-MM-DD, got {logical_date!r}") from None


def day_of(moment: datetime | None, timezone: str) -> str | None:
    """ISO date of an aware `moment` on the calendar of `timezone`; raises `ConfigError` for an unknown zone.

    The worker's own zone has no part in it: the same night has the same date on every machine.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"timezone: expected an IANA name such as Europe/Berlin, got {timezone!r}") from None
    return None if moment is None else moment.astimezone(zone).date().isoformat()
