"""What a night has to do, and the run that will do it: source and table compared, the difference cut into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

import stable_sam
from stable_sam.config import RunConfig, SourceConfig
from stable_sam.data import live, night, ordering, truth
from stable_sam.data.annotation_files import annotations_modified_since, annotations_version
from stable_sam.data.manifest import ID_DIGITS, RunManifest, canonical, read_manifest, write_shards
from stable_sam.data.runs import RunInfo, newest_run, open_table
from stable_sam.data.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table
from stable_sam.data.storage import (
    absolute_uri,
    create_bytes,
    exists,
    file_version,
    iter_versions,
    join,
    list_files,
    modified_since,
)
from stable_sam.data.tile_count import TileCount, count_tiles
from stable_sam.errors import AnnotationError, ConservationError, NotFoundError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Changes, Prompt
from stable_sam.tiles import tile_rule

_BATCH = 10_000
"""Prompts that are Python objects at one time, where they are given as such."""
_TOMBSTONES = 100_000
"""Withdrawn prompts in a part: some tens of megabytes."""
_FEW_PROMPTS = 100
"""Tables with fewer current prompts may lose any share of them: in a trial that is usual, and soon refined again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NightPlan:
    """What a night has to do."""

    changes: Changes
    images: int = 0
    """To refine."""
    shards: int = 0
    source_hash: str
    """As in `RunManifest`."""
    manifest: RunManifest | None = None
    """None when there is nothing to do, and for a dry run."""
    tiles: TileCount | None = None
    """For a dry run with tiles."""


def plan_night(
    read: Callable[[], Iterable[pa.RecordBatch]],
    *,
    annotations_uri: str,
    images_uri: str,
    output_uri: str,
    config: RunConfig,
    model: ModelIdentity,
    image_index_uri: str | None = None,
    logical_date: str | None = None,
    refresh: frozenset[str] = frozenset(),
    since: datetime | None = None,
    dry_run: bool = False,
    files_tell: bool = True,
) -> NightPlan:
    """Compare the source with the table at `output_uri` and store a run for what is different, cut into shards.

    read: gives the prompts of the source (PROMPTS_SCHEMA); not called when no file of the source changed. Without
    changes nothing is stored. The stored manifest is returned when this run was planned before, with the same shards (a
    resume, or a second driver). `logical_date` is no content: a night without change makes no run.
    refresh: what else than changes of the source is refined again, of `night.REFRESH`.
    since: files that were modified before are taken as unchanged, and nothing is withdrawn.
    dry_run: nothing is stored.
    files_tell: False when `read` may give other prompts though no file is another; then it is always called.
    Raises `AnnotationError` for no prompts, for a repeated prompt_id and (unless `dry_run`) as `check_withdrawn` does;
    `StorageError`, and whatever `read` raises.
    """
    output_uri = absolute_uri(output_uri)
    parent = newest_run(output_uri)
    table = None if parent is None else open_table(output_uri)
    maker = _maker(config, model)
    with live.workspace() as connection:
        # The versions come before the content: what changes in between is found by the next night.
        sources = (annotations_uri, images_uri, image_index_uri)
        files = _look_at(connection, *sources, since, config.source, maker.code_version)
        same_files = parent is not None and files.version is not None and files.version == parent.source_version
        if (files_tell and same_files and not refresh) or not files.looked_at:
            return _unchanged(connection, parent, table)
        night.load_source(connection, read(), annotations_uri)
        elsewhere = night.load_elsewhere(connection, since)
        live.load_live(connection, table, maker)
        found = night.compare(connection, refresh, partial=since is not None, source_looked_at=files.source_looked_at)
        plan = _cut(connection, found, config)
        if dry_run and plan.images and (rule := tile_rule(config.refiner)) is not None:
            return replace(plan, tiles=count_tiles(connection, rule))
        if found.changes.planned + found.changes.withdrawn == 0 or dry_run:
            return plan
        check_withdrawn(found.changes, config.max_withdrawn_fraction, annotations_uri)
        known = truth.load_truth(connection, config.truth_uri) if config.truth_uri and plan.shards else ""
        manifest = _manifest(
            plan,
            found,
            parent,
            truth_digest=known,
            source_version=files.version if files_tell and since is None and not elsewhere else None,
            annotations_uri=annotations_uri,
            images_uri=images_uri,
            output_uri=output_uri,
            config=config,
            model=model,
            logical_date=logical_date,
        )
        return replace(plan, manifest=_store(connection, manifest))


def plan_run(
    prompts: Iterable[Prompt],
    *,
    annotations_uri: str,
    images_uri: str,
    output_uri: str,
    config: RunConfig,
    model: ModelIdentity,
    logical_date: str | None = None,
) -> RunManifest | None:
    """`plan_night` for prompts at hand, as of a notebook; returns None when there is nothing to do."""
    return plan_night(
        lambda: _batches(iter(prompts)),
        annotations_uri=annotations_uri,
        images_uri=images_uri,
        output_uri=output_uri,
        config=config,
        model=model,
        logical_date=logical_date,
        files_tell=False,
    ).manifest


def check_withdrawn(changes: Changes, max_withdrawn_fraction: float, annotations_uri: str) -> None:
    """Raise `AnnotationError` when a night would withdraw more than this share of the prompts that are current."""
    current = changes.withdrawn + changes.unchanged + changes.planned - changes.new
    if current >= _FEW_PROMPTS and changes.withdrawn > max_withdrawn_fraction * current:
        raise AnnotationError(
            f"{annotations_uri}: expected most of the table's {current} current prompts, got a source without "
            f"{changes.withdrawn} of them; nothing was written. If they are really withdrawn, set "
            f"max_withdrawn_fraction (now {max_withdrawn_fraction:g}) to 1 for this run"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The source's files before any is read."""

    version: str | None
    """As in `RunManifest.source_version`."""
    source_looked_at: bool
    """Whether prompts may differ from those of the table; if not, only those of images that are looked at may."""
    looked_at: bool
    """Whether anything may differ."""


def _look_at(
    connection: duckdb.DuckDBPyConnection,
    annotations_uri: str,
    images_uri: str,
    image_index_uri: str | None,
    since: datetime | None,
    source: SourceConfig,
    code_version: str,
) -> _Files:
    sources = [annotations_version(annotations_uri)]
    sources += [_version(uri) for uri in (image_index_uri, source.class_names_uri) if uri is not None]
    source_looked_at = since is None or annotations_modified_since(annotations_uri, since)
    looked_at = None if since is None else modified_since(images_uri, since)
    image_versions = night.load_versions(connection, images_uri, iter_versions(images_uri), looked_at)
    uris = (annotations_uri, image_index_uri, images_uri)
    version = _hash([*uris, *sources, image_versions, code_version, source.model_dump()])
    return _Files(
        version=None if None in sources else version,
        source_looked_at=source_looked_at,
        looked_at=source_looked_at or bool(looked_at),
    )


def _unchanged(connection: duckdb.DuckDBPyConnection, parent: RunInfo | None, table: DeltaTable | None) -> NightPlan:
    """Nothing can have changed since `parent`."""
    known = None if parent is None else parent.current_prompts
    unchanged = live.load_live(connection, table) if known is None else known
    return NightPlan(changes=Changes(unchanged=unchanged), source_hash="" if parent is None else parent.source_hash)


def _cut(connection: duckdb.DuckDBPyConnection, found: night.Comparison, config: RunConfig) -> NightPlan:
    """What there is to do; of a run that only withdraws, no images and no shards."""
    source_hash = _hash([found.source_prompts, found.source_digest])
    if found.changes.planned + found.changes.withdrawn == 0:
        return NightPlan(changes=found.changes, source_hash=source_hash)
    images, shards = ordering.cut(connection, config.shard_images, config.prompt_cost)
    return NightPlan(changes=found.changes, images=images, shards=shards, source_hash=source_hash)


def _manifest(
    plan: NightPlan,
    found: night.Comparison,
    parent: RunInfo | None,
    *,
    truth_digest: str,
    source_version: str | None,
    annotations_uri: str,
    images_uri: str,
    output_uri: str,
    config: RunConfig,
    model: ModelIdentity,
    logical_date: str | None,
) -> RunManifest:
    """The run that does it, still without its shards."""
    changes, maker = plan.changes, _maker(config, model)
    content = [asdict(maker), changes.planned, found.planned_digest, changes.withdrawn, found.withdrawn_digest]
    content_hash = _hash([*content, truth_digest] if truth_digest else content)
    parent_run_id = None if parent is None else parent.run_id
    run = [content_hash, parent_run_id, config.shard_images, config.decode_cost, ordering.ORDINARY_PROMPTS]
    return RunManifest(
        run_id=_hash(run)[:ID_DIGITS],
        parent_run_id=parent_run_id,
        revision=1 if parent is None else parent.revision + 1,
        content_hash=content_hash,
        source_hash=plan.source_hash,
        source_version=source_version,
        annotations_uri=annotations_uri,
        images_uri=images_uri,
        output_uri=output_uri,
        config=config,
        model=model,
        config_hash=maker.config_hash,
        code_version=maker.code_version,
        logical_date=logical_date,
        changes=changes,
        current_prompts=found.current_prompts,
        prompts=changes.planned,
        images=plan.images,
        shards=(),
        tombstones=(),
    )


def _store(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> RunManifest:
    """Write the shards of `planned` and `withdrawn`, then the manifest with them; the first one stored stands.

    Shards of it that a vacuum took for those of an abandoned plan are written again.
    """
    if exists(manifest.uri):
        stored = read_manifest(manifest.uri)
        there = set(list_files(join(manifest.folder_uri, "shards")))
        files = [shard.uri for shard in (*stored.shards, *stored.tombstones)]
        if there.issuperset([*files, *(shard.truth_uri for shard in stored.shards if shard.truth)]):
            return stored
    shards = write_shards(ordering.shards(connection), manifest.folder_uri, "prompts")
    if manifest.config.truth_uri and shards:
        shards = truth.cut_truth(connection, shards, manifest.config.truth_uri)
    withdrawn = ((rows, 0) for rows in night.withdrawn_prompts(connection, _TOMBSTONES))
    manifest = replace(
        manifest,
        shards=shards,
        tombstones=write_shards(withdrawn, manifest.folder_uri, "withdrawn"),
    )
    _check_plan(manifest)
    if create_bytes(manifest.uri, manifest.to_json().encode()):
        return manifest
    return read_manifest(manifest.uri)


def _check_plan(manifest: RunManifest) -> None:
    """Every prompt of the source is planned or unchanged, and what is planned is in the shards."""
    changes = manifest.changes
    current = changes.unchanged + changes.planned
    planned = sum(shard.prompts for shard in manifest.shards)
    withdrawn = sum(shard.prompts for shard in manifest.tombstones)
    if (current, planned, withdrawn) != (manifest.current_prompts, changes.planned, changes.withdrawn):
        raise ConservationError(
            f"{manifest.annotations_uri}: expected a plan that keeps {manifest.current_prompts} prompts current, "
            f"refines {changes.planned} and withdraws {changes.withdrawn}, got {current}, {planned} and {withdrawn}"
        )


def _maker(config: RunConfig, model: ModelIdentity) -> live.Maker:
    return live.Maker(**asdict(model), config_hash=config.content_hash(), code_version=stable_sam.__version__)


def _version(uri: str) -> str | None:
    """None when nothing is there: reading will say so."""
    with suppress(NotFoundError):
        return file_version(uri)
    return None


def _batches(prompts: Iterator[Prompt]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(prompts, _BATCH)):
        yield from rows_to_table(map(prompt_row, chunk), PROMPTS_SCHEMA).to_batches()


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()
