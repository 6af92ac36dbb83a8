"""Writes a run as a time line in the Trace Event Format, which chrome://tracing and ui.perfetto.dev open.

Each process of the time line is an actor together with its model's process and its helpers; each line is one thread.

    <output>/_runs/<run_id>/spans/<shard_id>.json     the spans of a shard, written after it is committed

In a profiled run each actor keeps its spans in such files, because they are too many for its report to the driver.
Nothing but the trace reads them, and `stable-sam vacuum` removes them with the run's folder.
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
from stable_sam.storage.files import list_files, read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.timing import SPANS_OF_AN_IMAGE, STAGES, WAIT, Span, StageClock, Times

SPANS_OF_A_TRACE = 20_000
"""Most spans of a trace: 4 MB of JSON, which both viewers draw without delay. A larger run shows its first shards."""
_OF_A_SHARD = ("write", "commit")


@dataclass(slots=True)
class TracedRun:
    """The run that is traced in a block of `traced`."""

    manifest_uri: str | None = None
    """URI of the run's manifest, which the block sets once the run is planned. The trace then also shows the actors."""


@contextmanager
def traced(uri: str | None) -> Iterator[TracedRun]:
    """Write the trace of the block to `uri`, also when the block fails. None writes no trace.

    Raises `StorageError` before the block when `uri` cannot be written to.
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
        with suppress(StorageError):  # the error that ended the run must be reported, not that of its trace
            write_trace(uri, clock.times(), run.manifest_uri)
        raise
    write_trace(uri, clock.times(), run.manifest_uri)


def write_trace(uri: str, driver: Times, manifest_uri: str | None = None) -> None:
    """Write the trace of a run, or of the driver alone when there is no manifest; raises `StorageError`."""
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
    """Make the trace as a JSON object, whose `otherData` has `facts` and says what of the run is left out.

    Shards are taken whole, as many as `SPANS_OF_A_TRACE` allows; further shards are not read.
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
        "limits": f"A trace has at most {SPANS_OF_A_TRACE} spans of actors. When it is full, later shards are left "
        "out. Shards that were committed before the run was profiled have no spans.",
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
    """Group spans into lines by thread, each named by its stages. A thread continues the line of an ended thread of the
    same name."""
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
    """The spans of the work on one shard."""

    shard_id: str
    actor: str
    """Node and process id of the actor."""
    spans: tuple[Span, ...]
    left_out: int
    """Number of spans that were dropped because the clock's limit was reached."""


def write_spans(manifest: RunManifest, shard_id: str, actor: str, times: Times) -> None:
    """Write the spans of a shard to the run's folder; raises `StorageError`."""
    content: dict[str, Any] = {"actor": actor, "left_out": times.left_out, "spans": [asdict(s) for s in times.spans]}
    write_bytes(_uri(manifest, shard_id), json.dumps(content).encode())


def read_spans(manifest: RunManifest) -> Iterator[ShardSpans]:
    """Yield the spans of each shard that has any, one shard at a time, in the order of the manifest.

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
