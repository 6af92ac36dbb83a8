"""Masks go out to people: what an export holds, in every format and on S3."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stable_sam.errors import ConfigError, InputError
from stable_sam.formats.coco.write import write_instances
from stable_sam.formats.export_records import SENT, ExportCategory, Target
from stable_sam.formats.fiftyone import _detection
from stable_sam.review.answers import import_answers
from stable_sam.review.export import export
from stable_sam.review.import_review import import_review
from stable_sam.review.selection import Naming, _categories, _keys, selected
from stable_sam.rle import encode_mask
from stable_sam.storage.files import list_files, read_bytes
from stable_sam.storage.uris import join
from tests.integration.review_job import (
    Job,
    answer,
    correct_p1_delete_p2,
    corrected_mask,
    new_job,
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return new_job(str(tmp_path))


def test_what_an_export_holds(job: Job) -> None:
    out = job.export(where="category = 'cat' -- a comment")
    coco = json.loads(read_bytes(join(out, "instances.json")))
    assert {annotation["prompt_id"] for annotation in coco["annotations"]} == {"p0", "p2", "p4", "p6", "p8"}
    assert coco["categories"] == [{"id": 1, "name": "cat", "supercategory": ""}]
    assert {image["file_name"] for image in coco["images"]} == {f"sub/{n}.png" for n in range(3)}
    assert read_bytes(join(out, "images/sub/1.png")) == read_bytes(job.image(1))
    with pytest.raises(InputError, match="expected a new or empty folder"):
        job.export()
    with pytest.raises(InputError, match="got none that was asked for"):
        job.export(name="other", routes=["accept"])
    with pytest.raises(InputError, match="^SQL: "):
        job.export(name="other", where="no such column = 1")
    assert list_files(join(job.root, "other")) == []


def test_a_picture_that_is_gone_is_left_out_and_told(job: Job) -> None:
    Path(job.image(1)).unlink()
    report = export(job.table, "yolo", join(job.root, "yolo"))
    assert (report.images, report.objects) == (2, 6)
    assert "1.png" in report.problems[0]
    assert [Path(uri).name for uri in list_files(join(job.root, "yolo/labels"))] == ["0.txt", "2.txt"]


def test_an_export_is_split_where_the_format_can_hold_it(job: Job) -> None:
    job.export("yolo", split="0.5/0.5")
    lists = [read_bytes(join(job.root, f"export-yolo/{part}.txt")).decode().split() for part in ("train", "val")]
    assert sorted(lists[0] + lists[1]) == [f"./images/sub/{n}.png" for n in range(3)]
    assert import_review(job.table, join(job.root, "export-yolo"), "yolo", dry_run=True).unchanged == 9
    with pytest.raises(InputError, match=r"expected images enough for each of train, val, got none for val"):
        job.export("yolo", name="other", split="0.9999/0.0001")
    with pytest.raises(ConfigError, match=r"split: expected a format that can divide images \(yolo\)"):
        job.export("coco", name="other", split="0.5/0.5")
    assert list_files(join(job.root, "other")) == []


@pytest.mark.parametrize(
    ("layout", "annotations", "images"),
    [("datumaro", "annotations/instances_default.json", "images/default"), ("fiftyone", "labels.json", "data")],
)
def test_coco_is_written_where_a_tool_looks_for_it(layout: str, annotations: str, images: str, job: Job) -> None:
    out = job.export(layout=layout)
    files = [annotations, SENT, *(f"{images}/sub/{number}.png" for number in range(3))]
    assert list_files(out) == sorted(join(out, file) for file in files)
    assert import_review(job.table, out, "coco", dry_run=True).unchanged == 9
    with pytest.raises(ConfigError, match="layout: expected datumaro or fiftyone, got 'voc'"):
        job.export(name="other", layout="voc")
    with pytest.raises(ConfigError, match=r"layout: expected a format that has several \(coco\), got 'yolo'"):
        job.export("yolo", layout=layout)


def test_an_export_lies_neither_among_the_annotations_nor_in_the_table(tmp_path: Path) -> None:
    job = new_job(str(tmp_path), annotations="labels")
    for place, folder in (("labels/coco", "the annotations' folder"), ("table/coco", "the table's folder")):
        with pytest.raises(
            ConfigError, match=f"{place}: expected a place outside of {folder}, got one inside of {job.root}"
        ):
            job.export(name=place)
        assert not (tmp_path / place).exists()
    job.export(name="labels-sent")


def test_label_studio_gets_addresses_that_it_can_show(job: Job) -> None:
    naming = Naming(images_uri="/data/images", copies=False, prefix="https://host.example/photos/")
    assert naming.reference("/data/images/Küche/é#1 100%.jpg").endswith("/K%C3%BCche/%C3%A9%231%20100%25.jpg")
    assert replace(naming, prefix="/mnt").reference("/data/images/é#1 100%.jpg") == "/mnt/é#1 100%.jpg"
    shown = replace(naming, prefix=None, local_files_root="/data")
    assert shown.reference("/data/images/a b.jpg") == "/data/local-files/?d=images/a%20b.jpg"
    with pytest.raises(InputError, match="--local-files-root /data: expected the folder to hold /other/a.jpg"):
        shown.reference("/other/a.jpg")
    for number, (options, warned) in enumerate(
        {(): True, ("image_prefix",): False, ("local_files_root",): False}.items()
    ):
        given = dict.fromkeys(options, job.root)
        report = export(job.table, "labelstudio", join(job.root, f"ls{number}"), **given)
        assert (report.warning is not None) == warned
    (task, *_) = json.loads(read_bytes(join(job.root, "ls2/tasks.json")))
    assert task["data"]["image"] == "/data/local-files/?d=images/sub/0.png"
    with pytest.raises(ConfigError, match="local_files_root: expected the format labelstudio"):
        export(job.table, "coco", join(job.root, "other"), local_files_root=job.root)


def test_category_names_are_unique_in_coco(job: Job) -> None:
    categories = tuple(ExportCategory(number=n, name="cat" if n < 9 else "dog", index=n // 9) for n in (3, 5, 9))
    target = Target(uri=job.root, categories=categories, polygons=False, header={}, copies=False)
    with selected(job.table) as selection:
        image = next(selection.read(Naming(images_uri="/", copies=False, prefix=None)))
    objects = tuple(replace(image.objects[0], category=category) for category in categories)
    with write_instances(target) as add:
        add(replace(image, objects=objects), None)
    coco = json.loads(read_bytes(join(job.root, "instances.json")))
    assert [(category["id"], category["name"]) for category in coco["categories"]] == [(3, "cat"), (9, "dog")]
    assert [annotation["category_id"] for annotation in coco["annotations"]] == [3, 3, 9]


@pytest.mark.parametrize("width", [7, 100, 640, 1333])
def test_boxes_for_fiftyone_are_cut_to_the_pixels_of_their_masks(width: int, job: Job) -> None:
    """It multiplies both corners with the image's size and cuts them to whole numbers."""
    with selected(job.table) as selection:
        image = next(selection.read(Naming(images_uri="/", copies=False, prefix=None)))
    mask = np.zeros((width, width), np.bool_)
    for left in range(width):
        mask[:] = False
        mask[left:, left : left + 1 + left % 7] = True
        detection = _detection(replace(image.objects[0], mask=encode_mask(mask)))
        x, y, w, h = detection["bounding_box"]
        corners = int(width * x), int(width * y), int(width * (x + w)), int(width * (y + h))
        assert corners == (left, left, min(width, left + 1 + left % 7), width)


def test_no_name_of_an_image_leads_out_of_the_export() -> None:
    naming = Naming(images_uri="/data/images", copies=True, prefix=None)
    outside = ["../x.jpg", "a/../../x.jpg", "./x.jpg", "/x.jpg", "a//x.jpg", "..", "a/..", ""]
    names = [naming.name(f"/data/images/{path}") for path in outside]
    assert all(name.startswith("elsewhere/") and not {"", ".", ".."} & set(name.split("/")) for name in names)
    assert len(set(names)) == len(names)
    assert naming.name("/data/images/a..b/..x.jpg") == "a..b/..x.jpg"


def test_an_image_above_its_folder_is_exported_inside(job: Job) -> None:
    with selected(job.table) as selection:
        selection._connection.execute(
            "UPDATE selected SET image_uri = replace(image_uri, '/sub/', '/sub/../../images/sub/')"
        )
        images = list(selection.read(Naming(images_uri=join(job.root, "images"), copies=True, prefix=None)))
    assert [image.name.partition("/")[0] for image in images] == ["elsewhere"] * 3


def test_two_pictures_with_one_label_file_are_refused(job: Job) -> None:
    with selected(job.table) as selection:
        selection.check_stems()
        selection._connection.execute("UPDATE selected SET image_uri = '/a/b.jpg' WHERE prompt_id = 'p1'")
        selection._connection.execute("UPDATE selected SET image_uri = '/a/b.png' WHERE prompt_id = 'p2'")
        with pytest.raises(InputError, match=r"/a/b.png: expected images whose names differ"):
            selection.check_stems()


def test_out_and_back_on_object_storage(s3: str, tmp_path: Path) -> None:
    job = new_job(join(s3, f"review-{tmp_path.name}"))
    for form in ("coco", "cvat", "labelme", "png", "yolo", "labelstudio", "fiftyone", "parquet", "coco-results"):
        out = job.export(form)
        assert join(out, SENT) in list_files(out)
        if form in ("coco", "cvat", "labelme", "png", "yolo"):
            report = import_review(job.table, out, form, dry_run=True)
            assert (report.unchanged, report.problems) == (9, ()), form
    correct_p1_delete_p2(join(job.root, "export-coco"))
    assert import_review(job.table, join(job.root, "export-coco/instances.json"), "coco").imported == 2
    assert job.rows()["p1"]["verdict"] == "corrected"


def test_reviewed_masks_train_and_evaluate(job: Job) -> None:
    from stable_sam.evaluation.true_masks import read_truth
    from stable_sam.training.dataset import read_training_sets

    import_answers(job.table, [answer("p1", corrected_mask()), answer("p2", None)])
    job.export(name="labels/reviewed", where="status = 'reviewed'")
    (picture,) = read_training_sets(Path(job.root, "labels"))["reviewed"]
    assert picture.path.is_file()
    assert [counts["counts"] for counts in picture.rles] == [encode_mask(corrected_mask()).counts]
    (truth,) = read_truth(Path(job.root, "labels", "reviewed"))
    assert np.array_equal(truth.images[0].objects[0].mask(), corrected_mask())


def test_categories_have_one_number_each(job: Job) -> None:
    with selected(job.table) as selection:
        assert [(c.number, c.name, c.index) for c in selection.categories] == [(1, "cat", 0), (2, "dog", 1)]
        change = "UPDATE selected SET category_id = $1, category = $2 WHERE prompt_id = $3"
        rows = [(3, "cat", "p0"), (3, "bird", "p1"), (-1, "cat", "p2"), (None, None, "p3"), (8, None, "p4")]
        for row in rows:
            selection._connection.execute(change, row)
        categories = _categories(_keys(selection._connection))
    assert len({category.number for category in categories}) == len(categories) == 7
    assert {c.name: c.number for c in categories} | {"bird": 3, "8": 8} == {c.name: c.number for c in categories}
    assert {c.index for c in categories if c.name == "cat"} == {next(c.index for c in categories if c.name == "cat")}


def test_scores_that_are_no_numbers_and_names_that_no_file_can_hold(job: Job) -> None:
    with selected(job.table) as selection:
        selection._connection.execute("UPDATE selected SET predicted_iou = 'nan', category = 'a' || chr(1) || 'b'")
        (category,) = _categories(_keys(selection._connection))
        renamed = replace(selection, categories=(category,))
        images = list(renamed.read(Naming(images_uri="/", copies=False, prefix=None)))
    assert category.name == "a\\u0001b"
    assert {item.score for image in images for item in image.objects} == {0.55}
    assert all("predicted_iou" not in item.details for image in images for item in image.objects)
