"""A real detector's boxes: matched to the true objects, all counted, and a bad file named in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, ConfigError
from stable_sam.evaluation.detections import MATCHED, match_detections
from stable_sam.evaluation.evaluate import evaluate, read_sets
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.markdown import markdown
from stable_sam.evaluation.true_masks import DetectionCounts, TruthSet, read_truth
from tests.unit.evaluation.test_evaluation import boxed, write_set

TINY = RefinerConfig(model="tiny")


def detection(x: float, y: float, width: float, height: float, score: float = 0.9, **more: Any) -> dict[str, Any]:
    return {"image_id": 0, "bbox": [x, y, width, height], "score": score, **more}


def write(folder: Path, records: object) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / "detections.json"
    file.write_text(json.dumps(records))
    return str(file)


def matched(part: TruthSet) -> dict[str, tuple[float, ...]]:
    items = [item for image in part.images for item in image.objects]
    return {item.annotation_id: item.detected_xyxy for item in items if item.detected_xyxy is not None}


def test_the_highest_score_takes_the_nearest_object_and_each_object_once(tmp_path: Path) -> None:
    sets = read_truth(write_set(tmp_path / "a", [boxed(1, 10, 10, 30, 30), boxed(2, 14, 10, 34, 30)]))
    records = [
        detection(13, 10, 20, 20, 0.5),  # nearer to the second object, which is taken
        detection(14, 10, 20, 20, 0.8),
        detection(10, 10, 20, 20, 0.3),  # the first object is taken by then
        detection(60, 40, 10, 10, 0.9),
    ]
    [part] = match_detections(sets, write(tmp_path / "b", records))
    assert matched(part) == {"1": (13, 10, 33, 30), "2": (14, 10, 34, 30)}
    assert part.detections == DetectionCounts(matched=2, unmatched=2, other_pictures=0)


def test_a_known_category_must_be_the_objects(tmp_path: Path) -> None:
    folder = write_set(
        tmp_path / "a", [boxed(1, 10, 10, 30, 30, category_id=1), boxed(2, 50, 10, 70, 30, category_id=2)]
    )
    for category_id, objects in ((1, {"1"}), (2, set()), ("1", {"1"}), (9, {"1"}), (None, {"1"})):
        records = [detection(10, 10, 20, 20, category_id=category_id), detection(50, 10, 20, 20, category_id=1)]
        records.append(detection(50, 10, 20, 20, score=0.1))
        [part] = match_detections(read_truth(folder), write(tmp_path / "b", records))
        assert matched(part).keys() == objects | {"2"}, category_id


def test_boxes_are_clipped_to_the_picture(tmp_path: Path) -> None:
    sets = read_truth(write_set(tmp_path / "a", [boxed(1, 50, 30, 80, 60)]))
    [part] = match_detections(sets, write(tmp_path / "b", [detection(49, 29, 100, 100)]))
    assert matched(part) == {"1": (49, 29, 80, 60)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(0, 40)] * 2, st.floats(0, 1)), min_size=1, max_size=8)
)
def test_every_detection_is_counted_once(tmp_path_factory: pytest.TempPathFactory, boxes: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("data")
    sets = read_truth(write_set(folder / "a", [boxed(1, 10, 10, 40, 40), boxed(2, 15, 10, 45, 40)]))
    exact = detection(10, 10, 30, 30)
    [part] = match_detections(sets, write(folder / "b", [exact, *(detection(*box) for box in boxes)]))
    assert part.detections is not None
    assert part.detections.matched == len(matched(part)) >= 1
    assert part.detections.matched + part.detections.unmatched == 1 + len(boxes)


def test_a_picture_is_named_by_its_id_or_its_file_and_its_set_where_that_is_needed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_set(tmp_path / "data" / name, [boxed(1, 10, 10, 30, 30)])
    sets = read_truth(tmp_path / "data")
    by_name = {"bbox": [10, 10, 20, 20], "score": 1}
    parts = match_detections(sets, write(tmp_path / "c", [{**by_name, "file_name": "b/images/0.png"}]))
    assert [len(matched(part)) for part in parts] == [0, 1]
    for field, value in (("image_id", 0), ("file_name", "images/0.png")):
        with pytest.raises(AnnotationError, match=rf"detections\[0\]: expected one image, got {field} .* a, b have"):
            match_detections(sets, write(tmp_path / "c", [{**by_name, field: value}]))
        [part] = match_detections(sets[:1], write(tmp_path / "c", [{**by_name, field: value}]))
        assert len(matched(part)) == 1


def test_detections_on_pictures_left_out_are_counted(tmp_path: Path) -> None:
    folder = write_set(
        tmp_path / "a", [boxed(1, 10, 10, 30, 30), {**boxed(2, 10, 10, 30, 30), "image_id": 1}], pictures=3
    )
    uri = write(tmp_path / "b", [detection(10, 10, 20, 20, image_id=number) for number in (0, 1, 1, 2)])
    [part] = match_detections(read_truth(folder, limit=1), uri)
    assert part.detections == DetectionCounts(matched=1, unmatched=0, other_pictures=3)
    [part] = match_detections(read_truth(folder), uri)
    assert part.detections == DetectionCounts(matched=2, unmatched=1, other_pictures=1)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({"annotations": []}, "expected COCO detection results, a list"),
        ([7], r"detections\[0\]: expected an object, got 7"),
        ([{"bbox": [1, 1, 2, 2], "score": 1}], r"detections\[0\]: expected an image_id or a file_name, got None"),
        ([detection(1, 1, 2, 2), detection(1, 1, 2, 2, image_id=5)], r"detections\[1\]: expected an image of .*'5'"),
        ([detection(1, 1, 2, 2) | {"bbox": [1, 1, 2]}], r"detections\[0\]: expected bbox as .*\[1, 1, 2\]"),
        ([detection(1, 1, -2, 2)], r"detections\[0\]: expected bbox as"),
        ([detection(1, 1, float("nan"), 2)], r"detections\[0\]: expected bbox as"),
        ([detection(1, 1, 10**400, 2)], r"detections\[0\]: "),
        ([detection(1, 1, 2, 2, score="high")], r"detections\[0\]: expected score as a number, got 'high'"),  # type: ignore[arg-type]
        ([detection(60, 1, 9, 9)], "expected boxes of true objects, IoU at least 0.5, got none in 1 detection"),
    ],
)
def test_a_bad_file_is_named_with_its_record(tmp_path: Path, records: object, reason: str) -> None:
    sets = read_truth(write_set(tmp_path / "a", [boxed(1, 10, 10, 30, 30)]))
    uri = write(tmp_path / "b", records)
    with pytest.raises(AnnotationError, match=rf"^{uri}: {reason}") as raised:
        match_detections(sets, uri)
    assert "\n" not in str(raised.value)


def test_text_that_is_no_json_or_no_file_is_named(tmp_path: Path) -> None:
    sets = read_truth(write_set(tmp_path / "a", [boxed(1, 10, 10, 30, 30)]))
    (tmp_path / "broken.json").write_text('[{"image_id": 0,')
    with pytest.raises(AnnotationError, match=r"broken\.json"):
        match_detections(sets, str(tmp_path / "broken.json"))
    with pytest.raises(AnnotationError, match="nowhere.json: no such annotation file"):
        match_detections(sets, str(tmp_path / "nowhere.json"))


def test_the_kind_and_its_file_belong_together() -> None:
    with pytest.raises(ConfigError, match="detector-boxes needs the URI of detection results"):
        EvaluationConfig(prompts=("gt-box", "detector-boxes"))
    with pytest.raises(ConfigError, match="expected detector-boxes among the prompts, got only gt-box"):
        EvaluationConfig(prompts=("gt-box",), detections_uri="d.json")


def test_each_method_and_the_box_answer_the_detectors_boxes(tmp_path: Path) -> None:
    """The second object was not detected, the third one is not in the sample's picture at all."""
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40), boxed(2, 50, 10, 70, 30)])
    uri = write(tmp_path / "b", [detection(8, 10, 30, 30), detection(60, 40, 9, 9)])
    config = EvaluationConfig(refiner=TINY, prompts=("gt-box", "detector-boxes"), detections_uri=uri, resamples=50)
    assert config.methods == ("box", "sam", "stable-sam"), "the box is there by default"
    result, records = evaluate([folder], config)
    rows = {row["method"]: row for row in records.to_pylist() if row["prompt"] == "detector-boxes"}
    assert rows.keys() == {"box", "sam", "stable-sam"}
    for row in rows.values():
        assert row["annotation"] == "1"
        assert row["box_xyxy"] == [8, 10, 38, 40]
        assert row["prompt_quality"] == pytest.approx(28 / 32)
    assert rows["box"]["iou"] == pytest.approx(28 / 32)
    assert result.sets["a"].detections == DetectionCounts(matched=1, unmatched=1, other_pictures=0)
    assert result.skipped == {"detector-boxes": 1}
    assert json.loads(json.dumps(result.to_json()))["sets"]["a"]["detections"]["unmatched"] == 1
    assert "| a | 1 | 1 | 0 |" in markdown(result)


def test_the_command_reads_detections_and_says_what_was_not_matched(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40)])
    uri = write(tmp_path / "b", [detection(8, 10, 30, 30), detection(60, 40, 9, 9)])
    arguments = ["evaluate", "--data", str(folder), "--model", "tiny", "--out", str(tmp_path / "r.json")]
    arguments += ["--prompts", "detector-boxes", "--detections", uri]
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "1 detection matched to true objects, 1 not" in " ".join(answer.stdout.split())
    methods = {score["method"] for score in json.loads((tmp_path / "r.json").read_text())["scores"]}
    assert methods == {"box", "sam", "stable-sam"}


def test_a_sample_does_not_change_what_is_matched(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(n, 2 * n, n, 2 * n + 20, n + 20) for n in range(20)])
    uri = write(tmp_path / "b", [detection(2 * n + 1, n, 20, 20, 0.5 + n / 100) for n in range(20)])
    config = {"refiner": TINY, "prompts": ("detector-boxes",), "detections_uri": uri}
    [full] = read_sets([folder], EvaluationConfig(**config))
    [part] = read_sets([folder], EvaluationConfig(**config, max_objects=5))
    assert part.objects == 5
    assert matched(part) == matched(full)
    assert part.detections == full.detections
    assert np.mean([len(matched(full))]) > 10
    assert MATCHED == 0.5
