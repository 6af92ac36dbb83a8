"""The search for the worst natural box: natural boxes only, bounded, fixed by the seed, and never a better mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError
from stable_sam.evaluation.evaluate import evaluate
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.prompts import PromptKind, box_iou, fill_box, prompt_rng
from stable_sam.evaluation.scoring import Scorer
from stable_sam.evaluation.worst_box import BOXES, NATURAL, ROUNDS, START, search_worst_box
from tests.unit.evaluation.test_evaluation import boxed, write_set

HW = (90, 120)
TINY = RefinerConfig(model="tiny")


@st.composite
def true_boxes(draw: st.DrawFn) -> np.ndarray:
    """Tight boxes of objects in a picture of HW, as small as a pixel and as large as the picture."""
    height, width = HW
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return np.array([x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))], dtype=float)


def search(true: np.ndarray, seed: int, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A method whose mask is the better the nearer a box is to `wanted`."""
    asked: list[int] = []

    def mask_iou(boxes: np.ndarray) -> np.ndarray:
        asked.append(len(boxes))
        return box_iou(boxes, wanted)

    return *search_worst_box(true, HW, np.random.default_rng(seed), mask_iou), asked


@settings(max_examples=100, deadline=None)
@given(true_boxes(), true_boxes(), st.integers(0, 2**32 - 1))
def test_every_box_is_natural_and_the_worst_is_no_better_than_the_true_one(
    true: np.ndarray, wanted: np.ndarray, seed: int
) -> None:
    boxes, ious, asked = search(true, seed, wanted)
    assert boxes.shape == (BOXES, 4)
    assert (sum(asked), len(asked), asked[0]) == (BOXES, 1 + ROUNDS, START)
    assert (box_iou(boxes, true) >= NATURAL).all()
    assert (boxes >= 0).all()
    assert (boxes <= [HW[1], HW[0]] * 2).all()
    assert boxes[0].tolist() == true.tolist()
    assert ious.min() <= ious[0]
    again, _, _ = search(true, seed, wanted)
    np.testing.assert_array_equal(boxes, again)


@settings(max_examples=30, deadline=None)
@given(true_boxes(), true_boxes(), true_boxes(), st.integers(0, 2**32 - 1))
def test_the_first_boxes_are_the_same_for_every_method(
    true: np.ndarray, wanted: np.ndarray, other: np.ndarray, seed: int
) -> None:
    np.testing.assert_array_equal(search(true, seed, wanted)[0][:START], search(true, seed, other)[0][:START])


def test_the_search_comes_near_the_worst_natural_box() -> None:
    """Where the mask is the box, filled, and the object fills its box, the worst mask has the smallest natural IoU."""
    true = np.array([30.0, 20.0, 90.0, 70.0])
    boxes, ious, _ = search(true, 0, true)
    assert ious.min() < NATURAL + 0.01
    spread = (boxes[:START] - true) / np.tile(true[2:] - true[:2], 2)
    assert (spread.min(axis=0) < -0.1).all(), "each side moves to the left or top"
    assert (spread.max(axis=0) > 0.1).all(), "each side moves to the right or bottom"


def worst_rows(folder: Path, **more: Any) -> list[dict[str, Any]]:
    config = EvaluationConfig(
        refiner=TINY, prompts=("gt-box", "worst-box"), methods=("box", "sam", "stable-sam"), **more
    )
    return evaluate([folder], config)[1].to_pylist()


def test_records_name_each_methods_own_worst_box(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40), boxed(2, 44, 3, 79, 50)])
    rows = worst_rows(folder)
    assert rows == worst_rows(folder)
    true = {(row["annotation"], row["method"]): row for row in rows if row["prompt"] == "gt-box"}
    worst = {(row["annotation"], row["method"]): row for row in rows if row["prompt"] == "worst-box"}
    assert worst.keys() == true.keys()
    assert len(worst) == 2 * 3
    for key, row in worst.items():
        assert row["iou"] <= true[key]["iou"]
        assert NATURAL <= row["prompt_quality"] <= 1
        [quality] = box_iou(np.array([row["box_xyxy"]]), np.array(true[key]["box_xyxy"]))
        assert row["prompt_quality"] == pytest.approx(quality)
        assert 0 < row["union_iou"] <= 1
    assert worst["1", "sam"]["box_xyxy"] != worst["1", "box"]["box_xyxy"]
    assert worst["1", "sam"] in worst_rows(folder, seed=0)
    assert worst["1", "sam"] not in worst_rows(folder, seed=1)


def test_the_filled_boxes_stability_is_that_of_the_boxes_the_search_starts_from(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40)])
    [row] = (row for row in worst_rows(folder) if (row["prompt"], row["method"]) == ("worst-box", "box"))
    seed = prompt_rng(0, "a", "1", "worst-box").integers(2**63)
    true = np.array([10.0, 10.0, 40.0, 40.0])
    boxes, _ = search_worst_box(true, (60, 80), np.random.default_rng(seed), lambda boxes: box_iou(boxes, true))
    masks = np.stack([fill_box(box, (60, 80)) for box in boxes[:START]])
    assert row["union_iou"] == pytest.approx(masks.sum(axis=(1, 2)).mean() / masks.any(axis=0).sum())


def test_the_decoder_sees_a_bounded_number_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_sam.refining import refiner

    asked: list[int] = []
    honest = refiner.predict
    monkeypatch.setattr(
        refiner, "predict", lambda m, v, prompts, n: asked.append(len(prompts)) or honest(m, v, prompts, n)
    )
    folder = write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40)])
    evaluate([folder], EvaluationConfig(refiner=TINY, prompts=("worst-box",), methods=("sam",)))
    assert sum(asked) == BOXES == 48


@pytest.mark.parametrize("name", ["worst-box", "detector-boxes"])
def test_a_mask_alone_does_not_give_these_kinds(name: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a kind that a mask alone gives, got '{name}'"):
        PromptKind.parse(name).draw(np.ones((4, 4), dtype=bool), prompt_rng(0), 1)


def test_worst_boxes_do_not_depend_on_what_else_is_measured(tmp_path: Path) -> None:
    from stable_sam.evaluation.true_masks import read_truth

    image = read_truth(write_set(tmp_path / "a", [boxed(1, 10, 10, 40, 40)]))[0].images[0]
    one, two = (
        Scorer(EvaluationConfig(refiner=TINY, prompts=("worst-box",), methods=methods)).score("a", image).to_pylist()
        for methods in (("stable-sam",), ("sam", "stable-sam"))
    )
    assert one[0] in two
