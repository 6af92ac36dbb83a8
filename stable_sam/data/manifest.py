"""The plan of a run: which prompts, in which shards, by which model. All its ids are hashes of what goes in.

<output>/_runs/<run_id>/manifest.json           RunManifest; created once, the first driver's stands
                       /shards/<shard_id>.parquet   prompts of one shard, or withdrawn prompts
                       /commits/<shard_id>.json     see commits.py

A run holds only what has to be done: prompts that are new, changed or to be refreshed, and a tombstone for each that
was withdrawn.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import stable_sam
from stable_sam.config import RunConfig
from stable_sam.data import night, ordering
from stable_sam.data.runs import newest_run, open_table
from stable_sam.data.schema import PROMPTS_SCHEMA, SHARD_SCHEMA, prompt_from_row, prompt_row, rows_to_table
from stable_sam.data.storage import (
    absolute_uri,
    create_bytes,
    exists,
    file_version,
    iter_versions,
    join,
    modified_since,
    read_bytes,
    write_bytes,
)
from stable_sam.errors import ConfigError, ConservationError, NotFoundError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Changes, Prompt, Provenance

_ID_DIGITS = 16
_BATCH = 10_000
"""Prompts that are Python objects at one time, where they are given as such."""
_TOMBSTONES = 100_000
"""Withdrawn prompts in a part: some tens of megabytes."""
_WRITERS = 16
"""Shard files written at the same time: they are small and each costs a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """A unit of work: the prompts of a few images."""

    shard_id: str
    """Hash of its prompts and of the versions of its images."""
    uri: str
    """Parquet file of the prompts."""
    prompts: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """All that drivers and actors need to know of a run."""

    run_id: str
    """Hash of `content_hash`, `parent_run_id` and how the shards are cut."""
    parent_run_id: str | None
    """The run whose table this one continues."""
    revision: int
    """1 for the first run of a table, then its parent's plus 1."""
    content_hash: str
    """Hash of what is refined and withdrawn, every image's version, the model, its settings and the code: equal means
    equal rows."""
    source_hash: str
    """Hash of all prompts of the source and of the versions of their images."""
    source_version: str | None
    """Hash of the versions of all files that were read; None where these do not tell whether anything changed."""
    annotations_uri: str
    images_uri: str
    output_uri: str
    config: RunConfig
    """As first planned: a driver that takes the run up may use other `ray`, `device` and `max_failed_fraction`."""
    model: ModelIdentity
    config_hash: str
    code_version: str
    logical_date: str | None
    changes: Changes
    current_prompts: int
    """Prompts that are current once the run is published: those of the source; with `since`, those that were current
    and the new ones."""
    prompts: int
    """To refine."""
    images: int
    shards: tuple[ShardPlan, ...]
    tombstones: tuple[ShardPlan, ...]
    """Withdrawn prompts: rows without a mask, which the driver writes itself."""

    @property
    def folder_uri(self) -> str:
        """Where the run keeps what readers of the table never see."""
        return join(self.output_uri, "_runs", self.run_id)

    @property
    def uri(self) -> str:
        """Where this manifest is stored."""
        return join(self.folder_uri, "manifest.json")

    @property
    def rows(self) -> int:
        """Rows that the run adds to the table: one for each prompt and each tombstone."""
        return self.prompts + self.changes.withdrawn

    def provenance(self, shard_id: str) -> Provenance:
        """What the rows of one shard say of their making."""
        return Provenance(
            run_id=self.run_id,
            shard_id=shard_id,
            revision=self.revision,
            model_id=self.model.model_id,
            weights_sha256=self.model.weights_sha256,
            config_hash=self.config_hash,
            code_version=self.code_version,
            dtype=self.model.dtype,
            logical_date=self.logical_date,
        )

    def to_json(self) -> str:
        """Every field, readable by people too."""
        plain = asdict(replace(self, config=RunConfig())) | {"config": self.config.model_dump(mode="json")}
        return json.dumps(plain, indent=1)


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
    Raises `AnnotationError` for no prompts or a repeated prompt_id, `StorageError`, and whatever `read` raises.
    """
    output_uri = absolute_uri(output_uri)
    parent = newest_run(output_uri)
    table = None if parent is None else open_table(output_uri)
    maker = night.Maker(
        **{name: getattr(model, name) for name in ("model_id", "weights_sha256", "dtype")},
        config_hash=config.content_hash(),
        code_version=stable_sam.__version__,
    )
    with night.workspace() as connection:
        # The versions come before the content: what changes in between is found by the next night.
        sources = [_version(uri) for uri in (annotations_uri, image_index_uri) if uri is not None]
        looked_at = None if since is None else modified_since(images_uri, since)
        source_looked_at = since is None or bool(modified_since(annotations_uri, since))
        images = night.load_versions(connection, images_uri, iter_versions(images_uri), looked_at)
        source_version = _hash([annotations_uri, image_index_uri, images_uri, *sources, images, maker.code_version])
        files_tell = files_tell and None not in sources
        same_files = files_tell and parent is not None and parent.source_version == source_version
        if (same_files and not refresh) or not (source_looked_at or looked_at):
            known = None if parent is None else parent.current_prompts
            unchanged = night.load_live(connection, table) if known is None else known
            return NightPlan(
                changes=Changes(unchanged=unchanged), source_hash="" if parent is None else parent.source_hash
            )
        night.load_source(connection, read(), annotations_uri)
        elsewhere = night.load_elsewhere(connection, since)
        night.load_live(connection, table, maker)
        found = night.compare(connection, refresh, partial=since is not None, source_looked_at=source_looked_at)
        source_hash = _hash([found.source_prompts, found.source_digest])
        changes = found.changes
        if changes.planned + changes.withdrawn == 0:
            return NightPlan(changes=changes, source_hash=source_hash)
        image_count, shard_count = ordering.cut(connection, config.shard_images, config.prompt_cost)
        plan = NightPlan(changes=changes, images=image_count, shards=shard_count, source_hash=source_hash)
        if dry_run:
            return plan
        content = [asdict(maker), changes.planned, found.planned_digest, changes.withdrawn, found.withdrawn_digest]
        content_hash = _hash(content)
        parent_run_id = None if parent is None else parent.run_id
        run = [content_hash, parent_run_id, config.shard_images, config.decode_cost, ordering.ORDINARY_PROMPTS]
        manifest = RunManifest(
            run_id=_hash(run)[:_ID_DIGITS],
            parent_run_id=parent_run_id,
            revision=1 if parent is None else parent.revision + 1,
            content_hash=content_hash,
            source_hash=source_hash,
            source_version=source_version if files_tell and since is None and not elsewhere else None,
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
            images=image_count,
            shards=(),
            tombstones=(),
        )
        if exists(manifest.uri):
            return replace(plan, manifest=read_manifest(manifest.uri))
        withdrawn = night.withdrawn_prompts(connection, _TOMBSTONES) if changes.withdrawn else ()
        tombstones = (
            (pa.Table.from_batches([batch]).select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA), 0) for batch in withdrawn
        )
        manifest = replace(
            manifest,
            shards=_write_shards(ordering.shards(connection), manifest.folder_uri, b"prompts"),
            tombstones=_write_shards(tombstones, manifest.folder_uri, b"withdrawn"),
        )
    _check_plan(manifest, found.source_prompts if since is None else found.current_prompts)
    if not create_bytes(manifest.uri, manifest.to_json().encode()):
        manifest = read_manifest(manifest.uri)
    return replace(plan, manifest=manifest)


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


def read_manifest(uri: str) -> RunManifest:
    """Read a stored manifest; raises `StorageError`.

    The output is where the manifest lies now: a folder that was moved or copied is taken up there.
    """
    data = read_bytes(uri)
    folder_uri = uri.rpartition("/")[0]
    try:
        raw: dict[str, Any] = json.loads(data)
        raw["config"] = RunConfig.from_dict(raw["config"], source=uri)
        raw["model"] = ModelIdentity(**raw["model"])
        raw["changes"] = Changes(**raw["changes"])
        for name in ("shards", "tombstones"):
            shards = (ShardPlan(**shard) for shard in raw[name])
            raw[name] = tuple(replace(shard, uri=_shard_uri(folder_uri, shard.shard_id)) for shard in shards)
        raw["output_uri"] = folder_uri.rsplit("/", 2)[0]
        return RunManifest(**raw)
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{uri}: expected a run manifest of this version of stable-sam: {error}") from error


def read_shard(uri: str) -> list[Prompt]:
    """The prompts of a shard, ordered by image and prompt_id; raises `StorageError`."""
    return [prompt_from_row(row) for row in read_shard_table(uri).to_pylist()]


def read_shard_table(uri: str) -> pa.Table:
    """The rows (SHARD_SCHEMA) of a shard; raises `StorageError`."""
    data = read_bytes(uri)
    try:
        return pq.read_table(io.BytesIO(data), schema=SHARD_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: expected a Parquet file of prompts: {error}") from error


def _version(uri: str) -> str | None:
    """None when nothing is there: reading will say so."""
    with suppress(NotFoundError):
        return file_version(uri)
    return None


def _check_plan(manifest: RunManifest, expected: int) -> None:
    """Every prompt of the source is planned or unchanged, and what is planned is in the shards."""
    changes = manifest.changes
    current = changes.unchanged + changes.planned
    planned = sum(shard.prompts for shard in manifest.shards)
    withdrawn = sum(shard.prompts for shard in manifest.tombstones)
    if (current, planned, withdrawn) != (expected, changes.planned, changes.withdrawn):
        raise ConservationError(
            f"{manifest.annotations_uri}: expected a plan that keeps {expected} prompts current, refines "
            f"{changes.planned} and withdraws {changes.withdrawn}, got {current}, {planned} and {withdrawn}"
        )


def _write_shards(shards: Iterable[tuple[pa.Table, int]], folder_uri: str, kind: bytes) -> tuple[ShardPlan, ...]:
    """Write them, a few at a time."""
    plans: list[ShardPlan] = []
    waiting: deque[Future[ShardPlan]] = deque()
    with ThreadPoolExecutor(_WRITERS) as writers:
        for rows, images in shards:
            if len(waiting) == 2 * _WRITERS:
                plans.append(waiting.popleft().result())
            waiting.append(writers.submit(_write_shard, rows, images, folder_uri, kind))
        plans.extend(write.result() for write in waiting)
    return tuple(plans)


def _write_shard(rows: pa.Table, images: int, folder_uri: str, kind: bytes) -> ShardPlan:
    content = hashlib.sha256(kind)
    for column in ("prompt_id", "fingerprint"):
        content.update(_canonical(rows[column].to_pylist()))
    shard_id = content.hexdigest()[:_ID_DIGITS]
    uri = _shard_uri(folder_uri, shard_id)
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="lz4", use_dictionary=False, write_statistics=False)
    write_bytes(uri, buffer.getvalue())
    return ShardPlan(shard_id=shard_id, uri=uri, prompts=rows.num_rows, images=images)


def _shard_uri(folder_uri: str, shard_id: str) -> str:
    return join(folder_uri, "shards", f"{shard_id}.parquet")


def _batches(prompts: Iterator[Prompt]) -> Iterator[pa.RecordBatch]:
    while chunk := list(islice(prompts, _BATCH)):
        yield from rows_to_table(map(prompt_row, chunk), PROMPTS_SCHEMA).to_batches()


def _hash(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
