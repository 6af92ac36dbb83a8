"""The second pass: what is mirrored comes back, and a mask no longer depends on which way the image looks."""

import numpy as np
import pytest
from PIL import Image

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.images.frames import Frame
from stable_sam.records import Prompt
from stable_sam.refining.predict import PromptArrays
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.second_pass import consensus, mirror_logits, mirror_prompts
from stable_sam.rle import decode_mask

HW = (96, 128)
BOXES = [(10.0, 12.0, 60.0, 70.0), (80.0, 50.0, 100.0, 66.0), (0.0, 0.0, 128.0, 96.0)]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    coarse = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC))


def tiny(**settings) -> Refiner:
    return Refiner(RefinerConfig(**{"model": "tiny", "jitter_count": 0, "second_pass_dsp_weight": 0, **settings}))


def prompts(boxes) -> list[Prompt]:
    return [Prompt(prompt_id=str(n), image_id="i", image_uri="u", box_xyxy=box) for n, box in enumerate(boxes)]


def masks(rows) -> list[np.ndarray]:
    return [decode_mask(row.mask_size, row.mask_counts) for row in rows]


def test_a_mirrored_image_has_the_mirrored_masks(image):
    refiner, once = tiny(), tiny(second_pass="off")
    mirrored_boxes = [(HW[1] - x1, y0, HW[1] - x0, y1) for x0, y0, x1, y1 in BOXES]

    def both_ways(of: Refiner) -> list[tuple[np.ndarray, np.ndarray]]:
        there = masks(of.refine_image(image, prompts(BOXES)))
        back = masks(of.refine_image(np.ascontiguousarray(image[:, ::-1]), prompts(mirrored_boxes)))
        return [(one, other[:, ::-1]) for one, other in zip(there, back, strict=True)]

    def differing(pairs) -> int:
        return sum(int((one != other).sum()) for one, other in pairs)

    assert differing(both_ways(refiner)) <= 0.01 * sum(one.sum() for one, _ in both_ways(refiner))
    assert differing(both_ways(once)) > 10 * differing(both_ways(refiner))


def test_only_poor_prompts_take_the_second_pass_and_the_others_stay_as_they_were(image):
    first = tiny(second_pass="off").refine_image(image, prompts(BOXES))
    weights = sorted(row.dsp_weight for row in first)
    limit = (weights[0] + weights[1]) / 2
    rows = tiny(second_pass_dsp_weight=limit).refine_image(image, prompts(BOXES))
    assert [row.second_pass for row in rows] == ["mirror" if row.dsp_weight >= limit else None for row in first]
    for row, before in zip(rows, first, strict=True):
        assert row.dsp_weight == pytest.approx(before.dsp_weight, abs=1e-4)
        if row.second_pass is None:
            assert row == before
        else:
            assert row.mask_counts != before.mask_counts


@pytest.mark.parametrize("settings", [{"second_pass": "off"}, {"plugin": False}, {"second_pass_dsp_weight": 1}])
def test_there_is_none_when_it_is_off_or_nothing_says_which_prompts_are_poor(image, settings):
    rows = tiny(**settings).refine_image(image, prompts(BOXES))
    assert [row.second_pass for row in rows] == [None] * len(BOXES)


def test_prompts_mirrored_twice_are_the_same():
    arrays = PromptArrays(
        boxes_xyxy=np.array(BOXES), points_xy=np.array([[[3.5, 2]], [[0, 9]], [[128, 96]]]),
        point_labels=np.ones((3, 1), np.int64),
    )  # fmt: skip
    once = mirror_prompts(arrays, HW[1])
    assert once.boxes_xyxy is not None
    assert (once.boxes_xyxy[:, 0] < once.boxes_xyxy[:, 2]).all()
    twice = mirror_prompts(once, HW[1])
    np.testing.assert_allclose(twice.boxes_xyxy, arrays.boxes_xyxy)
    np.testing.assert_allclose(twice.points_xy, arrays.points_xy)


@pytest.mark.parametrize(("hw", "columns"), [((64, 64), 16.0), ((64, 48), 12.0), ((64, 50), 12.5), ((64, 1), 0.25)])
def test_logits_are_mirrored_within_the_image_and_not_in_the_padding(hw, columns):
    frame = Frame(hw, 64)
    ramp = np.arange(16, dtype=np.float32)[None, None].repeat(16, axis=1)
    mirrored = mirror_logits(ramp, frame)
    inside = np.arange(int(columns))
    np.testing.assert_allclose(mirrored[0, 0, inside], np.clip(columns - 1 - inside, 0, None))


def test_logits_of_a_stretched_image_are_mirrored_number_for_number():
    logits = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(mirror_logits(logits, Frame((64, 50), 64, fit="stretch")), logits[..., ::-1])


def test_consensus_is_between_the_two_and_finite():
    draw = np.random.default_rng(0)
    first, second = (draw.normal(0, 30, (2, 5, 5)).astype(np.float32) for _ in range(2))
    mean = consensus(first, second)
    assert np.isfinite(mean).all()
    np.testing.assert_array_equal(mean, consensus(second, first))
    small = np.abs(first) < 10
    np.testing.assert_allclose(consensus(first, first)[small], first[small], rtol=0.05, atol=1e-3)
    agreed = np.sign(first) == np.sign(second)
    assert (np.sign(mean)[agreed] == np.sign(first)[agreed]).all()


def test_without_a_second_pass_the_run_is_the_one_it_was_before_there_was_one():
    off = RunConfig.from_dict({"refiner": {"second_pass": "off"}})
    assert (
        off.content_hash()
        == RunConfig.from_dict({"refiner": {"second_pass": "off", "second_pass_dsp_weight": 0.9}}).content_hash()
    )
    assert off.content_hash() != RunConfig().content_hash()
