"""Evaluation on made-up pictures with the tiny model: same prompts for both methods, fixed seeds, all counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, ConfigError, ImageError
from stable_sam.evaluation.benchmark import ALL_OBJECTS, Evaluation, evaluate
from stable_sam.evaluation.metrics import ReferenceMask
from stable_sam.evaluation.prompts import PromptKind, prompt_rng
from stable_sam.evaluation.truth import read_truth

TINY = RefinerConfig(model="tiny")
SQUARE = [[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]]


def write_set(folder: Path, annotations: list[dict[str, Any]], pictures: int = 1) -> Path:
    """A set of 80 x 60 pictures; file names begin with images/ in even pictures only, as both are in use."""
    (folder / "images").mkdir(parents=True)
    images = []
    for number in range(pictures):
        picture = Image.new("RGB", (80, 60), "navy")
        ImageDraw.Draw(picture).rectangle((10, 10, 39, 39), fill="orange")
        picture.save(folder / "images" / f"{number}.png")
        name = f"{number}.png" if number % 2 else f"images/{number}.png"
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def square(number: int, image: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "segmentation": SQUARE, **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets: one object on each of two pictures, and two objects on one."""
    write_set(tmp_path / "data" / "a", [square(1), square(2, image=1)], pictures=2)
    write_set(tmp_path / "data" / "b", [square(1), square(2)])
    return tmp_path / "data"


def run(data: Path, **more: Any) -> Evaluation:
    kinds = ["gt-box", "noisy-box", "1-point", "3-points"]
    return evaluate([data], TINY, ["sam", "stable-sam"], kinds, **{"random_prompts": 3, **more})


def test_table_has_every_set_kind_and_method(data: Path) -> None:
    result = run(data)
    assert len(result.scores) == 3 * 4 * 2
    line = {(s.set, s.prompts, s.method): s for s in result.scores}
    assert line[ALL_OBJECTS, "noisy-box", "sam"].objects == 4
    assert line[ALL_OBJECTS, "noisy-box", "sam"].masks == 12
    assert line["a", "gt-box", "sam"].masks == 2
    assert line["a", "gt-box", "sam"].msf is None, "one prompt has no mSF"
    assert line["a", "1-point", "sam"].msf is not None
    of_sets = [line[name, "3-points", "sam"].miou for name in ("a", "b")]
    assert line[ALL_OBJECTS, "3-points", "sam"].miou == pytest.approx(np.mean(of_sets))


def test_methods_differ_by_the_plugin_alone(data: Path) -> None:
    both = run(data).scores
    alone = evaluate([data], TINY, ["sam"], ["gt-box", "noisy-box", "1-point", "3-points"], random_prompts=3)
    assert [s for s in both if s.method == "sam"] == list(alone.scores), "same prompts, whatever else is measured"
    assert {s.dsp_weight for s in alone.scores} == {0.0}
    assert all(s.dsp_weight > 0 for s in both if s.method == "stable-sam")
    assert [s.miou for s in both if s.method == "stable-sam"] != [s.miou for s in alone.scores]


def test_seed_fixes_the_numbers(data: Path) -> None:
    assert run(data).scores == run(data).scores
    assert run(data).scores != run(data, seed=1).scores


def test_limit_and_smallest_area_are_kept_and_counted(tmp_path: Path) -> None:
    speck = {"id": 9, "image_id": 0, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
    crowd = square(8, iscrowd=1)
    folder = write_set(tmp_path / "a", [square(n, image=n) for n in range(5)] + [speck, crowd], pictures=5)
    part = read_truth(folder, min_area_fraction=0.005, limit=2)[0]
    assert (len(part.images), part.objects, part.small, part.crowd) == (2, 2, 1, 1)
    assert run(folder, limit=2).sets == {"a": {"images": 2, "objects": 2, "left_out_crowd": 1, "left_out_small": 1}}


def test_all_forms_of_segmentation_are_one_mask(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), dtype=np.uint8, order="F")
    mask[10:40, 10:40] = 1
    compressed = coco_mask.encode(mask)
    compressed = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    changes = np.flatnonzero(np.diff(np.concatenate(([0], mask.ravel(order="F"))))).tolist()
    counts = np.diff([0, *changes, mask.size]).tolist()
    forms = [SQUARE, compressed, {"size": [60, 80], "counts": counts}]
    folder = write_set(tmp_path / "a", [square(n, segmentation=form) for n, form in enumerate(forms)])
    for item in read_truth(folder)[0].images[0].objects:
        assert ReferenceMask(item.mask()).compare(mask.astype(bool)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"id": 1, "image_id": 7, "segmentation": SQUARE}, "7 is missing or unknown"),
        ({"id": 1, "image_id": 0}, "'segmentation' is missing"),
        (square(1, segmentation=[]), "polygon of fewer than 3 corners"),
        (square(1, segmentation={"size": [6, 8], "counts": "1"}), "mask of size"),
        (square(1, segmentation=None), "NoneType"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path: Path, annotation: dict[str, Any], reason: str) -> None:
    folder = write_set(tmp_path / "a", [square(0), annotation])
    with pytest.raises(AnnotationError, match=r"instances\.json: annotations\[1\]: expected .*" + reason):
        read_truth(folder)


def test_a_bad_folder_file_or_picture_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(AnnotationError, match="found none"):
        read_truth(tmp_path / "nowhere")
    (data / "b" / "instances.json").write_text("{")
    with pytest.raises(AnnotationError, match="not valid JSON"):
        run(data)
    (data / "b" / "instances.json").write_text("[]")
    with pytest.raises(AnnotationError, match="expected COCO instances"):
        run(data)
    (data / "a" / "images" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"1\.png: cannot read"):
        run(data / "a")
    Image.new("RGB", (8, 6)).save(data / "a" / "images" / "1.png")
    with pytest.raises(ImageError, match=r"expected height and width \(60, 80\), got \(6, 8\)"):
        run(data / "a")


@pytest.mark.parametrize("name", ["box", "noisy-box-0", "noisy-box-2", "noisy-box-x", "0-points", "points", ""])
def test_an_unknown_kind_of_prompt_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="prompts: expected gt-box"):
        PromptKind.parse(name)


def test_kinds_of_prompts() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:40, 20:50] = True
    assert PromptKind.parse("gt-box").draw(mask, prompt_rng(0), 5).tolist() == [[20, 10, 50, 40]]
    assert PromptKind.parse("noisy-box").box_noise == 0.4
    boxes = PromptKind.parse("noisy-box-0.2").draw(mask, prompt_rng(0), 50)
    assert boxes.shape == (50, 4)
    assert np.abs(boxes - [20, 10, 50, 40]).max() <= 0.2 * 30
    points = PromptKind.parse("10-points").draw(mask, prompt_rng(0), 5)
    assert points.shape == (5, 10, 2)
    assert mask[points[..., 1].astype(int), points[..., 0].astype(int)].all()


def test_methods_and_sets_are_checked(data: Path) -> None:
    with pytest.raises(ConfigError, match="methods: expected some of sam, stable-sam, got magic"):
        evaluate([data], TINY, ["sam", "magic"], ["gt-box"])
    with pytest.raises(ConfigError, match="needs a plugin"):
        evaluate([data], RefinerConfig(model="tiny", plugin=False), ["stable-sam"], ["gt-box"])
    with pytest.raises(ConfigError, match="got a more than once"):
        evaluate([data, data / "a"], TINY, ["sam"], ["gt-box"])
    with pytest.raises(ConfigError, match="no object left"):
        run(data, min_area_fraction=0.9)
    with pytest.raises(ConfigError, match="only nano"):
        run(data, size=128)
    for size in (0, -32, 32, 100):
        with pytest.raises(ConfigError, match=f"size: expected a multiple of 32 of at least 64 pixels, got {size}$"):
            evaluate([data], RefinerConfig(model="nano"), ["sam"], ["gt-box"], size=size)


def test_command_prints_the_table_and_writes_all_numbers(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    arguments = ["evaluate", "--data", str(data), "--model", "tiny", "--out", str(out), "--prompts", "gt-box,1-point"]
    answer = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "all objects: 4 objects" in answer.stdout
    result = json.loads(out.read_text())
    assert {"seed", "random_prompts", "config", "weights_sha256", "scores"} <= result.keys()
    assert len(result["scores"]) == 3 * 2 * 2
