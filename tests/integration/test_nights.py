"""Night after night: only what changed is done, what was withdrawn gets a tombstone, and the rest stays as it is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from flows import cli
from stable_sam.config import RunConfig
from stable_sam.errors import ConservationError
from stable_sam.records import Changes
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs import commits
from stable_sam.runs import publish as table
from stable_sam.runs.commits import write_part, write_tombstones
from stable_sam.runs.compact import compact
from stable_sam.runs.manifest import RunManifest, ShardPlan, read_manifest
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.runs.summary import RunSummary, summarize
from stable_sam.storage.files import list_files
from stable_sam.table import log as runs
from stable_sam.table import schema
from stable_sam.table.query import query
from tasks.plan import plan

CONFIG: dict[str, Any] = {"refiner": {"model": "tiny", "jitter_count": 1}, "ray": {"actors": 1}, "shard_images": 1}
NEWEST = "history WHERE (prompt_id, revision) IN (SELECT (prompt_id, max(revision)) FROM history GROUP BY prompt_id)"


@pytest.fixture
def job(annotations: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "annotations_uri": str(annotations),
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
        "config": CONFIG,
    }


def night(
    job: dict[str, Any], *, refresh: str | None = None, since: str | None = None, logical_date: str | None = None
) -> RunSummary | None:
    """What the flow does, without Prefect and Ray; None when there is nothing to do."""
    given = {"refresh": refresh, "since": since, "logical_date": logical_date} | job
    request = RunRequest.parse(**given)
    planned = plan.fn(request)
    if planned.manifest_uri is None:
        assert planned.changes.planned + planned.changes.withdrawn == 0
        return None
    manifest = read_manifest(planned.manifest_uri)
    refiner = Refiner(request.config.refiner, request.config.routing)
    for tombstones in manifest.tombstones:
        write_tombstones(manifest, tombstones)
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)
    return summarize(job["output_uri"], manifest.run_id, changes=planned.changes)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def newest(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows = query(job["output_uri"], f"SELECT * FROM {NEWEST}").to_pylist()
    return {row["prompt_id"]: row for row in rows}


def done(summary: RunSummary | None) -> Changes:
    assert summary is not None
    assert summary.changes is not None
    return summary.changes


def test_a_source_that_grows_changes_and_shrinks(job: dict[str, Any], annotations: Path, photos: list[Path]) -> None:
    assert done(night(job)) == Changes(new=9)
    before = newest(job)

    def grow_change_shrink(document: dict[str, Any]) -> None:
        annotations = {a["id"]: a for a in document["annotations"]}
        annotations[0]["bbox"] = [6, 5, 40, 30]
        del annotations[1]
        annotations[99] = {"id": 99, "image_id": 1, "bbox": [10, 10, 20, 20]}
        document["annotations"] = list(annotations.values())

    edit(annotations, grow_change_shrink)
    photos[2].write_bytes(photos[0].read_bytes())
    second = night(job, logical_date="2025-11-23")
    assert done(second) == Changes(new=1, prompt_changed=1, image_changed=3, withdrawn=1, unchanged=4)
    assert second is not None
    assert "1 new, 4 changed (annotation 1, image replaced 3), 1 withdrawn, 4 unchanged" in second.markdown()
    assert second.prompts == 5

    after = newest(job)
    assert {key for key, row in after.items() if row["status"] == "withdrawn"} == {"1"}
    assert {key for key, row in after.items() if row["revision"] == 1} == {"2", "10", "11", "12"}
    assert all(after[key] == before[key] for key in ("2", "10", "11", "12"))
    tombstone = after["1"]
    kept = {"prompt_id", "image_id", "image_uri", "box_xyxy", "image_size", "category_id", "category", "fingerprint"}
    assert {name: tombstone[name] for name in kept} == {name: before["1"][name] for name in kept}
    for name in (
        "mask_counts",
        "mask_size",
        "bbox_xywh",
        "area",
        "predicted_iou",
        "prompt_stability",
        "route",
        "error",
    ):
        assert tombstone[name] is None
    assert tombstone["logical_date"] == "2025-11-23"

    # The same again writes nothing. Then the withdrawn one comes back, as a new revision.
    files = list_files(job["output_uri"])
    assert night(job) is None
    annotations.touch()
    assert night(job) is None
    assert list_files(job["output_uri"]) == files
    edit(annotations, lambda document: document["annotations"].append({"id": 1, "image_id": 0, "bbox": [30, 20, 9, 9]}))
    assert done(night(job)) == Changes(new=1, unchanged=9)
    back = newest(job)["1"]
    assert (back["status"], back["revision"]) == ("ok", 3)
    # A night that only withdraws.
    edit(annotations, lambda document: document["annotations"].pop())
    assert done(night(job)) == Changes(withdrawn=1, unchanged=9)
    assert newest(job)["1"]["status"] == "withdrawn"


def test_since_looks_only_at_newer_files_and_withdraws_nothing(
    job: dict[str, Any], annotations: Path, photos: list[Path]
) -> None:
    for path in (annotations, *photos):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    night(job)
    edit(annotations, lambda document: document["annotations"].pop(0))
    os.utime(annotations, (1_100_000_000, 1_100_000_000))
    photos[0].write_bytes(photos[1].read_bytes())
    os.utime(photos[0], (1_200_000_000, 1_200_000_000))
    assert night(job, since="2100-01-01") is None
    assert done(night(job, since="2006-01-01")) == Changes(image_changed=2, unchanged=7)
    # All of it: what was withdrawn is found, and what was looked at before is done.
    assert done(night(job)) == Changes(withdrawn=1, unchanged=8)


def test_a_table_without_fingerprints_counts_as_changed_once(
    job: dict[str, Any], annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = pa.schema([field for field in schema.MASKS_SCHEMA if field.name != "fingerprint"])
    with monkeypatch.context() as patched:
        for module in (commits, schema, table, runs):
            patched.setattr(module, "MASKS_SCHEMA", older)
        night(job)
    assert "fingerprint" not in {field.name for field in DeltaTable(job["output_uri"]).schema().fields}
    edit(annotations, lambda document: document["annotations"].pop(0))
    second = night(job)
    assert done(second) == Changes(unknown=8, withdrawn=1)
    assert second is not None
    assert "have no fingerprint, so this run counts their prompts as changed: 8." in second.markdown()
    assert len(newest(job)) == 9
    annotations.touch()
    assert night(job) is None


def test_how_prompt_stability_was_measured_survives_compaction(
    job: dict[str, Any], annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = table._run_facts

    def older(*given: Any) -> dict[str, Any]:
        return {name: fact for name, fact in facts(*given).items() if not name.startswith("jitter_")}

    with monkeypatch.context() as patched:
        patched.setattr(table, "_run_facts", older)
        night(job)
    edit(annotations, lambda document: document["annotations"].pop())
    edit(annotations, lambda document: document["annotations"][0].update(bbox=[1, 2, 30, 30]))
    night(job | {"config": CONFIG | {"refiner": {"model": "tiny", "jitter_count": 3, "jitter_scale": 0.2}}})
    assert compact(job["output_uri"]).files_after
    measured = query(
        job["output_uri"], "SELECT jitter_count, jitter_scale, current_prompts FROM runs ORDER BY revision"
    )
    assert [tuple(row.values()) for row in measured.to_pylist()] == [(None, None, 9), (3, 0.2, 8)]


def test_rows_that_are_not_the_sources_prompts_are_not_published(
    job: dict[str, Any], annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_one(manifest: RunManifest) -> None:
        table.publish(replace(manifest, current_prompts=manifest.current_prompts + 1))

    with monkeypatch.context() as patched:
        patched.setattr(f"{__name__}.publish", lose_one)
        with pytest.raises(ConservationError, match="expected 10 current prompts after run .* got 9"):
            night(job)
    assert runs.newest_run(job["output_uri"]) is None

    def wrong_id(manifest: RunManifest, shard: ShardPlan, rows: list[Any], **more: Any) -> Any:
        return write_part(manifest, shard, [(replace(p, prompt_id="0"), replace(m, prompt_id="0")) for p, m in rows])

    monkeypatch.setattr("stable_sam.runs.commits._check_rows", lambda *_: None)
    monkeypatch.setattr("stable_sam.refining.shard_job.write_part", wrong_id)
    edit(annotations, lambda document: document["annotations"][0].update(bbox=[1, 2, 30, 30]))
    with pytest.raises(ConservationError, match="expected one row for each of 9 prompts, got 9 rows of 1 prompt"):
        night(job)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    job: dict[str, Any], annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG))
    options = [f"--{name}={job[f'{name}_uri']}" for name in ("annotations", "images", "output")]
    # A flow that started all the same would fail here at once.
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(sys, "argv", ["stable-sam", "refine", *options, f"--config={config}", "--dry-run"])

    def shown(code: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == code
        return "".join(capsys.readouterr())

    first = shown()
    assert "9 new, 0 changed, 0 withdrawn, 0 unchanged" in first
    assert "9 prompts on 3 images, in 3 shards" in first
    assert "not known: this table has no measured run with this config" in first
    assert not Path(job["output_uri"]).exists()
    night(job)
    files = list_files(job["output_uri"])
    assert "To refine: 0 prompts on 0 images" in shown()
    edit(annotations, lambda document: document["annotations"].pop(0))
    edit(annotations, lambda document: document["annotations"][0].update(bbox=[1, 2, 30, 30]))
    later = shown()
    assert "0 new, 1 changed (annotation 1), 1 withdrawn, 7 unchanged" in later
    assert "Measured: " in later
    # What the night would refuse is shown and said.
    monkeypatch.setattr("stable_sam.runs.plan._TRIAL_PROMPTS", 9)
    edit(annotations, lambda document: document["annotations"].__delitem__(slice(3, None)))
    refused = shown(code=2)
    assert "0 new, 1 changed (annotation 1), 6 withdrawn, 2 unchanged" in refused
    assert "expected most of the table's 9 current prompts, got a source without 6 of them" in refused
    assert list_files(job["output_uri"]) == files


def test_a_dry_run_plans_with_the_calibration_that_a_run_routes_by(
    job: dict[str, Any], annotations: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def two_images(document: dict[str, Any]) -> None:
        document["annotations"] = [annotation for annotation in document["annotations"] if annotation["image_id"] < 2]

    edit(annotations, two_images)
    done(night(job | {"config": {}}))  # nano, with the calibration that comes with it
    [run] = runs.list_runs(DeltaTable(job["output_uri"]))
    assert run.config_hash != RunConfig().content_hash(), "routed without a calibration"
    options = [f"--{name}={job[f'{name}_uri']}" for name in ("annotations", "images", "output")]
    monkeypatch.setattr(sys, "argv", ["stable-sam", "refine", *options, "--refresh=model", "--dry-run"])

    def shown() -> str:
        with pytest.raises(SystemExit):
            cli.main()
        return "".join(capsys.readouterr())

    untouched = shown()
    assert "0 new, 0 changed, 0 withdrawn, 6 unchanged" in untouched
    assert "To refine: 0 prompts" in untouched
    assert "It takes about" in untouched
    edit(annotations, lambda document: document["annotations"][0].update(bbox=[1, 2, 30, 30]))
    changed = shown()
    assert "To refine: 1 prompt on 1 image, in 1 shard." in changed
    assert "It takes about" in changed


def test_failed_prompts_and_other_settings_are_refined_again_when_asked(
    job: dict[str, Any], annotations: Path, photos: list[Path]
) -> None:
    good = photos[0].read_bytes()
    stat = photos[0].stat()
    photos[0].write_bytes(b"x" * len(good))
    os.utime(photos[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    first = night(job)
    assert first is not None
    assert first.failed == 3
    # The picture is repaired and its version is the same: nothing shows that it changed.
    photos[0].write_bytes(good)
    os.utime(photos[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert night(job) is None
    again = night(job, refresh="failed")
    assert again is not None
    assert again.changes is not None
    assert (again.changes.failed, again.changes.unchanged, again.failed) == (3, 6, 0)
    assert night(job, refresh="failed, model") is None
    other = job | {"config": CONFIG | {"routing": {"accept_predicted_iou": 0.1}}}
    assert night(other) is None
    refreshed = night(other, refresh="all")
    assert refreshed is not None
    assert refreshed.changes is not None
    assert (refreshed.changes.other_model, refreshed.prompts) == (9, 9)
    assert {row["revision"] for row in newest(job).values()} == {3}


@pytest.fixture
def backfill(
    job: dict[str, Any], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str, str], str]:  # fmt: skip
    """`stable-sam backfill --from --to` over daily annotation files; its flow is `night`. Returns what it printed."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG))
    options = [f"--annotations={tmp_path}/{{date}}.json", f"--images={job['images_uri']}"]
    options += [f"--output={job['output_uri']}", f"--config={config}"]

    def one_night(**parameters: Any) -> RunSummary:
        summary = night(parameters)
        return summary or RunSummary(table_uri=parameters["output_uri"], run_id="none", rows=(), up_to_date=True)

    monkeypatch.setattr("flows.refine.refine_dataset", one_night)
    monkeypatch.setattr("flows.prefect_setup.check_prefect_api", lambda: None)

    def run(first: str, last: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stable-sam", "backfill", "--from", first, "--to", last, *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert (end.value.code or 0) == (2 if "error: " in shown.err else 0)
        return shown.err

    return run


def test_a_backfill_runs_each_date_once_and_never_leaves_an_older_one(
    backfill: Callable[[str, str], str], job: dict[str, Any], photos: list[Path], tmp_path: Path
) -> None:
    def write(day: int, widths: list[int]) -> None:
        images = [{"id": n, "file_name": path.name, "width": 80, "height": 60} for n, path in enumerate(photos)]
        boxes = [{"id": n, "image_id": n, "bbox": [5, 5, width, 20]} for n, width in enumerate(widths)]
        (tmp_path / f"2025-11-2{day}.json").write_text(json.dumps({"images": images, "annotations": boxes}))

    def published() -> list[str]:
        rows = query(job["output_uri"], "SELECT logical_date FROM runs ORDER BY revision").to_pylist()
        return [row["logical_date"] for row in rows]

    write(0, [30])
    write(1, [30])
    write(2, [30, 40])
    assert "2025-11-23.json: no such annotation file" in backfill("2025-11-20", "2025-11-23")
    backfill("2025-11-20", "2025-11-22")
    assert published() == ["2025-11-20", "2025-11-22"]
    # Once more: all is there, also the day that changed nothing.
    assert backfill("2025-11-20", "2025-11-22").count("already in the table") == 3
    # A day in the middle was corrected: it and what follows is run, but only when the table ends where it was.
    write(1, [50])
    assert "the table already stands at 2025-11-22" in backfill("2025-11-20", "2025-11-21")
    assert backfill("2025-11-20", "2025-11-22").count("already in the table") == 1
    assert published() == ["2025-11-20", "2025-11-22", "2025-11-21", "2025-11-22"]
    widths = {key: row["box_xyxy"][2] - 5 for key, row in newest(job).items() if row["status"] == "ok"}
    assert widths == {"0": 30, "1": 40}
    assert "expected YYYY-MM-DD, got 'never'" in backfill("never", "2025-11-22")
