"""The plan of a run: which prompts, in which shards, by which model. All its ids are hashes of what goes in.

<output>/_runs/<run_id>/manifest.json           RunManifest; created once, the first driver's stands
                       /shards/<shard_id>.parquet   prompts of one shard
                       /commits/<shard_id>.json     see commits.py
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import stable_sam
from stable_sam.config import RunConfig
from stable_sam.data.ordering import ImageRows, OrderedPrompts, Row, ordered
from stable_sam.data.runs import RunInfo, newest_run
from stable_sam.data.schema import PROMPTS_SCHEMA, prompt_from_row, rows_to_table
from stable_sam.data.storage import (
    absolute_uri,
    create_bytes,
    exists,
    file_version,
    join,
    list_versions,
    read_bytes,
    write_bytes,
)
from stable_sam.errors import AnnotationError, ConfigError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, Provenance

_ID_DIGITS = 16


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
    """Hash of `content_hash`, `parent_run_id` and the number of images in a shard."""
    parent_run_id: str | None
    """The run whose table this one continues."""
    revision: int
    """1 for the first run of a table, then its parent's plus 1."""
    content_hash: str
    """Hash of every prompt, every image's version, the model, its settings and the code: equal means equal rows."""
    annotations_uri: str
    images_uri: str
    output_uri: str
    config: RunConfig
    """As first planned: a driver that takes the run up may use other `ray`, `device` and `max_failed_fraction`."""
    model: ModelIdentity
    config_hash: str
    code_version: str
    logical_date: str | None
    prompts: int
    images: int
    shards: tuple[ShardPlan, ...]

    @property
    def folder_uri(self) -> str:
        """Where the run keeps what readers of the table never see."""
        return join(self.output_uri, "_runs", self.run_id)

    @property
    def uri(self) -> str:
        """Where this manifest is stored."""
        return join(self.folder_uri, "manifest.json")

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
    """Cut `prompts` into shards of `config.shard_images` images and store the plan under `output_uri`.

    Returns None when the newest run of the table was made from exactly this content: there is nothing to do. Returns
    the stored manifest when this run was planned before, with the same shards (a resume, or a second driver).
    `logical_date` is no content: a night without change makes no run.
    Raises `AnnotationError` for no prompts or a repeated prompt_id, `StorageError`, and whatever `prompts` raises.
    """
    output_uri = absolute_uri(output_uri)
    with ordered(prompts) as in_order:
        _check(in_order, annotations_uri)
        versions = _ImageVersions(images_uri)
        content_hash = _content_hash(in_order, versions, config, model)
        parent = newest_run(output_uri)
        if parent is not None and parent.content_hash == content_hash:
            return None
        manifest = RunManifest(
            run_id=_run_id(content_hash, parent, config.shard_images),
            parent_run_id=None if parent is None else parent.run_id,
            revision=1 if parent is None else parent.revision + 1,
            content_hash=content_hash,
            annotations_uri=annotations_uri,
            images_uri=images_uri,
            output_uri=output_uri,
            config=config,
            model=model,
            config_hash=config.content_hash(),
            code_version=stable_sam.__version__,
            logical_date=logical_date,
            prompts=in_order.count,
            images=0,
            shards=(),
        )
        if exists(manifest.uri):
            return read_manifest(manifest.uri)
        shards = tuple(_write_shards(in_order, versions, config.shard_images, manifest.folder_uri))
    manifest = replace(manifest, shards=shards, images=sum(shard.images for shard in shards))
    if create_bytes(manifest.uri, manifest.to_json().encode()):
        return manifest
    return read_manifest(manifest.uri)


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
        shards = (ShardPlan(**shard) for shard in raw["shards"])
        raw["shards"] = tuple(replace(shard, uri=_shard_uri(folder_uri, shard.shard_id)) for shard in shards)
        raw["output_uri"] = folder_uri.rsplit("/", 2)[0]
        return RunManifest(**raw)
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{uri}: expected a run manifest of this version of stable-sam: {error}") from error


def read_shard(uri: str) -> list[Prompt]:
    """The prompts of a shard, ordered by image and prompt_id; raises `StorageError`."""
    data = read_bytes(uri)
    try:
        table = pq.read_table(io.BytesIO(data), schema=PROMPTS_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: expected a Parquet file of prompts: {error}") from error
    return [prompt_from_row(row) for row in table.to_pylist()]


class _ImageVersions:
    """What changes when an image's bytes change; one listing of the folder, not a request for each image."""

    def __init__(self, images_uri: str) -> None:
        self._known = list_versions(images_uri)

    def of(self, image_uri: str) -> str:
        """Empty for an image that cannot be looked up: its rows will say why."""
        if image_uri and image_uri not in self._known:
            self._known[image_uri] = ""
            with suppress(StorageError):
                self._known[image_uri] = file_version(image_uri)
        return self._known.get(image_uri, "")


def _check(prompts: OrderedPrompts, annotations_uri: str) -> None:
    if prompts.count == 0:
        raise AnnotationError(f"{annotations_uri}: expected at least one annotation, got none")
    repeated = prompts.repeated_id()
    if repeated is not None:
        raise AnnotationError(f"{annotations_uri}: prompt_id {repeated}: expected every id once, got it more than once")


def _content_hash(prompts: OrderedPrompts, versions: _ImageVersions, config: RunConfig, model: ModelIdentity) -> str:
    made_by = {"config": config.content_hash(), "code": stable_sam.__version__, **asdict(model)}
    digest = hashlib.sha256(_canonical(made_by))
    for rows in prompts.by_image():
        digest.update(_image_content(rows, versions))
    return digest.hexdigest()


def _run_id(content_hash: str, parent: RunInfo | None, shard_images: int) -> str:
    identity = [content_hash, None if parent is None else parent.run_id, shard_images]
    return hashlib.sha256(_canonical(identity)).hexdigest()[:_ID_DIGITS]


def _write_shards(
    prompts: OrderedPrompts, versions: _ImageVersions, shard_images: int, folder_uri: str
) -> Iterator[ShardPlan]:
    for images in _groups(prompts.by_image(), shard_images):
        content = hashlib.sha256()
        for rows in images:
            content.update(_image_content(rows, versions))
        shard_id = content.hexdigest()[:_ID_DIGITS]
        uri = _shard_uri(folder_uri, shard_id)
        rows = [row for image in images for row in image]
        buffer = io.BytesIO()
        pq.write_table(rows_to_table(rows, PROMPTS_SCHEMA), buffer, compression="zstd")
        write_bytes(uri, buffer.getvalue())
        yield ShardPlan(shard_id=shard_id, uri=uri, prompts=len(rows), images=len(images))


def _shard_uri(folder_uri: str, shard_id: str) -> str:
    return join(folder_uri, "shards", f"{shard_id}.parquet")


def _groups(images: Iterator[ImageRows], size: int) -> Iterator[list[ImageRows]]:
    group: list[ImageRows] = []
    for rows in images:
        group.append(rows)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _image_content(rows: list[Row], versions: _ImageVersions) -> bytes:
    return _canonical([versions.of(rows[0]["image_uri"]), rows])


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
