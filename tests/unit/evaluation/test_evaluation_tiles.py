"""Evaluation asks a small object where the refiner asks it: in a tile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.evaluate import evaluate
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.metrics import ReferenceMask
from stable_sam.evaluation.true_masks import read_truth
from stable_sam.images.frames import Frame
from stable_sam.records import Prompt
from stable_sam.refining import refiner as refiner_module
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask
from tests.unit.evaluation.test_evaluation import boxed, write_set

TINY = RefinerConfig(model="tiny", jitter_count=0, second_pass="off", tile_below_cells=4)
SMALL, LARGE = boxed(1, 10, 10, 17, 17), boxed(2, 0, 0, 80, 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One 80 x 60 picture, whose tiles are 32 pixels wide, with an object of 7 x 7 pixels and one that fills it."""
    written = write_set(tmp_path / "a", [SMALL, LARGE])
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC).save(written / "images" / "0.png")
    return written


@pytest.fixture(params=["stays", "leaves"])
def border(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether masks leave their tile: those of the random model are everywhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Frame, "leaves_window", lambda frame, logits: request.param == "leaves")
        yield request.param


def records(folder: Path, tiles: str, **more: Any) -> list[dict[str, Any]]:
    refiner = TINY.model_copy(update={"tiles": tiles})
    settings = {"prompts": ("gt-box", "1-point"), "methods": ("box", "sam", "stable-sam"), "random_prompts": 1}
    return evaluate([folder], EvaluationConfig(refiner=refiner, resamples=5, **(settings | more)))[1].to_pylist()


def refined_iou(folder: Path, row: dict[str, Any], config: RefinerConfig) -> tuple[float, str | None]:
    """IoU and view of the refiner's mask for the prompt of a record of a box."""
    prompt = Prompt(prompt_id="p", image_id="i", image_uri="/i", box_xyxy=tuple(row["box_xyxy"]))
    [refined] = Refiner(config).refine_file((folder / "images" / "0.png").read_bytes(), [prompt])
    assert refined.mask_size is not None
    assert refined.mask_counts is not None
    [image] = read_truth(folder)[0].images
    truth = next(item for item in image.objects if item.annotation_id == row["annotation"])
    mask = decode_mask(refined.mask_size, refined.mask_counts)
    return ReferenceMask(truth.mask()).compare(mask)[0], refined.view


@pytest.mark.parametrize("tiles", ["auto", "off"])
def test_a_mask_is_the_refiners_for_the_same_box(folder: Path, border: str, tiles: str) -> None:
    rows = [row for row in records(folder, tiles) if row["prompt"] == "gt-box" and row["method"] != "box"]
    assert len(rows) == 2 * 2
    for row in rows:
        config = TINY.model_copy(update={"plugin": row["method"] == "stable-sam", "tiles": tiles})
        assert (row["iou"], row["view"]) == refined_iou(folder, row, config)
    expected = {"off": None, "auto": {"stays": "tile", "leaves": "wider"}[border]}[tiles]
    assert {(row["annotation"], row["view"]) for row in rows} == {("1", expected), ("2", None)}


def test_without_tiles_every_answer_is_of_one_embedding_of_the_whole_picture(folder: Path) -> None:
    rows = records(folder, "off", prompts=("noisy-box",), random_prompts=10, methods=("sam",))
    model = Refiner(TINY.model_copy(update={"plugin": False})).model
    view = embed_image(model, np.asarray(Image.open(folder / "images" / "0.png").convert("RGB")))
    small = [row for row in rows if row["annotation"] == "1"]
    prompts = PromptArrays(boxes_xyxy=np.array([row["box_xyxy"] for row in small]))
    prediction = predict(model, view, prompts, 8)
    [image] = read_truth(folder)[0].images
    truth = ReferenceMask(image.objects[0].mask())
    for row, logits, own in zip(small, prediction.logits, prediction.iou.tolist(), strict=True):
        assert row["iou"] == truth.compare(np.ascontiguousarray(view.frame.to_original(logits) > 0))[0]
        assert (row["predicted_iou"], row["view"]) == (own, None)


def test_points_are_asked_in_the_tile_of_their_first_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Frame, "leaves_window", lambda frame, logits: False)
    monkeypatch.setattr(Frame, "object_xyxy", lambda frame, logits: (10.0, 10.0, 17.0, 17.0))
    rows = [row for row in records(folder, "auto") if row["prompt"] == "1-point" and row["annotation"] == "1"]
    assert [row["view"] for row in rows] == ["tile", "tile"]
    assert rows != [row for row in records(folder, "off") if row["prompt"] == "1-point" and row["annotation"] == "1"]


def test_a_view_is_encoded_once_for_all_prompts_objects_and_methods_of_a_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Frame] = []
    embed = refiner_module.embed_resized
    monkeypatch.setattr(
        refiner_module,
        "embed_resized",
        lambda model, pixels, frame: encoded.append(frame) or embed(model, pixels, frame),
    )
    monkeypatch.setattr(Frame, "leaves_window", lambda frame, logits: False)
    rows = records(folder, "auto", prompts=("gt-box", "noisy-box", "worst-box"), random_prompts=3)
    assert len(encoded) == len(set(encoded)) > 1
    worst = {(row["annotation"], row["method"]): row["view"] for row in rows if row["prompt"] == "worst-box"}
    assert worst == {
        ("1", "box"): None, ("1", "sam"): "tile", ("1", "stable-sam"): "tile",
        ("2", "box"): None, ("2", "sam"): None, ("2", "stable-sam"): None,
    }  # fmt: skip
