"""Tiles: where a small object is asked, and that its row is the one of the cut-out image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_sam.config import RefinerConfig, RunConfig, tile_config
from stable_sam.images.frames import Frame
from stable_sam.images.tiles import MOST_ENLARGED, WIDEST, TilePlan, TileRule, prompt_in, tile_rule
from stable_sam.records import BoxXYXY, Window
from stable_sam.rle import decode_mask, encode_patch
from tests.unit.images.tile_prompts import HW, boxed, pointed

leaves_window = Frame.leaves_window


NANO = TileRule(input_side=384, below_cells=3.0, scale=3.0, max_tiles=64)


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


def test_an_object_of_a_stretched_image_is_small_by_the_cells_of_each_axis() -> None:
    """24 x 24 cells of 50 x 20 pixels: 3 cells are 150 pixels across and 60 down."""
    rule, hw = replace(NANO, fit="stretch"), (480, 1200)
    assert rule.level((0, 0, 149, 59), hw) > 0
    assert rule.level((0, 0, 20, 60), hw) == 0
    assert rule.level((0, 0, 150, 20), hw) == 0
    assert NANO.level((0, 0, 20, 60), hw) > 0
