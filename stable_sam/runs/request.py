"""Describes what a run is asked to do. A request is parsed and checked once and then passed whole to the planner.

command, flow or notebook --RunRequest.parse--> RunRequest --plan_request--> RunManifest
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import pyarrow as pa

from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError
from stable_sam.formats.read import read_places, read_prompt_batches
from stable_sam.formats.sources import absolute_annotations, annotation_places, check_apart
from stable_sam.runs.compare import REFRESH
from stable_sam.runs.dates import check_logical_date, day_of, since_moment
from stable_sam.storage.uris import absolute_uri, check_table_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A source, the table that it is compared with, and how the difference is refined.

    `parse` makes a request from what a user gave. All URIs are absolute, because actors and later readers may have
    another working folder.
    """

    annotations_uri: str
    """A file, a folder, a pattern, or several of these separated by commas, as `stable_sam.formats.sources` reads."""
    images_uri: str
    """Folder to which the file names in the annotations are relative."""
    output_uri: str
    """Folder of the masks table."""
    config: RunConfig
    image_index_uri: str | None = None
    """COCO JSON whose `images` give the file names for the image ids in detection results."""
    logical_date: str | None = None
    """ISO date of the night that the run stands for. It changes neither masks nor ids."""
    refresh: frozenset[str] = frozenset()
    """Values of `REFRESH`: which prompts are refined again although they did not change."""
    since: datetime | None = None
    """Moment with a time zone. If no annotation file was modified since then, only prompts whose image was modified
    since then are compared. No prompt is withdrawn."""

    @classmethod
    def parse(
        cls,
        *,
        annotations_uri: str,
        images_uri: str,
        output_uri: str,
        config: RunConfig | Mapping[str, Any] | str | None = None,
        image_index_uri: str | None = None,
        logical_date: str | None = None,
        timezone: str = "UTC",
        refresh: Iterable[str] | str | None = None,
        since: str | None = None,
        scheduled: datetime | None = None,
    ) -> Self:
        """Make the request from what a user gave.

        URIs may be local paths relative to the working folder. The table must not lie where the next night would read
        its files as annotations.
        config: a `RunConfig`, a mapping, or the path of a YAML file; None takes the defaults.
        timezone: IANA name of the zone in which `since` and the date of `scheduled` are read.
        refresh: a list, or a text with commas.
        since: an ISO date (its midnight) or time.
        scheduled: the moment, with a time zone, of a schedule. Its date is the logical date when none is given.
        Raises `ConfigError`, and `AnnotationError` for an empty name between commas.
        """
        check_logical_date(logical_date)
        scheduled_day = day_of(scheduled, timezone)
        reasons, moment = _reasons(refresh), since_moment(since, timezone)
        annotations, output = absolute_annotations(annotations_uri), absolute_uri(output_uri)
        check_table_uri(output)
        check_apart(annotations, output)
        return cls(
            annotations_uri=annotations,
            images_uri=absolute_uri(images_uri),
            output_uri=output,
            config=_config(config),
            image_index_uri=None if image_index_uri is None else absolute_uri(image_index_uri),
            logical_date=logical_date or scheduled_day,
            refresh=reasons,
            since=moment,
        )

    def parameters(self) -> dict[str, Any]:
        """Return plain values, by the names of the flow's parameters, from which `parse` makes an equal request."""
        return {
            "annotations_uri": self.annotations_uri,
            "images_uri": self.images_uri,
            "output_uri": self.output_uri,
            "config": self.config.model_dump(mode="json"),
            "image_index_uri": self.image_index_uri,
            "logical_date": self.logical_date,
            "refresh": sorted(self.refresh),
            "since": None if self.since is None else self.since.isoformat(),
        }

    @property
    def places(self) -> list[str]:
        """The URIs of the files and folders of the source, which messages about a prompt may name."""
        given = [*annotation_places(self.annotations_uri), self.images_uri, self.image_index_uri]
        return [uri for uri in given if uri]

    def prompt_batches(self) -> Iterator[pa.RecordBatch]:
        """Read the prompts of the source, as `stable_sam.formats.read.read_prompt_batches` does."""
        return read_prompt_batches(
            self.annotations_uri,
            images_uri=self.images_uri,
            image_index_uri=self.image_index_uri,
            source=self.config.source,
        )

    def places_of(self, prompt_id: str) -> Iterator[str]:
        """Read the source again for the files and records of this id, as `stable_sam.formats.read.read_places` does."""
        return read_places(
            prompt_id,
            self.annotations_uri,
            images_uri=self.images_uri,
            image_index_uri=self.image_index_uri,
            source=self.config.source,
        )


def _config(given: RunConfig | Mapping[str, Any] | str | None) -> RunConfig:
    if isinstance(given, RunConfig):
        return given
    return RunConfig.from_yaml(given) if isinstance(given, str) else RunConfig.from_dict(dict(given or {}))


def _reasons(given: Iterable[str] | str | None) -> frozenset[str]:
    texts = [given] if isinstance(given, str) else given or ()
    reasons = frozenset(reason.strip() for text in texts for reason in text.split(",") if reason.strip())
    for unknown in sorted(reasons - set(REFRESH)):
        raise ConfigError(f"refresh: expected {', '.join(REFRESH)}, got {unknown!r}")
    return reasons
