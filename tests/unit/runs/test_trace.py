"""The trace is what the viewers read: complete events in microseconds, a process for each actor, bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.refine import refine_dataset
from stable_sam.config import RunConfig
from stable_sam.errors import InputError, StorageError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt
from stable_sam.runs import trace
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.runs.trace import ShardSpans, chrome_trace, read_spans, write_spans, write_trace
from stable_sam.timing import WAIT, Span, Times


def span(stage: str, start: float, seconds: float, thread: str = "n:1:1", about: str = "s3://lake/a.jpg") -> Span:
    return Span(stage=stage, about=about, start=1.7e9 + start, seconds=seconds, thread=thread)


def shard(actor: str, *spans: Span, shard_id: str = "s", left_out: int = 0) -> ShardSpans:
    return ShardSpans(shard_id=shard_id, actor=actor, spans=spans, left_out=left_out)


def events(made: dict[str, Any], phase: str = "X") -> list[dict[str, Any]]:
    return [event for event in made["traceEvents"] if event["ph"] == phase]


def test_events_have_the_fields_of_the_format() -> None:
    driver = [span("plan", 0, 1, "d:9:9", about="")]
    one = shard("n:1", span("encode", 1.5, 0.25), span("commit", 2, 0.5, "n:1:7", about="s"), left_out=3)
    made = json.loads(json.dumps(chrome_trace(driver, [one], {"run_id": "r1"})))
    plan, encode, commit = events(made)
    assert plan | {"tid": 0} == {
        "name": "plan", "cat": "stage", "ph": "X", "ts": 0.0, "dur": 1e6, "pid": 0, "tid": 0, "args": {}
    }  # fmt: skip
    assert (encode["ts"], encode["dur"], encode["args"]) == (1.5e6, 0.25e6, {"image_uri": "s3://lake/a.jpg"})
    assert commit["args"] == {"shard_id": "s"}
    assert encode["pid"] == commit["pid"] == 1
    assert encode["tid"] != commit["tid"]
    names = [(event["name"], event["pid"], event["args"]["name"]) for event in events(made, "M")]
    assert names == [
        ("process_name", 0, "driver"),
        ("thread_name", 0, "plan"),
        ("process_name", 1, "actor 1 (n:1)"),
        ("thread_name", 1, "encode"),
        ("thread_name", 1, "commit"),
    ]
    other = made["otherData"]
    assert (other["run_id"], other["shards_shown"], other["spans_left_out"]) == ("r1", 1, 3)
    assert other["start"] == "2023-11-14T22:13:20+00:00"


def test_threads_that_follow_each_other_share_a_line_and_those_side_by_side_do_not() -> None:
    made = chrome_trace(
        [],
        [
            shard("n:1", span("fetch", 0, 1, "n:1:1"), span("fetch", 0.5, 1, "n:1:2"), span("fetch", 2, 1, "n:1:3")),
            shard("n:2", span("encode", 0, 3, "n:2:1"), span(WAIT, 1, 1, "n:2:1")),
        ],
    )
    fetches = [event["tid"] for event in events(made) if event["name"] == "fetch"]
    assert fetches == [0, 0, 1]
    assert [event["name"] for event in events(made) if event["pid"] == 2] == ["encode", WAIT]


def test_a_large_run_shows_its_first_shards_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "SPANS_OF_A_TRACE", 5)
    two = (span("encode", 0, 1), span("rle", 1, 1))
    shards = iter([shard("n:1", *two)] * 5)
    made = chrome_trace([], shards)
    assert len(events(made)) == 4
    assert (made["otherData"]["shards_shown"], made["otherData"]["full"]) == (2, True)
    assert len(list(shards)) == 2, "the rest is not read"
    assert "at most 5 spans" in made["otherData"]["limits"]


def test_a_run_without_spans_is_a_trace_all_the_same(tmp_path: Path) -> None:
    write_trace(str(tmp_path / "new" / "trace.json"), Times(seconds={}))
    made = json.loads((tmp_path / "new" / "trace.json").read_text())
    assert events(made) == []


@pytest.fixture
def manifest(tmp_path: Path) -> RunManifest:
    (tmp_path / "images").mkdir()
    planned = plan_run(
        [Prompt(prompt_id=k, image_id=k, image_uri=f"{k}.jpg", box_xyxy=(0, 0, 1, 1)) for k in "abc"],
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(tmp_path / "images"),
            output_uri=str(tmp_path / "table"),
            config=RunConfig(shard_images=1),
        ),
        ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32"),
    )
    assert planned is not None
    return planned


def test_spans_come_back_from_the_runs_folder(manifest: RunManifest, tmp_path: Path) -> None:
    assert list(read_spans(manifest)) == []
    first, _, last = (one.shard_id for one in manifest.shards)
    one = span("encode", 0, 1)
    write_spans(manifest, last, "n:1", Times(seconds={}, spans=(one,), left_out=2))
    write_spans(manifest, first, "n:2", Times(seconds={}))
    assert list(read_spans(manifest)) == [
        shard("n:2", shard_id=first),
        shard("n:1", one, shard_id=last, left_out=2),
    ]
    write_trace(str(tmp_path / "trace.json"), Times(seconds={}), manifest.uri)
    other = json.loads((tmp_path / "trace.json").read_text())["otherData"]
    assert (other["run_id"], other["table"], other["shards"], other["shards_shown"]) == (
        manifest.run_id, manifest.output_uri, 3, 2
    )  # fmt: skip
    path = Path(manifest.folder_uri, "spans", f"{first}.json")
    path.write_text('{"spans": [{}]}')
    with pytest.raises(StorageError, match=f"^{path}: expected spans of this version"):
        list(read_spans(manifest))


def test_a_place_that_cannot_be_written_to_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "trace.json")
    with pytest.raises(StorageError, match=f"^{place}: cannot write"):
        refine_dataset.fn("gone.json", "gone", str(tmp_path / "table"), profile_uri=place)
    assert not (tmp_path / "table").exists()


def test_a_place_that_is_gone_in_the_end_does_not_hide_what_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "traces" / "trace.json"

    def fails(_: object) -> None:
        place.unlink()
        place.parent.rmdir()
        place.parent.write_text("")
        raise InputError("weak.json: no annotations")

    monkeypatch.setattr("flows.refine.plan", fails)
    with pytest.raises(InputError, match="^weak.json: no annotations"):
        refine_dataset.fn("weak.json", "images", str(tmp_path / "table"), profile_uri=str(place))
