"""What each actor did when, kept for a profile only: pieces of work too many for an actor's report to the driver.

    <output>/_runs/<run_id>/spans/<shard_id>.json     written once the shard is committed; nothing depends on it

They go with the run's folder when `stable-sam vacuum` removes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from stable_sam.data.manifest import RunManifest
from stable_sam.data.storage import join, list_files, read_bytes, write_bytes
from stable_sam.errors import StorageError
from stable_sam.stage_clock import Span, Times


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpans:
    """The work on one shard."""

    shard_id: str
    actor: str
    """Node and process."""
    spans: tuple[Span, ...]
    left_out: int
    """Spans that were one too many."""


def write_spans(manifest: RunManifest, shard_id: str, actor: str, times: Times) -> None:
    """Keep the spans of a shard beside its commit record; raises `StorageError`."""
    content: dict[str, Any] = {"actor": actor, "left_out": times.left_out, "spans": [asdict(s) for s in times.spans]}
    write_bytes(_uri(manifest, shard_id), json.dumps(content).encode())


def read_spans(manifest: RunManifest) -> Iterator[ShardSpans]:
    """The shards of a run that have spans, in the order in which actors got them; one at a time is held.

    Raises `StorageError`.
    """
    there = set(list_files(join(manifest.folder_uri, "spans")))
    for shard in manifest.shards:
        uri = _uri(manifest, shard.shard_id)
        if uri in there:
            yield _read(uri, shard.shard_id)


def _read(uri: str, shard_id: str) -> ShardSpans:
    data = read_bytes(uri)
    try:
        raw = json.loads(data)
        spans = tuple(Span(**span) for span in raw["spans"])
        return ShardSpans(shard_id=shard_id, actor=raw["actor"], spans=spans, left_out=raw["left_out"])
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{uri}: expected spans of this version of stable-sam: {error}") from error


def _uri(manifest: RunManifest, shard_id: str) -> str:
    return join(manifest.folder_uri, "spans", f"{shard_id}.json")
