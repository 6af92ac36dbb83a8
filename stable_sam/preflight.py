"""What can be known to be wrong before any work starts, said within seconds and in one line."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from stable_sam.config import RunConfig
from stable_sam.data.annotations import read_prompt_batches
from stable_sam.data.night import REFRESH
from stable_sam.data.storage import check_output, exists
from stable_sam.errors import AnnotationError, ConfigError, WeightsError
from stable_sam.identity import model_identity


def check_run(
    *, annotations_uri: str, images_uri: str, output_uri: str, config: RunConfig, image_index_uri: str | None = None,
    writes: bool = True,
) -> None:  # fmt: skip
    """Raise the `StableSamError` that the run would meet: model, truth, annotations, images, output, credentials.

    The output comes last because checking it writes there (a probe object, removed again), unless `writes` is False.
    """
    check_weights(config)
    if config.truth_uri is not None and not exists(config.truth_uri):
        raise AnnotationError(f"{config.truth_uri}: expected COCO instances as truth, found nothing there")
    next(
        read_prompt_batches(
            annotations_uri, images_uri=images_uri, image_index_uri=image_index_uri, source=config.source
        )
    )
    if writes:
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


def refresh_reasons(given: str | Iterable[str] | None) -> frozenset[str]:
    """The reasons in `given`, texts that may hold several with commas; raises `ConfigError` for others than REFRESH."""
    texts = [given] if isinstance(given, str) else given or ()
    reasons = frozenset(reason.strip() for text in texts for reason in text.split(",") if reason.strip())
    for unknown in sorted(reasons - set(REFRESH)):
        raise ConfigError(f"refresh: expected {', '.join(REFRESH)}, got {unknown!r}")
    return reasons


def since_moment(since: str | None, timezone: str) -> datetime | None:
    """The moment that an ISO date (its midnight) or time means in `timezone`, unless it names a zone of its own.

    Raises `ConfigError` for anything else.
    """
    zone = _zone(timezone)
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise ConfigError(f"since: expected YYYY-MM-DD or YYYY-MM-DDTHH:MM, got {since!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def day_of(moment: datetime | None, timezone: str) -> str | None:
    """ISO date of an aware `moment` on the calendar of `timezone`; raises `ConfigError` for an unknown zone.

    The worker's own zone has no part in it: the same night has the same date on every machine.
    """
    zone = _zone(timezone)
    return None if moment is None else moment.astimezone(zone).date().isoformat()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"timezone: expected an IANA name such as Europe/Berlin, got {name!r}") from None
