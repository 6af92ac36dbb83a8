"""Rows of masks that a model makes in tiles, against those of the cut-out image and of the other ways to refine."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stable_sam.images.frames import Frame
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining import refiner as refiner_module
from stable_sam.refining.image_job import ImageJob, finish_job, infer_job, prepare_job, refine_job
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.steps import InferredImage, PreparedImage
from stable_sam.rle import decode_mask
from tests.unit.images.tile_prompts import CONFIG, HW, boxed, pointed


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(CONFIG.refiner, CONFIG.routing)


@pytest.fixture(autouse=True, scope="module")
def contained() -> Iterator[None]:
    """The random model's masks are everywhere; here they are taken for masks that stay inside of their tile."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Frame, "leaves_window", lambda frame, logits: False)
        yield


def photograph(hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(4).integers(0, 256, (hw[0] // 12, hw[1] // 12, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(hw[::-1], Image.Resampling.BICUBIC))


def mask_of(row: RefinedMask) -> np.ndarray[Any, Any]:
    assert row.mask_size is not None
    assert row.mask_counts is not None
    return decode_mask(row.mask_size, row.mask_counts)


def same_row(one: RefinedMask, other: RefinedMask) -> None:
    """As `Refiner` promises it."""
    assert (one.view, one.tile_xywh, one.second_pass, one.route) == (
        other.view, other.tile_xywh, other.second_pass, other.route
    )  # fmt: skip
    a, b = mask_of(one), mask_of(other)
    assert (a & b).sum() >= 0.999 * (a | b).sum()
    for score in ("predicted_iou", "stability_score", "prompt_stability", "dsp_weight"):
        assert getattr(one, score) == pytest.approx(getattr(other, score), abs=1e-4)


@settings(max_examples=15)
@given(st.floats(0, 370), st.floats(0, 270), st.floats(4, 24), st.floats(4, 24))
def test_a_row_from_a_tile_is_the_row_of_the_cut_out_image_moved_to_its_place(
    refiner: Refiner, x0: float, y0: float, w: float, h: float
) -> None:
    image = photograph(HW)
    [row] = refiner.refine_image(image, [boxed("p", x0, y0, x0 + w, y0 + h)])
    assert row.view is not None
    x, y, width, height = row.tile_xywh or (0, 0, HW[1], HW[0])
    alone = Refiner(CONFIG.refiner.model_copy(update={"tiles": "off"}))
    prompt = boxed("p", x0 - x, y0 - y, x0 + w - x, y0 + h - y)
    [expected] = alone.refine_image(image[y : y + height, x : x + width], [prompt])
    mask = mask_of(row)
    np.testing.assert_array_equal(mask[y : y + height, x : x + width], mask_of(expected))
    assert mask.sum() == row.area == expected.area
    for score in ("predicted_iou", "stability_score", "prompt_stability", "dsp_weight", "box_agreement"):
        assert getattr(row, score) == pytest.approx(getattr(expected, score), abs=1e-4)
    assert row.second_pass == expected.second_pass


def test_a_prompt_has_the_same_row_alone_and_among_others(refiner: Refiner) -> None:
    image, draw = photograph(HW), np.random.default_rng(0)
    corners = draw.uniform(0, 250, (28, 2))
    prompts = [boxed(str(n), x, y, x + 8 + n, y + 20) for n, (x, y) in enumerate(corners)]
    prompts += [pointed("point", [(40, 30)], [1]), pointed("points", [(200, 90), (390, 290)], [1, 0])]
    rows = refiner.refine_image(image, prompts)
    tiles = {row.tile_xywh for row in rows if row.tile_xywh}
    assert 1 < len(tiles) < len([row for row in rows if row.tile_xywh]), "some are shared"
    for prompt, row in zip(prompts, rows, strict=True):
        same_row(refiner.refine_image(image, [prompt])[0], row)


def test_an_encoder_pass_for_each_tile_and_none_for_an_image_that_nobody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames: list[Frame] = []
    embed = refiner_module.embed_resized
    monkeypatch.setattr(
        refiner_module,
        "embed_resized",
        lambda model, pixels, frame: frames.append(frame) or embed(model, pixels, frame),
    )
    once = Refiner(CONFIG.refiner.model_copy(update={"second_pass": "off"}))
    rows = once.refine_image(photograph(HW), [boxed(str(n), 30 + 9 * n, 40, 37 + 9 * n, 47) for n in range(4)])
    assert {frame.window_xywh for frame in frames} >= {row.tile_xywh for row in rows}
    assert len(frames) == len({frame.window_xywh for frame in frames})


def test_without_tiles_every_row_is_of_the_whole_image(refiner: Refiner) -> None:
    off = Refiner(CONFIG.refiner.model_copy(update={"tiles": "off"}))
    prompts = [boxed("small", 30, 40, 44, 47), pointed("point", [(40, 30)], [1]), boxed("large", 10, 12, 260, 270)]
    rows = off.refine_image(photograph(HW), prompts)
    assert [(row.view, row.tile_xywh) for row in rows] == [(None, None)] * 3
    assert refiner.refine_image(photograph(HW), prompts)[2] == off.refine_image(photograph(HW), prompts[2:])[0]
    assert refiner.refine_image(photograph(HW), prompts)[0].view == "tile"


def test_points_are_asked_in_the_tile_of_their_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    once = Refiner(CONFIG.refiner.model_copy(update={"tile_below_cells": 1.0}))
    monkeypatch.setattr(Frame, "object_xyxy", lambda self, logits: (96.0, 90.0, 116.0, 110.0))
    prompt = pointed("p", [(100, 100), (390, 290)], [1, 0])
    [row] = once.refine_image(photograph(HW), [prompt])
    assert row.view == "tile"
    assert row.tile_xywh is not None
    x, y, width, height = row.tile_xywh
    assert width == height == 80
    alone = Refiner(CONFIG.refiner.model_copy(update={"tiles": "off"}))
    [expected] = alone.refine_image(
        photograph(HW)[y : y + height, x : x + width], [pointed("p", [(100 - x, 100 - y)], [1])]
    )
    np.testing.assert_array_equal(mask_of(row)[y : y + height, x : x + width], mask_of(expected))


@pytest.mark.parametrize("hw", [HW, (603, 805)])
def test_every_way_gives_the_same_rows_also_where_a_jpeg_is_decoded_at_a_reduced_scale(
    refiner: Refiner, hw: tuple[int, int]
) -> None:
    file = io.BytesIO()
    Image.fromarray(photograph(hw)).save(file, "JPEG", quality=90)
    prompts = (
        boxed("small", 30, 40, 44, 47), boxed("by it", 36, 44, 48, 54), boxed("far", 280, 200, 299, 211),
        boxed("large", 10, 12, 260, 270), pointed("point", [(40, 30)], [1]), boxed("bad", 900, 12, 960, 70),
    )  # fmt: skip
    job = ImageJob(image_id="i", image_uri="/i", prompts=prompts, data=file.getvalue())
    rows = refine_job(refiner, CONFIG.refiner, job)
    assert rows == refiner.refine_file(file.getvalue(), prompts, name="/i")
    prepared = pickle.loads(pickle.dumps(prepare_job(CONFIG.refiner, refiner.input_side, job)))
    assert isinstance(prepared, PreparedImage)
    inferred = pickle.loads(pickle.dumps(infer_job(refiner, prepared)))
    assert isinstance(inferred, InferredImage)
    assert finish_job(CONFIG, inferred) == rows
    assert [row.status for row in rows] == ["ok"] * 5 + ["failed"]
    assert rows[0].tile_xywh is not None
    # The tile's pixels are all of the file's.
    whole = np.asarray(Image.open(file))
    same_row(refiner.refine_image(whole, prompts)[0], rows[0])


def test_only_what_the_tiles_need_travels(refiner: Refiner) -> None:
    file = io.BytesIO()
    Image.fromarray(photograph((603, 805))).save(file, "JPEG", quality=90)
    small, large = boxed("small", 30, 40, 44, 47), boxed("large", 10, 12, 560, 570)

    def prepared(*prompts: Prompt) -> Any:
        job = ImageJob(image_id="i", image_uri="/i", prompts=prompts, data=file.getvalue())
        return prepare_job(CONFIG.refiner, refiner.input_side, job)

    assert prepared(large).tiles is None
    taken = len(pickle.dumps(prepared(small, large))) - len(pickle.dumps(prepared(large)))
    assert len(file.getvalue()) < taken < len(file.getvalue()) + 64 * 64 * 3 + 2000


PEAK = """
import resource, sys
from pathlib import Path
from stable_sam.config import RefinerConfig
from stable_sam.refining.image_job import ImageJob, prepare_job
from stable_sam.records import Prompt
import stable_sam.images.resize
prompts = tuple(
    Prompt(prompt_id=str(n), image_id="i", image_uri="/i", box_xyxy=(n, n, n + 90, n + 80)) for n in range(0, 9000, 900)
)
job = ImageJob(image_id="i", image_uri="/i", prompts=prompts, data=Path(sys.argv[1]).read_bytes())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepared = prepare_job(RefinerConfig(model="nano"), 384, job)
assert len(prepared.tiles._ahead) == 10
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_tiles_of_a_hundred_megapixels_take_one_copy_of_them_beside_the_decoders(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    Image.new("RGB", (10_000, 10_000), "teal").save(path, quality=50)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 750, "MiB: 286 of the pixels, 381 of Pillow's own"
