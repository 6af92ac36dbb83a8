"""A prompt and its image are the same however their place is spelled, and wherever the same files lie."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stable_sam.errors import InputError
from stable_sam.records import Changes
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs import compare
from stable_sam.runs.move_images import move_images
from stable_sam.runs.plan import plan_request
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.storage import files as storage
from stable_sam.storage import uris
from stable_sam.table.fingerprint import hash_with
from stable_sam.table.query import query
from tests.integration.test_nights import CONFIG, done, edit, night


@pytest.fixture
def job(annotations: Path, tmp_path: Path) -> dict[str, Any]:
    places = {"annotations_uri": annotations, "images_uri": tmp_path / "images", "output_uri": tmp_path / "table"}
    return {name: str(path) for name, path in places.items()} | {"config": CONFIG}


def test_another_spelling_of_the_folders_changes_nothing(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert done(night(job)) == Changes(new=9)
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    for images in ("images", "images/", f"../{tmp_path.name}/images", "linked", (tmp_path / "images").as_uri()):
        for source in ("annotations.json", "file://" + job["annotations_uri"]):
            spelled = job | {"images_uri": images, "annotations_uri": source, "output_uri": "table/"}
            assert night(spelled) is None


def test_images_at_another_place_are_the_same_when_their_versions_are(job: dict[str, Any], tmp_path: Path) -> None:
    assert done(night(job)) == Changes(new=9)
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere/images")
    moved = job | {"images_uri": f"{tmp_path}/elsewhere/images"}
    assert night(moved) is None
    for image in (tmp_path / "elsewhere/images").iterdir():
        os.utime(image, (0, 0))
    summary = night(moved)
    assert done(summary) == Changes(image_moved=9)
    assert summary is not None
    assert "9 changed (image path 9)" in summary.changes_line()
    assert night(moved) is None


def test_images_on_s3_are_the_same_by_their_content(job: dict[str, Any], photos: list[Path], s3: str) -> None:
    folders = [uris.join(s3, uuid.uuid4().hex) for _ in range(2)]
    for folder in folders:
        for photo in photos:
            storage.write_bytes(uris.join(folder, f"of {folder[-3:]}", photo.name), photo.read_bytes())
    on_s3 = [job | {"images_uri": uris.join(folder, f"of {folder[-3:]}")} for folder in folders]
    assert done(night(on_s3[0])) == Changes(new=9)
    assert night(on_s3[1] | {"images_uri": on_s3[1]["images_uri"].replace("s3://", "s3a://") + "/"}) is None
    storage.write_bytes(uris.join(on_s3[1]["images_uri"], photos[0].name), photos[1].read_bytes())
    assert done(night(on_s3[1])) == Changes(image_moved=3, unchanged=6)


def test_images_that_a_user_calls_the_same_are_the_same(job: dict[str, Any], tmp_path: Path) -> None:
    edit(Path(job["annotations_uri"]), lambda document: document["annotations"][0].update(bbox=[1, 2]))
    assert done(night(job)) == Changes(new=9)
    before = query(job["output_uri"], "SELECT * EXCLUDE (image_uri, fingerprint) FROM masks ORDER BY prompt_id")
    new = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images", new, copy_function=shutil.copyfile)
    (new / "photo2.jpg").rename(tmp_path / "photo2.jpg")
    counted = move_images(job["output_uri"], to_uri=f"{new}/", dry_run=True)
    assert (counted.rows, counted.missing, counted.version) == (6, 3, None)
    (tmp_path / "photo2.jpg").rename(new / "photo2.jpg")
    report = move_images(job["output_uri"], to_uri=str(new))
    assert (report.rows, report.missing, report.version) == (9, 0, 1)
    assert query(job["output_uri"], "SELECT DISTINCT image_uri FROM masks ORDER BY 1").to_pylist() == [
        {"image_uri": f"{new}/photo{number}.jpg"} for number in range(3)
    ]
    assert query(job["output_uri"], "SELECT * EXCLUDE (image_uri, fingerprint) FROM masks ORDER BY prompt_id") == before
    assert night(job | {"images_uri": str(new)}) is None
    (new / "photo0.jpg").write_bytes((new / "photo1.jpg").read_bytes())
    assert done(night(job | {"images_uri": str(new)})) == Changes(image_changed=2, unchanged=7)
    with pytest.raises(InputError, match="expected the images that the table has below .*, found none of them"):
        move_images(job["output_uri"], to_uri=str(tmp_path / "table"))


def test_images_are_moved_to_a_folder_of_links(job: dict[str, Any], tmp_path: Path) -> None:
    """As DVC lays out a copy of a data set: the images are links into a store."""
    assert done(night(job)) == Changes(new=9)
    new = tmp_path / "elsewhere"
    new.mkdir()
    for image in (tmp_path / "images").iterdir():
        (new / image.name).symlink_to(image)
    with pytest.raises(
        InputError, match=r"photo\d.jpg is a link, and links that lead out of it are not followed: --foll"
    ):
        move_images(job["output_uri"], to_uri=str(new))
    assert move_images(job["output_uri"], to_uri=str(new), follow_links=True).rows == 9
    followed = {"source": {"follow_links": True}}
    assert night(job | {"images_uri": str(new), "config": job["config"] | followed}) is None


def test_another_image_of_the_same_time_and_size_is_another_image(job: dict[str, Any], photos: list[Path]) -> None:
    """Archives give all files one time, and pictures without compression have one size."""
    size = max(photo.stat().st_size for photo in photos)
    for photo in photos:
        photo.write_bytes(photo.read_bytes().ljust(size, b"\0"))
        os.utime(photo, (0, 0))
    assert done(night(job)) == Changes(new=9)
    edit(Path(job["annotations_uri"]), lambda document: document["images"][0].update(file_name=photos[1].name))
    assert done(night(job)) == Changes(image_moved=3, unchanged=6)


@pytest.mark.parametrize("spelled", ["file://{}/images", "{}/images"])
def test_a_table_of_an_older_version_is_not_refined_again(
    job: dict[str, Any], tmp_path: Path, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions kept URIs as they were spelled, and the places of bad prompts in fingerprints."""
    edit(Path(job["annotations_uri"]), lambda document: document["annotations"][0].update(bbox=[1, 2]))
    request = RunRequest.parse(**job)
    with monkeypatch.context() as older:
        older.setattr(compare, "PROMPT_HASH", hash_with())
        manifest = plan_request(replace(request, images_uri=spelled.format(tmp_path))).manifest
    assert manifest is not None
    refiner = Refiner(request.config.refiner, request.config.routing)
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)
    # The bad prompt of the other spelling fails once more, without its image being read.
    changes = plan_request(request).changes
    assert changes == (Changes(unchanged=9) if spelled == "{}/images" else Changes(prompt_changed=1, unchanged=8))


def test_the_same_bad_boxes_at_another_place_change_nothing(job: dict[str, Any], tmp_path: Path) -> None:
    document = json.loads(Path(job["annotations_uri"]).read_text())
    document["annotations"] += [
        {"id": 100 + number, "image_id": number % 4, "bbox": [5, 5, 0, number]} for number in range(120)
    ]
    document["images"].append({"id": 3, "file_name": "gone.jpg"})
    dates = ("2025-11-21", "2025-11-22", "2025-11-23")
    for day in dates:
        (tmp_path / day).mkdir()
        (tmp_path / day / "weak.json").write_text(json.dumps(document))
    first, *others = [job | {"annotations_uri": f"{tmp_path}/{day}/weak.json"} for day in dates]
    assert done(night(first)) == Changes(new=129)
    shutil.copytree(tmp_path / "images", tmp_path / "2025-11-23/images")
    others[1]["images_uri"] = f"{tmp_path}/2025-11-23/images"
    for later in others:
        assert night(later) is None
    hashes = {plan_request(RunRequest.parse(**later), dry_run=True).source_hash for later in (first, others[0])}
    assert len(hashes) == 1
    document["annotations"][-1]["bbox"] = [5, 5, 0, 7]
    Path(others[0]["annotations_uri"]).write_text(json.dumps(document))
    assert done(night(others[0])) == Changes(prompt_changed=1, unchanged=128)


def test_lines_and_positions_do_not_count(job: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt_id": f"p{n}", "image": "photo0.jpg", "bbox_xywh": [1, 2]} for n in range(3)]
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)) + "\n")
    job |= {"annotations_uri": str(table)}
    assert done(night(job)) == Changes(new=3)
    table.rename(tmp_path / "other.jsonl")
    (tmp_path / "other.jsonl").write_text("\n\n" + "\n".join(map(json.dumps, rows[::-1])) + "\n")
    assert night(job | {"annotations_uri": f"{tmp_path}/other.jsonl"}) is None
