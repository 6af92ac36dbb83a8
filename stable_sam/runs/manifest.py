"""Stores the plan of a run: which prompts it refines, in which shards, with which model. All ids are content hashes.

<output>/_runs/<run_id>/manifest.json           RunManifest; created once, by the first driver
                       /shards/<shard_id>.parquet   prompts of one shard, or withdrawn prompts
                       /shards/<shard_id>-truth.parquet   true masks on its images, where some are known
                       /commits/<shard_id>.json     see commits.py

A plan holds only what has to be done: the prompts that are new, changed or to be refreshed, and a tombstone for each
prompt that was withdrawn.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Changes, Prompt, Provenance
from stable_sam.storage.files import read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.schema import SHARD_SCHEMA, prompt_from_row

ID_DIGITS = 16
"""Hexadecimal digits in the id of a run or shard."""
_WRITERS = 16
"""Shard files that are written at the same time, because each is small and costs a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """A unit of work: the prompts of a few images."""

    shard_id: str
    """Hash of the shard's prompts and of the versions of its images."""
    uri: str
    """URI of the Parquet file of the prompts."""
    prompts: int
    images: int
    truth: int = 0
    """Number of rows in the file of true masks that `stable_sam.runs.truth` writes; 0 when there is no such file."""

    @property
    def truth_uri(self) -> str:
        """URI of the Parquet file of the true masks on the shard's images."""
        return f"{self.uri.removesuffix('.parquet')}-truth.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """Everything that drivers and actors need to know about a run."""

    run_id: str
    """Hash of `content_hash`, `parent_run_id` and how the shards are cut."""
    parent_run_id: str | None
    """Id of the newest run when this one was planned; None for the first run of a table."""
    revision: int
    """1 for the first run of a table, and one more than the parent's for any other."""
    content_hash: str
    """Hash of what is refined and withdrawn, the versions of the images, the model, its config and the version of the
    code. Runs with equal hashes make equal rows."""
    source_hash: str
    """Hash of all prompts of the source and of the versions of their images."""
    source_version: str | None
    """Hash of the versions of all files that were read; None when these cannot show whether anything changed."""
    annotations_uri: str
    images_uri: str
    output_uri: str
    config: RunConfig
    """Config of the first driver. A driver that resumes the run may use another `ray`, `device` and
    `max_failed_fraction`."""
    model: ModelIdentity
    config_hash: str
    code_version: str
    logical_date: str | None
    changes: Changes
    current_prompts: int
    """Number of current prompts once the run is published: those of the source or, with `since`, those that are current
    already and the new ones."""
    prompts: int
    """Number of prompts to refine."""
    images: int
    """Number of images to refine."""
    shards: tuple[ShardPlan, ...]
    tombstones: tuple[ShardPlan, ...]
    """The withdrawn prompts, for which the driver itself writes rows without a mask."""

    @property
    def folder_uri(self) -> str:
        """URI of the folder of the run's own files, which readers of the table never see."""
        return join(self.output_uri, "_runs", self.run_id)

    @property
    def uri(self) -> str:
        """URI at which this manifest is stored."""
        return join(self.folder_uri, "manifest.json")

    @property
    def rows(self) -> int:
        """Number of rows that the run adds to the table: one for each prompt and each tombstone."""
        return self.prompts + self.changes.withdrawn

    def provenance(self, shard_id: str) -> Provenance:
        """Return the provenance of the rows of one shard."""
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
        """Write every field as indented JSON."""
        plain = asdict(replace(self, config=RunConfig())) | {"config": self.config.model_dump(mode="json")}
        return json.dumps(plain, indent=1)


def read_manifest(uri: str) -> RunManifest:
    """Read a stored manifest; raises `StorageError`.

    Its URIs follow from where the manifest lies now, so a table that was moved or copied is continued there.
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
    """Read the prompts of a shard, ordered by image and prompt_id; raises `StorageError`."""
    return [prompt_from_row(row) for row in read_shard_table(uri).to_pylist()]


def read_shard_table(uri: str) -> pa.Table:
    """Read the rows (SHARD_SCHEMA) of a shard; raises `StorageError`."""
    data = read_bytes(uri)
    try:
        return pq.read_table(io.BytesIO(data), schema=SHARD_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: expected a Parquet file of prompts: {error}") from error


def write_shards(shards: Iterable[tuple[pa.Table, int]], folder_uri: str, kind: str) -> tuple[ShardPlan, ...]:
    """Store shards, each given as rows of SHARD_SCHEMA and its number of images, of the run at `folder_uri`.

    kind: part of the hash of their ids, because the same prompts may be refined in one run and withdrawn in another.
    Raises `StorageError`.
    """
    plans: list[ShardPlan] = []
    waiting: deque[Future[ShardPlan]] = deque()
    with ThreadPoolExecutor(_WRITERS) as writers:
        for rows, images in shards:
            if len(waiting) == 2 * _WRITERS:
                plans.append(waiting.popleft().result())
            waiting.append(writers.submit(_write_shard, rows, images, folder_uri, kind))
        plans.extend(write.result() for write in waiting)
    return tuple(plans)


def canonical(value: Any) -> bytes:
    """Write a JSON value in the one form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def json_sha256(value: Any) -> str:
    """Compute the SHA-256 of a JSON value in hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _write_shard(rows: pa.Table, images: int, folder_uri: str, kind: str) -> ShardPlan:
    content = hashlib.sha256(kind.encode())
    for column in ("prompt_id", "fingerprint"):
        content.update(canonical(rows[column].to_pylist()))
    shard_id = content.hexdigest()[:ID_DIGITS]
    uri = _shard_uri(folder_uri, shard_id)
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="lz4", use_dictionary=False, write_statistics=False)
    write_bytes(uri, buffer.getvalue())
    return ShardPlan(shard_id=shard_id, uri=uri, prompts=rows.num_rows, images=images)


def _shard_uri(folder_uri: str, shard_id: str) -> str:
    return join(folder_uri, "shards", f"{shard_id}.parquet")
