"""The prompt box, filled, as a method: what every mask has to beat."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.averages import CELLS, SHARES
from stable_sam.evaluation.chart import bar_chart
from stable_sam.evaluation.evaluate import evaluate
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.markdown import markdown
from stable_sam.evaluation.prompts import box_iou, fill_box, tight_box
from tests.unit.evaluation.test_evaluation import boxed, write_set

KINDS = ("gt-box", "noisy-box", "1-point")


@given(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2)
def test_a_box_of_whole_pixels_is_filled_exactly(x: int, y: int, width: int, height: int) -> None:
    box = np.array([x, y, x + width, y + height], dtype=float)
    assert tight_box(fill_box(box, (60, 60))).tolist() == box.tolist()
    assert fill_box(box, (60, 60)).sum() == width * height


def test_a_box_between_pixels_holds_those_whose_centres_are_inside() -> None:
    filled = fill_box(np.array([1.4, -3.0, 3.6, 1.5]), (4, 6))
    assert np.argwhere(filled).tolist() == [[0, 1], [0, 2], [0, 3]]


def test_the_box_is_measured_like_a_method_wherever_the_prompt_is_a_box(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40), boxed(2, 50, 5, 79, 50)])
    config = EvaluationConfig(
        refiner=RefinerConfig(model="tiny"), methods=("stable-sam", "sam", "box"), prompts=KINDS, random_prompts=3
    )
    assert config.methods == ("box", "sam", "stable-sam")
    result, records = evaluate([folder], config)
    rows = [row for row in records.to_pylist() if row["method"] == "box"]
    assert {row["prompt"] for row in rows} == {"gt-box", "noisy-box"}
    for row in rows:
        true = tight_box(fill_box(np.array([[10, 10, 40, 40], [50, 5, 79, 50]][row["annotation"] == "2"]), (60, 80)))
        [quality] = box_iou(np.array([row["box_xyxy"]]), true)
        assert row["prompt_quality"] == pytest.approx(quality)
        assert row["iou"] == pytest.approx(quality, abs=0.05), "these objects fill their boxes; pixels are whole"
        assert row["predicted_iou"] is None
    by_method = {(s.prompts, s.method): s for s in result.scores if s.slice == "all"}
    assert by_method["gt-box", "box"].miou.value == 1
    assert by_method["gt-box", "box"].predicted_iou is None
    assert by_method["noisy-box", "box"].to_sam.keys() == {"miou", "mbiou", "msf"}
    assert ("1-point", "box") not in by_method
    assert {s.method for s in result.scores if s.slice in SHARES} == {"box", "sam", "stable-sam"}
    assert {s.method for s in result.scores if s.slice in CELLS} == {"box", "sam", "stable-sam"}
    assert result.model.parameters.keys() == {"sam", "stable-sam"}
    assert Image.open(io.BytesIO(bar_chart(result))).width > 300
    text = markdown(result)
    assert "| gt-box | box, filled | 1.000" in text
    sizes = "| size | objects | prompts | box, filled | SAM (the base) | Stable-SAM |"
    assert text.count(sizes) == 2, "by share and by cells"
    assert "| over 10 % of the picture | 2 | gt-box | 1.000" in text


def test_other_methods_are_the_same_without_the_box(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40)])
    more = {"refiner": RefinerConfig(model="tiny"), "prompts": KINDS, "random_prompts": 2, "resamples": 50}
    with_box, without = (
        evaluate([folder], EvaluationConfig(methods=methods, **more))[0].scores
        for methods in (("box", "sam", "stable-sam"), ("sam", "stable-sam"))
    )
    assert [score for score in with_box if score.method != "box"] == list(without)
