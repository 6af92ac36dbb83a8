"""Which files are read: several sources, folders, patterns, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stable_sam.errors import AnnotationError, StableSamError
from stable_sam.formats.read import read_prompts
from tests.unit.formats.dataset import Dataset, only, voc, voc_object


def detections(score: float) -> dict[str, Any]:
    record = {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40], "score": score, "category_id": 3}
    return {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [record], "categories": []}


def test_several_detectors_of_one_image(data: Dataset) -> None:
    data.write("night/yolo.json", detections(0.5))
    data.write("night/rcnn.json", detections(0.25))
    lines = [{"image": "a.jpg", "prompt_id": "1", "box_xyxy": [1, 2, 3, 4], "source": "own"}, {"image": "a.jpg"}]
    data.write("night/more.jsonl", "\n".join(map(json.dumps, lines)))
    data.write("night/README.json", "{}")
    expected = {"more/1", "more/a.jpg:1", "rcnn/1", "yolo/1"}
    for several in ("night", "night/*n*", "night/yolo.json,night/rcnn.json,night/more.jsonl"):
        prompts = data.read(several)
        assert {prompt.prompt_id for prompt in prompts} == expected
        assert all(
            json.loads(prompt.attributes or "")["annotation_source"] == prompt.prompt_id.partition("/")[0]
            for prompt in prompts
        )
    assert json.loads(data.read("night/*n*")[0].attributes or "")["source"] == "own"
    named = data.read("new=night/yolo.json,old=night/rcnn.json")
    assert [(prompt.prompt_id, prompt.score) for prompt in named] == [("new/1", 0.5), ("old/1", 0.25)]
    assert only(data.read("a.b-c=night/yolo.json")).prompt_id == "a.b-c/1"
    assert only(data.read("night/yolo.json")).prompt_id == "1"


def test_detectors_with_a_file_for_each_image(data: Dataset) -> None:
    data.write("one/labels/a.txt", "0 0.5 0.5 0.2 0.5\n")
    data.write("two/a.xml", voc(voc_object()))
    prompts = data.read("one=one/labels,two=two")
    assert [prompt.prompt_id for prompt in prompts] == ["one/a:0", "two/a:0"]
    assert [prompt.error for prompt in prompts] == [None, None]


def test_sources_that_cannot_be_told_apart_are_refused(data: Dataset) -> None:
    for folder in ("one", "two"):
        data.write(f"{folder}/boxes.json", detections(0.5))
    with pytest.raises(AnnotationError, match=r"expected sources of different names, got two called 'boxes'"):
        data.read("one/boxes.json,two/boxes.json")
    assert {prompt.prompt_id for prompt in data.read("*/boxes.json")} == {"one/boxes/1", "two/boxes/1"}
    data.write("one/a.xml", voc(voc_object()))
    with pytest.raises(AnnotationError, match=r"expected annotation files of one format, found boxes.json, a.xml"):
        data.read("one")
    assert only(data.read("one", format="voc")).prompt_id == "a:0"


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("nothing.json", "no such annotation file"),
        ("no*thing", "expected annotation files, found none"),
        ("images", "expected annotation files, found none"),
        ("a.json,,b.json", "got an empty name"),
    ],
)
def test_missing_sources(data: Dataset, annotations: str, message: str) -> None:
    data.write("a.json", detections(0.5))
    with pytest.raises(AnnotationError, match=message):
        read_prompts(annotations if ",," in annotations else data.uri(annotations), images_uri=data.uri("images"))


def test_a_format_that_the_file_has_not_is_refused(data: Dataset) -> None:
    data.write("a.json", detections(0.5))
    with pytest.raises(StableSamError, match=r"a\.json: expected format labelstudio, got coco"):
        data.read("a.json", format="labelstudio")
    with pytest.raises(AnnotationError, match=r"a\.json: expected LabelMe JSON with a list of shapes"):
        data.read("a.json", format="labelme")


def test_names_with_commas_and_equal_signs_are_names(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write("day=1/a,b.json", detections(0.5))
    monkeypatch.chdir(data.root)
    [prompt] = read_prompts("day=1/a,b.json", images_uri="images")
    assert prompt.prompt_id == "1"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("export.json", b"PK\3\4...", "a zip archive"),
        ("export.zip", b"PK\3\4...", "a zip archive"),
        ("export.json.gz", b"\x1f\x8b...", "a gzip file"),
        ("a.xml", b"\x1f\x8b...", "a gzip file"),
        ("a.txt", b"PK\3\4...", "a zip archive"),
    ],
)
def test_archives_are_told_and_not_taken_for_annotations(data: Dataset, name: str, content: bytes, kind: str) -> None:
    data.write(f"in/{name}", content)
    with pytest.raises(AnnotationError, match=f"expected annotations, got {kind}: unpack it"):
        data.read(f"in/{name}")
    for config in ({}, {"format": "voc"}):
        with pytest.raises(AnnotationError, match=r"unpack it"):
            data.read("in" if name.count(".") > 1 or name.endswith("zip") else f"in/{name}", **config)


def test_label_studios_json_min_is_told(data: Dataset) -> None:
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "original_width": 100, "original_height": 80}
    task = {"id": 1, "image": "/data/upload/3/a.jpg", "label": [region], "annotator": 1, "annotation_id": 1}
    data.write("min.json", [task])
    for config in ({}, {"format": "labelstudio"}):
        with pytest.raises(AnnotationError, match=r"min\.json: .* got JSON-MIN, .*: export as JSON"):
            data.read("min.json", **config)


def test_an_empty_format_is_told(data: Dataset) -> None:
    data.write("labels/a.txt", "\n")
    with pytest.raises(AnnotationError, match=r"labels: expected at least one annotation, got none"):
        data.read("labels")
