"""A run as a picture: who did what when, in the Trace Event Format that chrome://tracing and ui.perfetto.dev open.

A process of the picture is an actor, with its model's process and its helpers; a line of it is one of their threads.

    <output>/_runs/<run_id>/spans/<shard_id>.json     written once the shard is committed; nothing depends on it

Each actor keeps its spans there during a profiled run, because they are too many for its report to the driver.
`stable-sam vacuum` removes them with the run's folder.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from stable_sam.errors import StorageError
from stable_sam.runs.manifest import RunManifest, read_manifest
from stable_sam.storage.files import join, list_files, read_bytes, write_bytes
from stable_sam.timing import SPANS_OF_AN_IMAGE, STAGES, WAIT, Span, StageClock, Times

SPANS_OF_A_TRACE = 20_000
"""4 MB of JSON, which both viewers draw at once. A larger run shows its first shards."""
_OF_A_SHARD = ("write", "commit")


@dataclass(slots=True)
class TracedRun:
    """The run that a block of `traced` makes."""

    manifest_uri: str | None = None
    """Set by the block once the run is planned; the trace then shows its actors too."""


@contextmanager
def traced(uri: str | None) -> Iterator[TracedRun]:
    """Write the trace of the block to `uri`, also when the block fails; None writes none.

    Raises `StorageError` before the block for a place that cannot be written to.
    """
    run = TracedRun()
    if uri is None:
        yield run
        return
    write_trace(uri, Times(seconds={}))
    clock = StageClock(spans=SPANS_OF_AN_IMAGE)
    try:
        with clock:
            yield run
    except BaseException:
        with suppress(StorageError):  # what ended the run is what must be said
            write_trace(uri, clock.times(), run.manifest_uri)
        raise
    write_trace(uri, clock.times(), run.manifest_uri)


def write_trace(uri: str, driver: Times, manifest_uri: str | None = None) -> None:
    """Write the trace of a run, of the driver's own work alone without a manifest; raises `StorageError`."""
    if manifest_uri is None:
        trace = chrome_trace(driver.spans, [])
    else:
        manifest = read_manifest(manifest_uri)
        facts = {"run_id": manifest.run_id, "table": manifest.output_uri, "shards": len(manifest.shards)}
        trace = chrome_trace(driver.spans, read_spans(manifest), facts)
    write_bytes(uri, json.dumps(trace).encode())


def chrome_trace(
    driver: Sequence[Span], shards: Iterable[ShardSpans], facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The trace as a JSON object; `otherData` says what of the run is not in it, and `facts`.

    Of `shards` no more are taken than `SPANS_OF_A_TRACE` allows, each whole; the rest is not read.
    """
    by_actor: dict[str, list[Span]] = defaultdict(list)
    kept = shown = left_out = 0
    full = False
    for shard in shards:
        if full := kept + len(shard.spans) > SPANS_OF_A_TRACE:
            break
        by_actor[shard.actor].extend(shard.spans)
        kept, shown, left_out = kept + len(shard.spans), shown + 1, left_out + shard.left_out
    processes = {"driver": list(driver)}
    processes |= {f"actor {number} ({actor})": by_actor[actor] for number, actor in enumerate(sorted(by_actor), 1)}
    start = min((span.start for spans in processes.values() for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for pid, (name, spans) in enumerate(processes.items()):
        events.append({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}})
        for tid, (label, line) in enumerate(_lines(spans)):
            events.append({"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": label}})
            line.sort(key=lambda span: (span.start, -span.seconds))
            events.extend(_event(span, pid, tid, start) for span in line)
    other = {
        **(facts or {}),
        "start": datetime.fromtimestamp(start, UTC).isoformat(),
        "shards_shown": shown,
        "full": full,
        "spans_left_out": left_out,
        "limits": f"at most {SPANS_OF_A_TRACE} spans a run, then it is full and later shards are left out; shards "
        "that were committed before the run was profiled have none",
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _event(span: Span, pid: int, tid: int, start: float) -> dict[str, Any]:
    about = {"shard_id" if span.stage in _OF_A_SHARD else "image_uri": span.about} if span.about else {}
    return {
        "name": span.stage,
        "cat": "stage",
        "ph": "X",
        "ts": round(1e6 * (span.start - start), 1),
        "dur": round(1e6 * span.seconds, 1),
        "pid": pid,
        "tid": tid,
        "args": about,
    }


def _lines(spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    """The spans by thread, named by the stages there; a thread takes the line of one of its kind that has ended."""
    by_thread: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_thread[span.thread].append(span)
    lines: list[tuple[str, list[Span]]] = []
    for thread in sorted(by_thread.values(), key=_first):
        stages = dict.fromkeys(span.stage for span in thread if span.stage != WAIT)
        label = ", ".join(sorted(stages, key=lambda stage: STAGES.index(stage) if stage in STAGES else -1))
        ended = (line for name, line in lines if name == label and _last(line) <= _first(thread))
        if (line := next(ended, None)) is not None:
            line.extend(thread)
        else:
            lines.append((label, thread))
    return lines


def _first(spans: Iterable[Span]) -> float:
    return min(span.start for span in spans)


def _last(spans: Iterable[Span]) -> float:
    return max(span.start + span.seconds for span in spans)


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
