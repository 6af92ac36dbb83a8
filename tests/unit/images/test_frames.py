import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from stable_sam.images.frames import Frame
from stable_sam.modeling.bases.tiny import build_tiny

SIZES = [(100, 150), (151, 100), (64, 64), (13, 700), (40, 31), (301, 222)]


@pytest.fixture(scope="module")
def sam() -> Sam:
    return build_tiny(64)


@pytest.mark.parametrize("hw", SIZES)
def test_geometry_is_sams(hw):
    frame, reference = Frame(hw, 64), ResizeLongestSide(64)
    assert frame.resized_hw == reference.get_preprocess_shape(*hw, 64)
    points = np.array([[0.0, 0.0], [hw[1], hw[0]], [3.5, 7.25]])
    np.testing.assert_allclose(frame.to_model_xy(points), reference.apply_coords(points, hw), rtol=1e-6)
    boxes = np.array([[1.0, 2.0, 30.0, 12.0], [0.0, 0.0, hw[1], hw[0]]])
    np.testing.assert_allclose(frame.to_model_xyxy(boxes), reference.apply_boxes(boxes, hw), rtol=1e-6)


@pytest.mark.parametrize("hw", SIZES)
def test_logits_to_original_pixels_equal_sams_two_steps(sam, hw):
    frame = Frame(hw, 64)
    logits = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)
    expected = sam.postprocess_masks(torch.from_numpy(logits)[None, None], frame.resized_hw, hw)[0, 0].numpy()
    result = frame.to_original(logits)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert result.shape == hw
    assert result.flags.f_contiguous


def test_a_very_long_image_keeps_a_row_of_pixels():
    frame = Frame((3, 40_000), 64)
    assert frame.resized_hw == (1, 64)
    assert frame.to_original(np.ones((16, 16), dtype=np.float32)).shape == (3, 40_000)


@pytest.mark.parametrize("hw", SIZES)
def test_a_stretched_view_fills_the_square_as_in_sam_2(hw):
    frame = Frame(hw, 64, fit="stretch")
    assert frame.resized_hw == (64, 64)
    corners = frame.to_model_xyxy(np.array([[0.0, 0.0, hw[1], hw[0]], [0.0, 0.0, hw[1] / 2, hw[0] / 4]]))
    np.testing.assert_allclose(corners, [[0, 0, 64, 64], [0, 0, 32, 16]], rtol=1e-6)


@pytest.mark.parametrize("hw", SIZES)
def test_logits_of_a_stretched_view_are_resized_in_one_step(hw):
    logits = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)
    grid = torch.from_numpy(logits)[None, None]
    expected = torch.nn.functional.interpolate(grid, hw, mode="bilinear", align_corners=False)[0, 0].numpy()
    result = Frame(hw, 64, fit="stretch").to_original(logits)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert result.flags.f_contiguous


@st.composite
def views(draw: st.DrawFn) -> Frame:
    height, width = (draw(st.integers(1, 400)) for _ in range(2))
    fit = draw(st.sampled_from(["pad", "stretch"]))
    if draw(st.booleans()):
        return Frame((height, width), 64, fit=fit)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    window = left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top))
    return Frame((height, width), 64, window, fit)


@given(views(), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_points_come_back_from_the_models_input(frame, places):
    x, y, width, height = frame.region_xywh
    points = np.array(places) * (width, height) + (x, y)
    inside = frame.to_model_xy(points)
    assert (inside >= 0).all()
    assert (inside <= np.array(frame.resized_hw[::-1]) * (1 + 1e-6)).all()
    np.testing.assert_allclose(frame.to_original_xy(inside), points, rtol=1e-5, atol=1e-3)


@given(views(), st.integers(0, 10**6), st.floats(0.3, 3))
def test_a_rectangle_of_a_mask_is_that_of_the_whole_one(frame, seed, steep):
    """Values within 1e-4 where one of the two is above the level, and none above it outside the rectangle."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    logits = (3 - np.hypot(rows - draw.uniform(-1, 17), columns - draw.uniform(-1, 17)) * steep).astype(np.float32)
    x, y, width, height = frame.region_xywh
    whole, patch = np.full(frame.original_hw, -9.0, np.float32), frame.to_original_above(logits, -1.0)
    whole[y : y + height, x : x + width] = frame.to_original(logits)
    found = np.full(frame.original_hw, -9.0, np.float32)
    h, w = patch.values.shape
    found[patch.top : patch.top + h, patch.left : patch.left + w] = patch.values
    above = np.maximum(whole, found) > -1.0 + 1e-3
    np.testing.assert_allclose(found[above], whole[above], atol=1e-4)
