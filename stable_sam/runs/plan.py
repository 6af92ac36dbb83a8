"""Plans a run: compares the source with the table and cuts the difference into shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

import stable_sam
from stable_sam.arithmetic import fixed_run_dtype
from stable_sam.config import RunConfig
from stable_sam.errors import AnnotationError, ConservationError, NotFoundError
from stable_sam.formats.sources import annotations_modified_since, annotations_version
from stable_sam.identity import ModelIdentity, model_identity
from stable_sam.images.tiles import tile_rule
from stable_sam.records import Changes, Prompt
from stable_sam.runs import compare, truth
from stable_sam.runs import shards as ordering
from stable_sam.runs.calibrated import calibrated_run
from stable_sam.runs.manifest import ID_DIGITS, RunManifest, json_sha256, read_manifest, write_shards
from stable_sam.runs.request import RunRequest
from stable_sam.runs.tile_count import TileCount, count_tiles
from stable_sam.storage.files import create_bytes, exists, file_version, iter_versions, list_files, modified_since
from stable_sam.storage.uris import join
from stable_sam.table.current import Maker, load_live, workspace
from stable_sam.table.log import RunInfo, newest_run, open_table
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table
from stable_sam.wording import counted

_BATCH = 10_000
"""Given `Prompt` objects that are converted to rows at a time."""
_TOMBSTONES = 100_000
"""Withdrawn prompts in a part, which has a few ten megabytes."""
_TRIAL_PROMPTS = 100
"""Tables with fewer current prompts may lose any share of them: that is usual in a trial and soon refined again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run has to do."""

    request: RunRequest
    """The request whose config holds the calibration that the run routes by."""
    changes: Changes
    images: int = 0
    """Number of images to refine."""
    shards: int = 0
    """Number of shards to refine."""
    source_hash: str
    """Hash of all prompts of the source and of the versions of their images."""
    manifest: RunManifest | None = None
    """The stored plan; None when there is nothing to do, and for a dry run."""
    tiles: TileCount | None = None
    """Number of tiles, which only a dry run with tiles counts."""


def plan_request(
    request: RunRequest,
    *,
    prompts: Iterable[Prompt] | None = None,
    model: ModelIdentity | None = None,
    dry_run: bool = False,
) -> RunPlan:
    """Compare the source with the table at the output, cut the difference into shards and store this plan.

    Nothing is stored when there are no changes. When the run was planned before (a resume, or a second driver), the
    stored manifest is returned. The source is not read when none of its files changed.

    prompts: prompts to compare instead of those of the source, even when no file changed.
    model: identity of a model that is loaded already; None computes it from the weights.
    dry_run: stores nothing.
    Raises `AnnotationError` for no prompts, for a repeated prompt_id and (unless `dry_run`) as `check_withdrawn` does;
    `ConfigError` for a calibration of another model; `StorageError`, and whatever reading the source raises.
    """
    config = fixed_run_dtype(request.config)
    model = model or model_identity(config.refiner)
    request = replace(request, config=calibrated_run(config, model))
    maker = _maker(request.config, model)
    parent = newest_run(request.output_uri)
    table = None if parent is None else open_table(request.output_uri)
    with workspace() as connection:
        # Versions are read before the content, so that the next run finds what changes in between.
        files = _look_at(connection, request, maker.code_version)
        same_files = parent is not None and files.version is not None and files.version == parent.source_version
        if (prompts is None and same_files and not request.refresh) or not files.looked_at:
            return _unchanged(connection, request, parent, table)
        batches = request.prompt_batches() if prompts is None else _batches(iter(prompts))
        places_of = request.places_of if prompts is None else None
        compare.load_source(connection, batches, request.annotations_uri, request.places, places_of)
        elsewhere = compare.load_elsewhere(connection, request.since)
        load_live(connection, table, maker)
        compare.load_moved(connection, request.images_uri)
        partial = request.since is not None
        found = compare.compare(connection, request.refresh, partial=partial, source_looked_at=files.source_looked_at)
        plan = _cut(connection, request, found)
        if dry_run and plan.images and (rule := tile_rule(request.config.refiner)) is not None:
            return replace(plan, tiles=count_tiles(connection, rule))
        if found.changes.planned + found.changes.withdrawn == 0 or dry_run:
            return plan
        check_withdrawn(plan)
        truth_uri = request.config.truth_uri
        truth_digest = ""
        if truth_uri and plan.shards:
            truth_digest = truth.load_truth(connection, truth_uri)
            truth.check_truth_sizes(connection, truth_uri)
        manifest = _manifest(
            plan,
            found,
            parent,
            model,
            truth_digest=truth_digest,
            source_version=None if prompts is not None or partial or elsewhere else files.version,
        )
        return replace(plan, manifest=_store(connection, manifest))


def plan_run(prompts: Iterable[Prompt], request: RunRequest, model: ModelIdentity | None = None) -> RunManifest | None:
    """Plan a run for prompts in memory, for example in a notebook. Returns None when there is nothing to do.

    request = RunRequest.parse(annotations_uri="notebook", images_uri="images", output_uri="table")
    manifest = plan_run(prompts, request, refiner.identity)
    """
    return plan_request(request, prompts=prompts, model=model).manifest


def check_withdrawn(plan: RunPlan) -> None:
    """Raise `AnnotationError` when a run would withdraw more than `max_withdrawn_fraction` of the current prompts."""
    changes, most = plan.changes, plan.request.config.max_withdrawn_fraction
    current = changes.withdrawn + changes.unchanged + changes.planned - changes.new
    if current >= _TRIAL_PROMPTS and changes.withdrawn > most * current:
        raise AnnotationError(
            f"{plan.request.annotations_uri}: expected most of the table's {current} current prompts, got a source "
            f"without {changes.withdrawn} of them; nothing was written; if they are really withdrawn, set "
            f"max_withdrawn_fraction (now {most:g}) to 1 for this run"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What the versions of the source's files say before any of them is read."""

    version: str | None
    """`RunManifest.source_version`."""
    source_looked_at: bool
    """Whether any prompt may differ from the table. If not, only prompts of images that are compared may differ."""
    looked_at: bool
    """Whether any prompt or image may differ from the table."""


def _look_at(connection: duckdb.DuckDBPyConnection, request: RunRequest, code_version: str) -> _Files:
    annotations_uri, images_uri, index_uri = request.annotations_uri, request.images_uri, request.image_index_uri
    since, source = request.since, request.config.source
    links = source.follow_links
    sources = [annotations_version(annotations_uri, follow_links=links)]
    sources += [_version(uri) for uri in (index_uri, source.class_names_uri) if uri is not None]
    source_looked_at = since is None or annotations_modified_since(annotations_uri, since, follow_links=links)
    looked_at = None if since is None else modified_since(images_uri, since, follow_links=links)
    listing = iter_versions(images_uri, follow_links=links)
    image_versions = compare.load_versions(connection, images_uri, listing, looked_at)
    uris = (annotations_uri, index_uri, images_uri)
    version = json_sha256([*uris, *sources, image_versions, code_version, source.model_dump()])
    return _Files(
        version=None if None in sources else version,
        source_looked_at=source_looked_at,
        looked_at=source_looked_at or bool(looked_at),
    )


def _unchanged(
    connection: duckdb.DuckDBPyConnection, request: RunRequest, parent: RunInfo | None, table: DeltaTable | None
) -> RunPlan:
    """Return a plan without work, because nothing can have changed since the run `parent`."""
    known = None if parent is None else parent.current_prompts
    unchanged = load_live(connection, table) if known is None else known
    source_hash = "" if parent is None else parent.source_hash
    return RunPlan(request=request, changes=Changes(unchanged=unchanged), source_hash=source_hash)


def _cut(connection: duckdb.DuckDBPyConnection, request: RunRequest, found: compare.Comparison) -> RunPlan:
    """Cut the prompts to refine into shards. A run that only withdraws prompts has no images and no shards."""
    source_hash = json_sha256([found.source_prompts, found.source_digest])
    plan = RunPlan(request=request, changes=found.changes, source_hash=source_hash)
    if found.changes.planned + found.changes.withdrawn == 0:
        return plan
    images, shards = ordering.cut(connection, request.config.shard_images, request.config.prompt_cost)
    return replace(plan, images=images, shards=shards)


def _manifest(
    plan: RunPlan,
    found: compare.Comparison,
    parent: RunInfo | None,
    model: ModelIdentity,
    *,
    truth_digest: str,
    source_version: str | None,
) -> RunManifest:
    """Make the manifest of a plan, still without its shards."""
    request, config, changes = plan.request, plan.request.config, plan.changes
    maker = _maker(config, model)
    content = [asdict(maker), changes.planned, found.planned_digest, changes.withdrawn, found.withdrawn_digest]
    content_hash = json_sha256([*content, truth_digest] if truth_digest else content)
    parent_run_id = None if parent is None else parent.run_id
    run = [content_hash, parent_run_id, config.shard_images, config.decode_cost, ordering.ORDINARY_PROMPTS]
    return RunManifest(
        run_id=json_sha256(run)[:ID_DIGITS],
        parent_run_id=parent_run_id,
        revision=1 if parent is None else parent.revision + 1,
        content_hash=content_hash,
        source_hash=plan.source_hash,
        source_version=source_version,
        annotations_uri=request.annotations_uri,
        images_uri=request.images_uri,
        output_uri=request.output_uri,
        config=config,
        model=model,
        config_hash=maker.config_hash,
        code_version=maker.code_version,
        logical_date=request.logical_date,
        changes=changes,
        current_prompts=found.current_prompts,
        prompts=changes.planned,
        images=plan.images,
        shards=(),
        tombstones=(),
    )


def _store(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> RunManifest:
    """Write the shards of `planned` and `withdrawn`, then the manifest. Returns the manifest that was stored first.

    Shards that a vacuum has removed, because it took the plan for an abandoned one, are written again.
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
    withdrawn = ((rows, 0) for rows in compare.withdrawn_prompts(connection, _TOMBSTONES))
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
    """Check that every prompt of the source is planned or unchanged, and that the shards hold what is planned."""
    changes = manifest.changes
    current = changes.unchanged + changes.planned
    planned = sum(shard.prompts for shard in manifest.shards)
    withdrawn = sum(shard.prompts for shard in manifest.tombstones)
    if (current, planned, withdrawn) != (manifest.current_prompts, changes.planned, changes.withdrawn):
        raise ConservationError(
            f"{manifest.annotations_uri}: expected a plan that keeps {counted(manifest.current_prompts, 'prompt')} "
            f"current, refines {changes.planned} and withdraws {changes.withdrawn}, "
            f"got {current}, {planned} and {withdrawn}"
        )


def _maker(config: RunConfig, model: ModelIdentity) -> Maker:
    return Maker(**asdict(model), config_hash=config.content_hash(), code_version=stable_sam.__version__)


def _version(uri: str) -> str | None:
    """Return a file's version; None when nothing is there, which reading the source will report."""
    with suppress(NotFoundError):
        return file_version(uri)
    return None


def _batches(prompts: Iterator[Prompt]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(prompts, _BATCH)):
        yield from rows_to_table(map(prompt_row, chunk), PROMPTS_SCHEMA).to_batches()
