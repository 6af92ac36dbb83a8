import numpy as np
import pytest
import torch
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
