"""A night that is scored against true masks of a part of its images, by the real refiner; Prefect and Ray left out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flows import cli
from stable_sam.config import RunConfig
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.rle import decode_mask
from stable_sam.runs.commits import write_tombstones
from stable_sam.runs.compact import compact
from stable_sam.runs.manifest import RunManifest, read_manifest
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.runs.summary import RunSummary, summarize
from stable_sam.runs.vacuum import vacuum
from stable_sam.storage.files import list_files
from stable_sam.table.query import query
from tasks.plan import plan

CONFIG: dict[str, Any] = {"refiner": {"model": "tiny", "jitter_count": 1}, "shard_images": 1}


@pytest.fixture
def job(annotations: Path, tmp_path: Path) -> dict[str, Any]:
    return {"annotations_uri": str(annotations), "images_uri": str(tmp_path / "images"), "output_uri": str(tmp_path)}


def planned(job: dict[str, Any], truth: Path | None) -> RunManifest:
    config = RunConfig.from_dict(CONFIG | {"truth_uri": None if truth is None else str(truth)})
    found = plan.fn(RunRequest.parse(**job, config=config))
    assert found.manifest_uri is not None
    return read_manifest(found.manifest_uri)


def night(job: dict[str, Any], truth: Path | None) -> RunSummary:
    manifest = planned(job, truth)
    refiner = Refiner(manifest.config.refiner, manifest.config.routing)
    for shard in manifest.tombstones:
        write_tombstones(manifest, shard)
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)
    return summarize(job["output_uri"], manifest.run_id)


def masks(job: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = query(job["output_uri"], "SELECT * FROM masks ORDER BY prompt_id").to_pylist()
    return rows


@pytest.fixture
def truth(job: dict[str, Any], tmp_path: Path) -> Path:
    """What the refiner says of the first two images, moved by as many pixels as the annotation's id, and an object
    more."""
    first = {**job, "output_uri": str(tmp_path / "first")}
    night(first, None)
    annotations = []
    for row in masks(first):
        if row["image_id"] == "2":
            continue
        moved = np.roll(decode_mask(tuple(row["mask_size"]), row["mask_counts"]), int(row["annotation_id"]) % 10 * 3, 1)
        rle = coco_mask.encode(np.asfortranarray(moved).view(np.uint8))
        annotations.append(
            {
                "id": int(row["annotation_id"]),
                "image_id": int(row["image_id"]) + 500,
                "category_id": 8,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
            }
        )
    missed = [[0, 0, 9, 0, 9, 9, 0, 9]]
    annotations.append(
        {"id": 99, "image_id": 501, "category_id": 8, "segmentation": missed, "area": 81, "bbox": [0, 0, 9, 9],
         "iscrowd": 0}
    )  # fmt: skip
    images = [{"id": 500 + k, "file_name": f"photo{k}.jpg", "height": 60, "width": 80} for k in range(2)]
    path = tmp_path / "truth.json"
    categories = [{"id": 8, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def coco_figures(truth: Path, rows: list[dict[str, Any]], image_ids: list[int]) -> list[float]:
    """AP, AP50 and AP75 by pycocotools' own way through its file formats."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = json.loads(truth.read_text())
        for item in known.dataset["annotations"]:
            item["id"] += 1  # COCOeval takes a match with the id 0 for none
        known.createIndex()
        found = known.loadRes(
            [
                {
                    "image_id": 500 + int(row["image_id"]),
                    "category_id": 8,
                    "segmentation": {"size": row["mask_size"], "counts": row["mask_counts"]},
                    "score": row["predicted_iou"] if row["quality"] is None else row["quality"],
                }
                for row in rows
                if 500 + int(row["image_id"]) in image_ids
            ]
        )
        evaluation = COCOeval(known, found, "segm")
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:3])


def test_a_night_is_scored_where_the_truth_is_known(job: dict[str, Any], truth: Path, annotations: Path) -> None:
    summary = night(job, truth)
    rows = masks(job)
    known = {str(item["id"]): item["segmentation"] for item in json.loads(truth.read_text())["annotations"]}
    expected = {}
    for row in rows:
        ours = {"size": row["mask_size"], "counts": row["mask_counts"]}
        of = known.get(row["annotation_id"])
        # Of the first image and the second; the third is not in the truth.
        expected[row["prompt_id"]] = None if of is None else float(coco_mask.iou([ours], [of], [0])[0, 0])
    assert {row["prompt_id"]: row["true_iou"] for row in rows} == expected
    ious = [iou for iou in expected.values() if iou is not None]
    assert len(ious) == 6
    assert len(set(ious)) > 3

    score = summary.truth
    assert score is not None
    assert (score.truth_matched, score.truth_images) == (6, 2)
    assert score.truth_mean_iou == pytest.approx(np.mean(ious), abs=1e-6)
    assert score.truth_share_75 == pytest.approx(np.mean(np.array(ious) >= 0.75), abs=1e-6)
    figures = [score.truth_ap, score.truth_ap50, score.truth_ap75]
    assert figures == pytest.approx(coco_figures(truth, rows, [500, 501]), abs=1e-6)
    assert 0 < figures[0] < figures[1] < 1
    assert f"Truth: 6 masks matched on 2 images; mean IoU {score.truth_mean_iou:.3f}, " in summary.markdown()
    [run] = query(job["output_uri"], "SELECT truth_uri, truth_ap, truth_matched FROM runs").to_pylist()
    assert run == {"truth_uri": str(truth), "truth_ap": score.truth_ap, "truth_matched": 6}

    # The next night refines one prompt; the AP is of all that is current on its image.
    document = json.loads(annotations.read_text())
    document["annotations"][0]["bbox"] = [6, 6, 40, 30]
    annotations.write_text(json.dumps(document))
    second = night(job, truth).truth
    assert second is not None
    assert (second.truth_matched, second.truth_images) == (1, 1)
    figures = [second.truth_ap, second.truth_ap50, second.truth_ap75]
    assert figures == pytest.approx(coco_figures(truth, masks(job), [500]), abs=1e-6)

    # Nothing of it is lost by what keeps the table in order.
    before = masks(job)
    compact(job["output_uri"])
    vacuum(job["output_uri"], retention_hours=0, force=True)
    assert masks(job) == before
    assert [row["true_iou"] is None for row in before].count(False) == 6
    left = [uri for uri in list_files(job["output_uri"] + "/_runs") if uri.endswith("-truth.parquet")]
    assert len(left) == 1, "of the newest run, which stays; those of the first are gone"


def test_the_truth_that_counts_is_part_of_the_run(job: dict[str, Any], truth: Path) -> None:
    plain, first = planned(job, None), planned(job, truth)
    assert plain.run_id != first.run_id
    assert [shard.shard_id for shard in plain.shards] == [shard.shard_id for shard in first.shards]
    os.utime(truth)
    assert planned(job, truth) == first
    document = json.loads(truth.read_text())
    document["annotations"][0]["segmentation"] = document["annotations"][1]["segmentation"]
    truth.write_text(json.dumps(document))
    assert planned(job, truth).run_id != first.run_id


def test_a_plan_whose_truth_was_vacuumed_is_written_again(job: dict[str, Any], truth: Path) -> None:
    first = planned(job, truth)
    [lost, *_] = [shard.truth_uri for shard in first.shards if shard.truth]
    content = Path(lost).read_bytes()
    Path(lost).unlink()
    assert planned(job, truth) == first
    assert Path(lost).read_bytes() == content


def test_a_truth_of_other_images_says_so(job: dict[str, Any], truth: Path) -> None:
    document = json.loads(truth.read_text())
    for image in document["images"]:
        image["file_name"] = f"other/{image['file_name']}"
    truth.write_text(json.dumps(document))
    summary = night(job, truth)
    assert summary.truth is not None
    assert "Truth: 0 masks matched on 0 images." in summary.markdown()
    assert planned({**job, "output_uri": job["output_uri"] + "/new"}, None).run_id == summary.run_id


def test_a_truth_that_is_not_there_is_one_line(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [f"--{name}={job[f'{name}_uri']}" for name in ("annotations", "images", "output")]
    monkeypatch.setattr(sys, "argv", ["stable-sam", "refine", *sources, "--model=tiny", "--truth=nowhere.json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error: nowhere.json: expected COCO instances as truth, found nothing there\n"
