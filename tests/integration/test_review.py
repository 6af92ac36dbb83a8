"""Masks come back from people: reviewed rows, which no night overwrites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flows import cli
from stable_sam.config import RefinerConfig, RegressionConfig
from stable_sam.errors import ConfigError, InputError, StorageError
from stable_sam.formats.export_records import SENT
from stable_sam.records import Changes
from stable_sam.review import answers as review
from stable_sam.review.answers import import_answers, reviewed_masks
from stable_sam.review.import_review import import_review
from stable_sam.rle import decode_mask, encode_mask
from stable_sam.runs.compact import compact
from stable_sam.runs.publish import publish
from stable_sam.runs.regression import compare_nights
from stable_sam.runs.summary import describe, summarize
from stable_sam.storage.files import list_files, read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.query import query
from tests.integration.review_job import (
    HEIGHT,
    WIDTH,
    Job,
    answer,
    correct_p1_delete_p2,
    corrected_mask,
    edit,
    new_job,
    painted,
    rle,
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return new_job(str(tmp_path))


def test_no_night_overwrites_what_people_decided(job: Job) -> None:
    out = job.export()
    correct_p1_delete_p2(out)
    before = job.rows()
    report = import_review(job.table, out, "coco", reviewer="ann")
    assert (report.corrected, report.rejected, report.confirmed, report.unchanged) == (1, 1, 0, 7)
    assert report.problems == ()

    rows = job.rows()
    assert {key: row for key, row in rows.items() if key not in ("p1", "p2")} == {
        key: row for key, row in before.items() if key not in ("p1", "p2")
    }
    kept = {name: before["p1"][name] for name in ("prompt_id", "image_uri", "box_xyxy", "category", "fingerprint")}
    found = encode_mask(corrected_mask())
    assert rows["p1"] == before["p1"] | kept | {
        "status": "reviewed", "verdict": "corrected", "route": "accept", "route_reason": "reviewed: corrected",
        "mask_counts": found.counts, "area": found.area, "bbox_xywh": list(found.bbox_xywh),
        "predicted_iou": None, "prompt_stability": None, "quality": None, "gain_over_box": None,
        "run_id": report.run_id, "revision": 2, "shard_id": rows["p1"]["shard_id"], "model_id": "review:ann",
        "weights_sha256": "", "dtype": "", "config_hash": before["p1"]["config_hash"],
    }  # fmt: skip
    assert (rows["p2"]["verdict"], rows["p2"]["route"], rows["p2"]["mask_counts"]) == ("rejected", "reject", None)

    # A night with nothing new, one that refines everything again, one whose boxes and pictures are others.
    assert job.night() == Changes(unchanged=9)
    assert job.night("all") == Changes(unchanged=9, reviewed=2)
    job.boxes |= {"p1": (2.0, 2.0, 20.0, 20.0), "p4": (2.0, 2.0, 20.0, 20.0)}
    job.draw(2, 200)
    changes = job.night("all")
    assert changes == Changes(prompt_changed=1, image_changed=2, unchanged=6, reviewed=2)
    assert "2 would have been refined if they were not reviewed" in describe(changes)
    compact(job.table)
    assert job.rows()["p1"] == rows["p1"]
    assert job.rows()["p2"] == rows["p2"]
    assert job.rows()["p4"]["box_xyxy"] == [2, 2, 20, 20]

    # What the source no longer has gets its tombstone all the same; history keeps the mask.
    del job.boxes["p1"]
    assert job.night() == Changes(withdrawn=1, unchanged=8, reviewed=1)
    assert "p1" not in job.rows()
    assert job.rows("SELECT * FROM history WHERE revision = 2")["p1"] == rows["p1"]


@pytest.mark.parametrize("settings", [{"tile_below_cells": 4.5, "tile_scale": 2.5}, {}, {"tiles": "off"}])
def test_a_review_says_the_tiles_of_the_run_that_it_continues(tmp_path: Path, settings: dict[str, Any]) -> None:
    job = new_job(str(tmp_path), refiner=RefinerConfig(**settings))
    out = job.export()
    correct_p1_delete_p2(out)
    import_review(job.table, out, "coco")
    runs = query(job.table, "SELECT tiles FROM runs").to_pylist()
    assert runs == [{"tiles": job.refiner.tile_rule}] * 2


def test_the_same_import_again_changes_nothing(job: Job) -> None:
    out = job.export()
    correct_p1_delete_p2(out)
    planned = import_review(job.table, out, "coco", dry_run=True)
    assert (planned.corrected, planned.rejected, planned.run_id) == (1, 1, None)
    assert job.rows("SELECT * FROM history") == job.rows()
    first = import_review(job.table, out, "coco", confirm_unchanged=True)
    assert first.confirmed == 7
    files = list_files(job.table)
    again = import_review(job.table, out, "coco", confirm_unchanged=True)
    assert (again.imported, again.already, again.run_id) == (0, 9, None)
    assert list_files(job.table) == files
    confirmed = job.rows()["p3"]
    scores = [confirmed[name] for name in ("predicted_iou", "quality", "gain_over_box")]
    assert (confirmed["verdict"], scores) == ("confirmed", [0.6, 0.55, 0.1])
    assert np.array_equal(decode_mask((HEIGHT, WIDTH), confirmed["mask_counts"]), painted("p3"))


def test_an_import_that_was_killed_is_taken_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    out = job.export()
    correct_p1_delete_p2(out)
    with monkeypatch.context() as patched:
        patched.setattr(review, "publish", lambda manifest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_review(job.table, out, "coco")
    assert query(job.table, "SELECT count(*) AS n FROM masks WHERE status = 'reviewed'").to_pylist() == [{"n": 0}]
    parts = [uri for uri in list_files(job.table) if "/data/" in uri]
    assert import_review(job.table, out, "coco").imported == 2
    assert job.rows()["p1"]["verdict"] == "corrected"
    assert job.rows()["p1"]["revision"] == 2
    assert query(job.table, "SELECT count(*) AS n FROM history").to_pylist() == [{"n": 11}]
    # Its rows were written again under other names, and only those of the first commit count.
    assert len(parts) < len([uri for uri in list_files(job.table) if "/data/" in uri])


def test_a_night_that_was_planned_before_an_import_does_not_overwrite_it(job: Job) -> None:
    out = job.export()
    correct_p1_delete_p2(out)
    job.boxes["p1"] = (3.0, 3.0, 9.0, 9.0)
    late = job.refined(job.plan())
    with pytest.raises(ConfigError, match=f"run {late.run_id} is being made"):
        import_review(job.table, out, "coco")
    import_review(job.table, out, "coco", force=True)
    with pytest.raises(StorageError, match="another run was published meanwhile; start this one again"):
        publish(late)
    assert job.rows()["p1"]["verdict"] == "corrected"


def test_what_cannot_be_imported_is_told_and_the_rest_is_imported(job: Job) -> None:
    out = job.export()
    correct_p1_delete_p2(out)
    job.boxes["p3"] = (2.0, 2.0, 20.0, 20.0)
    del job.boxes["p5"]
    job.night()
    report = import_answers(
        job.table,
        [
            answer("p0", corrected_mask()),
            answer("p3", corrected_mask()),  # a night refined it since
            answer("p4", np.ones((5, 5), np.bool_)),
            answer("p5", corrected_mask()),
            answer("nobody", corrected_mask()),
            answer("p6", painted("p6"), checked=True),
        ],
    )
    assert (report.corrected, report.confirmed) == (1, 1)
    assert list(report.problems) == [
        "file, p3: prompt p3: its row was replaced since the export (revision 1 was sent, revision 2 by painter is "
        "current): export it again",
        "file, p4: prompt p4: expected a mask of 60 x 40 pixels, got one of 5 x 5",
        "file, p5: prompt p5: its annotation was withdrawn from the source",
        f"file, nobody: prompt nobody: expected a prompt of {job.table}, found none",
    ]


def test_reviewers_do_not_overwrite_each_other(job: Job) -> None:
    assert import_answers(job.table, [answer("p1", corrected_mask())], reviewer="ann").corrected == 1
    other = ~corrected_mask()
    # Another file that was made from the same export: as it was sent, it says nothing; else it contradicts.
    assert import_answers(job.table, [answer("p1", painted("p1"))], reviewer="bob").unchanged == 1
    for contradiction in (other, None):
        report = import_answers(job.table, [answer("p1", contradiction)], reviewer="bob")
        assert report.imported == 0
        assert "revision 1 was sent, revision 2 by review:ann is current" in report.problems[0]
    unknown = import_answers(job.table, [answer("p1", other, None)])
    assert "the file does not say which revision was sent" in unknown.problems[0]
    # Ann goes on with her file; bob has the mask exported again.
    assert import_answers(job.table, [answer("p1", other)], reviewer="ann").corrected == 1
    assert import_answers(job.table, [answer("p1", corrected_mask(), 3)], reviewer="bob").corrected == 1
    assert import_answers(job.table, [answer("p1", None, 4)], reviewer="ann").rejected == 1


def test_files_that_contradict_each_other(job: Job) -> None:
    out = job.export()
    correct_p1_delete_p2(out)
    document = json.loads(read_bytes(join(out, "instances.json")))
    for annotation in document["annotations"]:
        if annotation["prompt_id"] == "p1":
            annotation["segmentation"] = rle(~corrected_mask())
    write_bytes(join(out, "second.json"), json.dumps(document).encode())
    report = import_review(job.table, out, "coco")
    assert (report.corrected, report.rejected) == (0, 1)
    assert report.problems[0].startswith("prompt p1: two different masks: ")


def test_what_is_told_of_ids_that_move_the_cursor_is_printable(job: Job) -> None:
    out = job.export()
    new = {"id": 99, "image_id": 1, "prompt_id": "\x1b[2J\ud800" * 999, "segmentation": rle(corrected_mask())}
    edit(join(out, "instances.json"), lambda document: document["annotations"].append(new))
    (told,) = import_review(job.table, out, "coco", dry_run=True).problems
    assert told.isprintable()
    assert "prompt \\x1b[2J\\ud800" in told
    assert len(told) == 2000


def test_half_a_file_is_refused(job: Job) -> None:
    job.boxes |= {f"p{k}": (1.0, 1.0, 9.0, 9.0) for k in range(9, 30)}
    job.night()
    out = job.export()
    edit(join(out, "instances.json"), lambda document: document["annotations"].clear())
    with pytest.raises(InputError, match="got deletions of 30; nothing was imported; .* set --max-rejected"):
        import_review(job.table, out, "coco")
    assert import_review(job.table, out, "coco", max_rejected_fraction=1).rejected == 30


def test_half_a_file_without_ids_is_refused_without_advice_to_import_it(job: Job) -> None:
    job.boxes |= {f"p{k}": (1.0, 1.0, 9.0, 9.0) for k in range(9, 30)}
    job.night()
    out = job.export()

    def lose(document: dict[str, Any]) -> None:
        del document["annotations"][9:]
        for annotation in document["annotations"]:
            del annotation["prompt_id"]

    edit(join(out, "instances.json"), lose)
    with pytest.raises(InputError, match="masks came back without their prompt_id") as refused:
        import_review(job.table, out, "coco")
    assert "max_rejected" not in str(refused.value)


@pytest.mark.parametrize("form", ["coco", "cvat", "labelme"])
def test_masks_without_ids_are_unchanged(form: str, job: Job) -> None:
    out = job.export(form)
    for uri in list_files(out):
        if uri.endswith((".json", ".xml")) and not uri.endswith(SENT):
            text = read_bytes(uri).decode()
            write_bytes(uri, text.replace("prompt_id", "other").replace('"stable_sam"', '"own"').encode())
    report = import_review(job.table, out, form, dry_run=True)
    assert (report.unchanged, report.problems) == (9, ())


def test_label_studio_annotations_confirm_and_predictions_do_not(job: Job) -> None:
    out = job.export("labelstudio")
    assert import_review(job.table, out, "labelstudio").imported == 0

    def annotate(tasks: list[dict[str, Any]]) -> None:
        first, second, third = tasks
        first["annotations"] = [{"id": 1, "was_cancelled": False, "result": first["predictions"][0]["result"][1:]}]
        second["annotations"] = [{"id": 2, "was_cancelled": True, "result": []}]
        third["annotations"] = []

    edit(join(out, "tasks.json"), annotate)
    report = import_review(job.table, join(out, "tasks.json"), "labelstudio", reviewer="ann")
    assert (report.confirmed, report.rejected, report.corrected) == (2, 1, 0)
    verdicts = {key: row["verdict"] for key, row in job.rows().items() if row["verdict"]}
    assert verdicts == {"p0": "rejected", "p3": "confirmed", "p6": "confirmed"}


def test_corrected_pixels_of_a_png(job: Job) -> None:
    out = job.export("png")
    (path,) = [uri for uri in list_files(join(out, "masks")) if uri.endswith("/1.png.png")]
    pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    pixels[pixels == 1] = 0
    pixels[0, 0] = 9
    cv2.imwrite(path, pixels)
    report = import_review(job.table, out, "png")
    # The new object may be the one that is missing.
    assert report.imported == 0
    assert report.problems[0].startswith(f"{path}: value 9: an object without a prompt_id, which is like none of the ")
    assert "1 mask without an answer" in report.problems[1]
    pixels[0, 0] = 0
    cv2.imwrite(path, pixels)
    report = import_review(job.table, out, "png")
    assert (report.rejected, report.corrected, report.problems) == (1, 0, ())


def test_quality_summary_and_the_next_nights_take_no_notice_of_an_import(job: Job) -> None:
    config = RegressionConfig(nights=1, min_nights=1, min_prompts=5)
    import_answers(job.table, [answer(f"p{k}", painted(f"p{k}"), checked=True) for k in range(6)])
    run_id = query(job.table, "SELECT run_id FROM runs ORDER BY revision DESC").to_pylist()[0]["run_id"]
    summary = summarize(job.table, run_id)
    assert (summary.prompts, summary.failed, summary.rows[0].status) == (6, 0, "reviewed")
    assert compare_nights(job.table, run_id, config).measures == ()
    job.boxes |= {f"p{k}": (1.0, 1.0, 9.0, 9.0) for k in range(9, 20)}
    assert job.night() == Changes(new=11, unchanged=9)
    newest = query(job.table, "SELECT run_id FROM runs ORDER BY revision DESC").to_pylist()[0]["run_id"]
    assert {measure.usual for measure in compare_nights(job.table, newest, config).measures} == {1.0, 0.0, 0.5, 0.6}


def test_reviewed_masks_are_labels(job: Job) -> None:
    import_answers(job.table, [answer("p1", corrected_mask()), answer("p2"), answer("p3", painted("p3"), checked=True)])
    labels = {row["prompt_id"]: row for row in reviewed_masks(job.table).to_pylist()}
    assert labels.keys() == {"p1", "p2", "p3"}
    one, true = painted("p1"), corrected_mask()
    assert labels["p1"]["true_iou"] == pytest.approx((one & true).sum() / (one | true).sum())
    assert (labels["p2"]["true_iou"], labels["p2"]["true_mask_counts"]) == (0.0, None)
    assert (labels["p3"]["true_iou"], labels["p3"]["verdict"]) == (1.0, "confirmed")
    assert {(row["predicted_iou"], row["model_id"]) for row in labels.values()} == {(0.6, "painter")}
    # Of a mask that is corrected again the model's row is still the one that counts.
    import_answers(job.table, [answer("p1", painted("p1"), 2)])
    again = reviewed_masks(job.table).to_pylist()
    assert [row["true_iou"] for row in again if row["prompt_id"] == "p1"] == [1.0]


def test_the_commands(job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["stable-sam", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert (ended.value.code == 0) == (not captured.err.startswith("error: ")), captured.err
        return captured.out, captured.err

    out = join(job.root, "out")
    printed, _ = run("export", "--table", job.table, "--to", "coco", "--out", out, "--routes", "accept, review")
    assert printed == f"9 masks of 3 images written to {out} (coco).\n"
    correct_p1_delete_p2(out)
    edit(join(out, "instances.json"), lambda document: document["annotations"].append(
        {"id": 99, "image_id": 1, "segmentation": rle(corrected_mask())}))  # fmt: skip
    arguments = ("import-review", "--table", job.table, "--from", out, "--format", "coco")
    printed, told = run(*arguments, "--dry-run")
    assert printed.startswith("Dry run: nothing was written. 1 corrected, 0 confirmed, 1 rejected; 7 unchanged")
    assert told == f"not imported: {out}/instances.json: annotation 99: a new object without a prompt_id\n"
    printed, _ = run(*arguments, "--reviewer", "ann")
    assert "1 corrected, 0 confirmed, 1 rejected; 7 unchanged, 0 already in the table, 1 not imported." in printed
    printed, _ = run(*arguments)
    assert printed == "Nothing to import: 7 unchanged, 2 already in the table, 1 not imported.\n"
    for wrong, message in {
        ("--format", "voc"): "error: --format: expected coco,",
        ("--from", join(job.root, "nothing")): "error: ",
        ("--from", join(out, "images")): "error: ",
    }.items():
        _, told = run(*arguments, *wrong)
        assert told.startswith(message)
        assert told.count("\n") == 1


def test_masks_that_a_tool_drew_anew(job: Job) -> None:
    mask = painted("p1")
    mask[5, 4] = False
    redrawn = [answer("p1", mask)]
    assert import_answers(job.table, redrawn, unchanged_iou=0.95).unchanged == 1
    assert import_answers(job.table, redrawn).corrected == 1
