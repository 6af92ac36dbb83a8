"""Tiles: where a small object is asked, and that its row is the one of the cut-out image."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stable_sam.config import RefinerConfig, RunConfig, tile_config
from stable_sam.images.frames import Frame
from stable_sam.images.tiles import INPUT_SIDES, MOST_ENLARGED, WIDEST, TilePlan, TileRule, prompt_in, tile_rule
from stable_sam.modeling.build import build_model
from stable_sam.records import BoxXYXY, Prompt, RefinedMask, Window
from stable_sam.refining import refiner as refiner_module
from stable_sam.refining.image_job import ImageJob, finish_job, infer_job, prepare_job, refine_job
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.steps import InferredImage, PreparedImage
from stable_sam.rle import decode_mask, encode_patch

CONFIG = RunConfig(
    refiner=RefinerConfig(model="tiny", jitter_count=3, stability_offset=0.002, second_pass_dsp_weight=0.3)
)
leaves_window = Frame.leaves_window
NANO = TileRule(input_side=384, below_cells=3.0, scale=3.0, max_tiles=64)
HW = (300, 400)


def boxed(name: str, *box: float, **more: Any) -> Prompt:
    x0, y0, x1, y1 = box
    return Prompt(prompt_id=name, image_id="i", image_uri="/i", box_xyxy=(x0, y0, x1, y1), **more)


def pointed(name: str, points: list[tuple[float, float]], labels: list[int]) -> Prompt:
    return Prompt(
        prompt_id=name, image_id="i", image_uri="/i", points_xy=tuple(points), point_labels=tuple(labels)
    )  # fmt: skip


def photograph(hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(4).integers(0, 256, (hw[0] // 12, hw[1] // 12, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(hw[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(CONFIG.refiner, CONFIG.routing)


@pytest.fixture(autouse=True, scope="module")
def contained() -> Iterator[None]:
    """The random model's masks are everywhere; here they are taken for masks that stay inside of their tile."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Frame, "leaves_window", lambda frame, logits: False)
        yield


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


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[BoxXYXY, tuple[int, int]]:
    height, width = (draw(st.integers(1, 9000)) for _ in range(2))
    w, h = (draw(st.floats(0.01, 1)) ** 3 * size for size in (width, height))
    x, y = draw(st.floats(0, 1)) * (width - w), draw(st.floats(0, 1)) * (height - h)
    return (x, y, x + w, y + h), (height, width)


@settings(max_examples=500)
@given(boxes_in_images(), st.floats(2, 9), st.integers(0, 3))
def test_every_small_box_lies_well_inside_its_tile_and_inside_wider_ones(
    placed: tuple[BoxXYXY, tuple[int, int]], scale: float, levels_up: int
) -> None:
    (x0, y0, x1, y1), (height, width) = box, hw = placed
    rule = replace(NANO, scale=scale)
    size = max(x1 - x0, y1 - y0)
    small = size * 24 < 3 * max(hw)
    least = max(scale * size, 384 / MOST_ENLARGED)
    level = rule.level(box, hw)
    if level == 0:
        assert not small or least > WIDEST * max(hw)
    if level <= levels_up:
        return
    x, y, w, h = rule.window(box, hw, level - levels_up)
    least *= 2**levels_up
    side = max(w, h)
    assert small
    assert 0 <= x <= x + w <= width
    assert 0 <= y <= y + h <= height
    assert least <= side < 2 * least + 1
    margin = side * (1 / 4 - 1 / (2 * scale)) - 1  # a pixel for rounding
    assert min(x0 - x if x else margin, y0 - y if y else margin) >= margin
    assert min(x + w - x1 if x + w < width else margin, y + h - y1 if y + h < height else margin) >= margin


@given(st.floats(200, 500), st.integers(1, 20), st.sampled_from([10.0, 20.0, 45.0]))
def test_a_box_moved_by_a_step_of_the_grid_takes_the_tile_moved_by_a_step(x: float, steps: int, size: float) -> None:
    hw = (3840, 3840)
    level = NANO.level((x, 100, x + size, 110), hw)
    first = NANO.window((x, 100, x + size, 110), hw, level)
    step = first[2] // 2  # the sides of this image are whole steps
    moved = NANO.window((x + steps * step, 100, x + size + steps * step, 110), hw, level)
    assert moved == (first[0] + steps * step, *first[1:])


def test_prompts_of_like_size_that_lie_together_share_a_tile() -> None:
    row = [boxed(str(n), 300 + 12 * n, 200, 310 + 12 * n, 210) for n in range(4)]
    assert len(TilePlan(NANO, (480, 640), row).first_tiles()) < len(row)
    everywhere = [
        boxed(f"{x} {y}", x, y, x + 6, y + 6) for x in range(0, 630, 16) for y in range(0, 470, 16)
    ]  # fmt: skip
    assert len(TilePlan(replace(NANO, max_tiles=10**6), (480, 640), everywhere).first_tiles()) < len(everywhere) / 2


@given(st.lists(boxes_in_images(), min_size=1, max_size=40), st.integers(1, 8))
def test_an_image_takes_no_more_tiles_than_the_bound(
    placed: list[tuple[BoxXYXY, tuple[int, int]]], max_tiles: int
) -> None:
    hw = (2000, 3000)
    prompts = [boxed(str(n), *(value / 9000 * 2000 for value in box)) for n, (box, _) in enumerate(placed)]
    plan = TilePlan(replace(NANO, max_tiles=max_tiles), hw, prompts)
    everywhere = np.ones((96, 96), np.float32)
    tiles, answers = set(), dict.fromkeys(range(len(prompts)), 0)
    for window, indices in plan.views():
        tiles |= {window} - {None}
        for index in indices:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(Frame, "leaves_window", leaves_window)
                again = plan.asks_again(index, Frame(hw, 384, window), everywhere)
            assert again == (window is not None), "every mask reaches the borders of its tile"
            answers[index] += not again
    assert len(tiles) <= max_tiles
    assert set(answers.values()) == {1}, "everyone is answered once, at last by the whole image"


Asked = tuple[float, float, float, bool, int]
"""Place and side of an object, whether its prompt is a point, and in how many tiles its mask reaches the border."""


def views_of(asked: list[Asked]) -> list[list[Window | None]]:
    """Where each prompt is asked, one view after the other."""
    prompts = [
        pointed("p", [(x, y)], [1]) if by_point else boxed("b", x, y, x + side, y + side)
        for x, y, side, by_point, _ in asked
    ]
    plan = TilePlan(NANO, (3000, 4000), prompts)
    seen: list[list[Window | None]] = [[] for _ in prompts]
    with pytest.MonkeyPatch.context() as patched:
        for window, indices in plan.views():
            for index in indices:
                x, y, side, _, leaves = asked[index]
                reaches = len([there for there in seen[index] if there]) < leaves
                patched.setattr(Frame, "object_xyxy", lambda *_, box=(x, y, x + side, y + side): box)
                patched.setattr(Frame, "leaves_window", lambda *_, reaches=reaches: reaches)
                plan.asks_again(index, Frame((3000, 4000), 384, window), np.zeros((96, 96), np.float32))
                seen[index].append(window)
    return seen


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3000), st.floats(0, 2000), st.floats(1, 900), st.booleans(), st.integers(0, 4)
        ), min_size=2, max_size=8,
    )
)  # fmt: skip
def test_where_a_prompt_is_asked_does_not_depend_on_the_others(asked: list[Asked]) -> None:
    assert views_of(asked) == [views_of([one])[0] for one in asked]


def test_a_bound_keeps_the_prompts_of_an_image_from_the_deepest_levels_and_their_rows_say_so() -> None:
    prompts = [boxed(str(n), 150 * n, 300, 150 * n + 10, 310) for n in range(8)]
    prompts.append(boxed("large", 100, 100, 900, 900))
    few = TilePlan(replace(NANO, max_tiles=5), (1000, 1500), prompts)
    views = dict(few.views())
    assert views[None] == [8]
    assert len(views) == 1 + 4
    assert [few.view(index) for index in range(9)] == ["wider"] * 8 + [None]
    free = TilePlan(NANO, (1000, 1500), prompts)
    assert len(list(free.views())) > 1 + 5
    assert [free.view(index) for index in range(9)] == ["tile"] * 8 + [None]


def test_a_mask_at_the_border_of_its_tile_is_asked_in_the_next_wider_one_but_not_at_the_images_border(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hw = (1000, 1500)
    plan = TilePlan(NANO, hw, [boxed("corner", 0, 0, 10, 10)])
    [(window, _)] = [view for view, _ in zip(plan.views(), range(1), strict=False)]
    assert window == (0, 0, 300, 300)
    left, right = (np.full((96, 96), -1, np.float32) for _ in range(2))
    left[:, :4] = right[:, -1] = 1
    frame = Frame(hw, 384, window)
    left[-4:] = -1  # along the image's own border, clear of the tile's
    assert not leaves_window(frame, left)
    assert leaves_window(frame, right)
    monkeypatch.setattr(Frame, "leaves_window", leaves_window)
    assert plan.asks_again(0, frame, right)
    [(wider, indices)] = plan.views()
    assert (wider, indices) == ((0, 0, 600, 600), [0])
    assert plan.view(0) == "wider"


def test_background_points_outside_of_a_tile_are_left_out_and_those_on_the_object_make_it_larger() -> None:
    prompt = boxed("p", 100, 100, 110, 110, points_xy=((105, 105), (118, 105), (900, 900)), point_labels=(1, 1, 0))
    [window] = TilePlan(NANO, (1000, 1500), [prompt]).first_tiles()
    assert window[2] >= 3 * 18
    asked = prompt_in(window, prompt)
    assert (asked.points_xy, asked.point_labels) == (((105, 105), (118, 105)), (1, 1))
    assert prompt_in(None, prompt) is prompt


@pytest.mark.parametrize("window", [(0, 0, 96, 96), (211, 37, 96, 96), (304, 204, 96, 96), (90, 0, 192, 300)])
def test_a_frame_of_a_window_is_the_frame_of_the_cut_out_image_moved_to_its_place(
    window: tuple[int, int, int, int],
) -> None:
    x, y, w, h = window
    inside, alone = Frame(HW, 64, window), Frame((h, w), 64)
    points = np.array([[x, y], [x + w, y + h], [x + 3.5, y + 7.25]], dtype=np.float64)
    np.testing.assert_array_equal(inside.to_model_xy(points), alone.to_model_xy(points - (x, y)))
    np.testing.assert_allclose(inside.to_original_xy(inside.to_model_xy(points)), points, atol=1e-4)
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(-1, 1, (16, 16)).astype(np.float32)
        patch, theirs = inside.to_original_above(logits, 0.0), alone.to_original_above(logits, 0.0)
        np.testing.assert_array_equal(patch.values, theirs.values)
        assert (patch.top, patch.left) == (theirs.top + y, theirs.left + x)
        expected = np.zeros(HW, bool)
        expected[y : y + h, x : x + w] = inside.to_original(logits) > 0
        encoded = encode_patch(patch.values, patch.top, patch.left, HW)
        np.testing.assert_array_equal(decode_mask(HW, encoded.counts), expected)
        box = inside.object_xyxy(logits)
        assert box is not None
        bx, by, bw, bh = encoded.bbox_xywh
        pixel = max(w, h) / 64  # of the model's input, in original ones
        assert max(box[0] - bx, box[1] - by) <= pixel
        assert min(box[2] - bx - bw, box[3] - by - bh) >= -pixel


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


def test_tiles_are_settings_that_make_other_rows_and_off_is_what_was_before() -> None:
    def hash_of(**refiner: Any) -> str:
        return RunConfig.from_dict({"refiner": refiner}).content_hash()

    assert hash_of(tiles="off") == hash_of(tiles="off", max_tiles=7, tile_scale=9, tile_below_cells=1)
    changed = [{}, {"tiles": "off"}, {"max_tiles": 7}, {"tile_scale": 9}, {"tile_below_cells": 1}]
    assert len({hash_of(**settings) for settings in changed}) == len(changed)
    assert RefinerConfig(tiles="off").tile_rule is None
    assert RefinerConfig.from_dict({"tiles": False}).tiles == "off", "as YAML reads it"
    assert tile_rule(RefinerConfig(tiles="off")) is None


@given(st.floats(1e-6, 1e6), st.floats(2, 1e6))
def test_the_settings_of_a_rule_in_words_have_that_rule(below_cells: float, scale: float) -> None:
    rule = RefinerConfig(tile_below_cells=below_cells, tile_scale=scale).tile_rule
    assert RefinerConfig.from_dict(tile_config(rule)).tile_rule == rule
    assert RefinerConfig.from_dict(tile_config(None)).tile_rule is None


@pytest.mark.parametrize("name", ["nano", "tiny", "vit_b"])
def test_input_sides_are_the_models(name: str) -> None:
    assert build_model(name).image_encoder.img_size == INPUT_SIDES[name]
