"""Open Images boxes, LVIS and COCO keypoints to prompts."""

from __future__ import annotations

import json

import pytest

from stable_sam.errors import AnnotationError
from stable_sam.formats.image_lookup import ImageLookup
from tests.unit.formats.dataset import Dataset, only

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def test_open_images(data: Dataset) -> None:
    data.write("class-descriptions.csv", "/m/1,Cat\n/m/2,Dog\n")
    rows = [
        "a,xclick,/m/1,1,0.1,0.3,0.25,0.75,1,0,1,0,-1",
        "c,xclick,/m/3,0.7,0,1,0,1,-1,-1,-1,-1,-1",
        "a,xclick,/m/2,1,0,1,0,1,0,0,0,0,0",
        "x,xclick,/m/2,1,0,1,0,1,0,0,0,0,0",
        "a,xclick,/m/2,1,10,30,1,2,0,0,0,0,0",
        "a,xclick",
    ]
    data.write("boxes.csv", "\n".join([HEADER, *rows]))
    prompts = data.read("boxes.csv")
    assert [prompt.prompt_id for prompt in prompts] == ["a:0", "c:0", "a:1", "x:0", "a:2", "a:3"]
    first, second, *_ = prompts
    assert first.box_xyxy == pytest.approx((10, 20, 30, 60))
    assert (first.iscrowd, first.category, first.score, first.image_size) == (True, "Cat", 1, (80, 100))
    assert json.loads(first.attributes or "") == {
        "LabelName": "/m/1",
        "Source": "xclick",
        "IsOccluded": True,
        "IsTruncated": False,
        "IsGroupOf": True,
        "IsDepiction": False,
    }
    assert (second.image_id, second.category, second.iscrowd) == ("train/c.jpg", "/m/3", False)
    assert [prompt.error is None for prompt in prompts] == [True] * 3 + [False] * 3
    assert "boxes.csv: line 5: no image file x.* is below" in (prompts[3].error or "")


def test_open_images_segments_and_other_tables(data: Dataset) -> None:
    columns = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    data.write("segments.csv", f"{columns}\nm.png,a,/m/1,0f,0.1,0.3,0.25,0.75,0.5,\n")
    prompt = only(data.read("segments.csv"))
    assert (prompt.prompt_id, prompt.box_xyxy) == ("a:0f", pytest.approx((10, 20, 30, 60)))
    data.write("other.csv", "image,x,y\na.jpg,1,2\n")
    with pytest.raises(AnnotationError, match=r"other\.csv: expected Open Images boxes .* got image, x, y"):
        data.read("other.csv")
    data.write("long.csv", HEADER + "\n" + "a" * 2**21)
    with pytest.raises(AnnotationError, match=r"long\.csv: line 2: expected a line below"):
        data.read("long.csv")


def test_lvis_names_images_by_their_url(data: Dataset) -> None:
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/train/c.jpg", "neg_category_ids": [4]},
        {"id": 2, "coco_url": "http://images.cocodataset.org/val2017/a.jpg", "not_exhaustive_category_ids": [3]},
        {"id": 3},
    ]
    records = [{"id": n, "image_id": n, "category_id": 3, "bbox": [1, 2, 30, 40]} for n in (1, 2, 3)]
    document = {"images": images, "annotations": records, "categories": [{"id": 3, "name": "cat", "synset": "cat.n"}]}
    data.write("lvis.json", document)
    prompts = data.read("lvis.json", format="lvis")
    assert [prompt.image_uri for prompt in prompts[:2]] == [data.uri("images/train/c.jpg"), data.uri("images/a.jpg")]
    assert prompts == data.read("lvis.json")
    assert "expected the name of an image file, got None" in (prompts[2].error or "")


def test_coco_keypoints_are_points_when_asked_for(data: Dataset) -> None:
    record = {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40], "keypoints": [5, 6, 2, 7, 8, 1, 0, 0, 0, 9, 9, 2]}
    odd = {"id": 2, "image_id": 1, "bbox": [1, 2, 30, 40], "keypoints": "x", "points": [[3, 4, 0]]}
    data.write("coco.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [record, odd]})
    assert [prompt.points_xy for prompt in data.read("coco.json")] == [(), ((3, 4),)]
    prompts = data.read("coco.json", keypoints=True)
    assert [prompt.points_xy for prompt in prompts] == [((5, 6), (9, 9)), ((3, 4),)]
    assert [prompt.point_labels for prompt in prompts] == [(1, 1), (0,)]


def test_images_that_are_not_there_cost_no_message_for_each_name_they_might_have(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"x{n},xclick,/m/1,1,0,1,0,1,0,0,0,0,0" for n in range(50) for _ in range(2)]
    data.write("boxes.csv", "\n".join([HEADER, *rows]))
    asked: list[object] = []
    find = ImageLookup.find
    monkeypatch.setattr(ImageLookup, "find", lambda images, *name, **k: asked.append(name) or find(images, *name, **k))
    prompts = data.read("boxes.csv")
    assert all("no image file" in (prompt.error or "") for prompt in prompts)
    assert len(prompts) == 100
    assert len(asked) == 2 * 50, "once for each image, by both ways of reading"
