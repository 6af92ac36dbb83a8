"""The places that labelled masks come from: folders with true masks, files of labelled masks, and reviewed tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from stable_sam.calibration.labels import draw_labels, read_records, without_tiles
from stable_sam.calibration.reviewed import ReviewedLabels, reviewed_labels
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError
from stable_sam.identity import ModelIdentity, model_identity
from stable_sam.storage.uris import absolute_uri

if TYPE_CHECKING:
    from stable_sam.refining.refiner import Refiner

LoadRefiner = Callable[[RefinerConfig], "Refiner"]
OnImage = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSources:
    """What a calibration is made of and judged on; at least one of `data`, `records` and `tables` is given."""

    data: tuple[Path, ...] = ()
    """Folders for `read_truth`, whose objects are prompted for by weak prompts."""
    test: tuple[Path, ...] = ()
    """Folders as in `data`, on which the calibration is judged but not fitted."""
    records: tuple[str, ...] = ()
    """Files that `write_records` wrote, or `bundled`."""
    tables: tuple[str, ...] = ()
    """Masks tables, of which the reviewed masks are taken."""
    sample: float | None = None
    """Fraction of the prompts of `tables` whose masks were all reviewed; None when people chose what they reviewed."""
    prompts: tuple[str, ...] = ()
    """Kinds of the weak prompts; see `stable_sam.evaluation.prompts`."""
    min_area_fraction: float = 0.0
    """Smallest object that is prompted for, as a fraction of its image."""
    max_objects: int | None = None
    """Number of objects drawn at random from all sets of `data`, and as many of `test`; None takes all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data and not self.records and not self.tables:
            raise ConfigError("calibrate: expected --data, --records or --table, got none of these")
        if self.sample is not None and not self.tables:
            raise ConfigError("--sample: expected --table as well, which names the table that was sampled")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredLabels:
    """Labelled masks of one model, and what made them."""

    records: pa.Table
    """Rows of RECORDS_SCHEMA to fit a calibration to."""
    unseen: pa.Table | None
    """Rows of RECORDS_SCHEMA to judge it on; None without `LabelSources.test`."""
    reviewed: tuple[ReviewedLabels, ...]
    refiner: RefinerConfig
    """The config that the masks were made with: without tiles where a file's masks were made in whole images."""
    model: ModelIdentity


def gather_labels(
    sources: LabelSources, refiner: RefinerConfig, load: LoadRefiner, on_image: OnImage = lambda done, total: None
) -> GatheredLabels:
    """Read the labelled masks of all sources, and refine those of `data` and `test`.

    load: makes the refiner, and is called only when there is something to refine. on_image: see `draw_labels`.
    Raises `ConfigError` when masks were made by another model, `AnnotationError`, `ImageError`, `InputError` and
    `StorageError`.
    """
    for uri in sources.records:
        refiner = without_tiles(uri, refiner)
    model = model_identity(refiner)
    reviewed = tuple(reviewed_labels(absolute_uri(uri), refiner, model, sources.sample) for uri in sources.tables)
    parts = [read_records(uri, refiner, model) for uri in sources.records]
    parts += [labels.records for labels in reviewed]
    loaded = load(refiner) if sources.data or sources.test else None

    def drawn(folders: tuple[Path, ...]) -> pa.Table:
        assert loaded is not None
        return draw_labels(
            folders,
            loaded,
            sources.prompts,
            min_area_fraction=sources.min_area_fraction,
            max_objects=sources.max_objects,
            seed=sources.seed,
            on_image=on_image,
        )

    if sources.data:
        parts.append(drawn(sources.data))
    unseen = drawn(sources.test) if sources.test else None
    return GatheredLabels(
        records=pa.concat_tables(parts), unseen=unseen, reviewed=reviewed, refiner=refiner, model=model
    )
