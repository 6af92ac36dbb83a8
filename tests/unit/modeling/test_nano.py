"""The nano base: its shapes, its sizes, and the mask prompts of its boxes."""

import pytest
import torch

from stable_sam.errors import ConfigError
from stable_sam.modeling.bases import build_base
from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.bases.nano import MASK_STRIDE, STAGE_CHANNELS, NanoSam, build_nano
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from tests.model_parts import count_parameters, detach_plugin


@pytest.fixture(scope="module")
def built() -> NanoSam:
    torch.manual_seed(0)
    sam = build_nano(64)
    assert isinstance(sam, NanoSam)
    return sam


@pytest.fixture
def nano(built) -> NanoSam:
    """One model for all tests, at 64 pixels again for each."""
    built.set_input_side(64)
    return built


def covered_part(box: list[float], row: int, column: int) -> float:
    """Part of a cell that the box covers, from 16 x 16 points of the cell: boxes in quarters of a pixel are exact."""
    steps = [(step + 0.5) / 16 * MASK_STRIDE for step in range(16)]
    x0, y0, x1, y1 = box
    inside = sum(
        x0 < column * MASK_STRIDE + dx < x1 and y0 < row * MASK_STRIDE + dy < y1 for dx in steps for dy in steps
    )
    return inside / 256


def test_backbone_gives_four_stages(nano):
    with torch.no_grad():
        stages = nano.image_encoder.backbone(torch.randn(2, 3, 64, 96))
    assert tuple(stage.shape[1] for stage in stages) == STAGE_CHANNELS
    assert [tuple(stage.shape[2:]) for stage in stages] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("size", [64, 96, 160])
def test_every_multiple_of_32_is_an_input_size(nano, size):
    nano.set_input_side(size)
    with torch.no_grad():
        features = nano.image_encoder.features(torch.randn(1, 3, size, size))
        assert features.embedding.shape == (1, 256, size // 16, size // 16)
        assert features.fine is not None
        assert [tuple(part.shape) for part in features.fine] == [
            (1, 32, size // 4, size // 4),
            (1, 64, size // 8, size // 8),
        ]
        box, point = torch.tensor([[4.0, 8.0, 40.0, 50.0]]), (torch.tensor([[[9.0, 9.0]]]), torch.ones(1, 1))
        for prompt in ({"boxes": box}, {"points": point}, {"boxes": box, "points": point}):
            output = decode_prompts(nano, features, **prompt)
            assert output.logits.shape == (1, 4, size // 4, size // 4)
            assert output.iou.shape == (1, 4)
    assert nano.input_side == size
    assert nano.preprocess(torch.zeros(3, size // 2, size)).shape == (3, size, size)


def test_set_input_side_changes_no_weight(nano):
    before = {key: value.clone() for key, value in nano.state_dict().items()}
    nano.set_input_side(128)
    after = nano.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_set_input_side_moves_prompts_with_the_picture(nano):
    """Positions are parts of the side: the same part of a larger picture has the same tokens."""
    box = torch.tensor([[4.0, 8.0, 40.0, 50.0]])
    small, _ = nano.prompt_encoder(points=None, boxes=box - 0.5, masks=None)
    nano.set_input_side(128)
    large, _ = nano.prompt_encoder(points=None, boxes=2 * box - 0.5, masks=None)
    torch.testing.assert_close(large, small)


@pytest.mark.parametrize("size", [100, 16])
def test_other_sizes_are_refused(nano, size):
    with pytest.raises(ConfigError, match=f"multiple of 32 pixels, got {size}"):
        nano.set_input_side(size)


def test_boxes_fill_the_cells_they_cover(nano):
    boxes = [
        [8.0, 4.0, 40.0, 48.0],  # whole cells
        [9.0, 6.25, 30.5, 47.75],  # cut cells on every side
        [13.0, 13.5, 14.5, 15.0],  # within one cell
        [0.0, 0.0, 64.0, 64.0],  # all
        [-6.0, 3.0, 5.0, 80.0],  # beyond the picture
        [20.0, 20.0, 20.0, 30.0],  # nothing
    ]
    masks = nano.drawn_prompts(torch.tensor(boxes), None)
    assert masks.shape == (6, 1, 16, 16)
    expected = [[[2 * covered_part(box, y, x) - 1 for x in range(16)] for y in range(16)] for box in boxes]
    torch.testing.assert_close(masks[:, 0], torch.tensor(expected))
    assert (masks[3] == 1).all()
    assert (masks[5] == -1).all()
    assert masks[2, 0, 3, 3] == pytest.approx(2 * (1.5 * 1.5 / 16) - 1)


def test_the_filled_box_reaches_the_decoder(nano):
    """The same corner tokens with another mask prompt give other masks; points alone enter without one."""
    box = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    embedding = torch.randn(1, 256, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        masks = nano.drawn_prompts(box, None)
        sparse, dense = nano.prompt_encoder(points=None, boxes=box, masks=masks)
        by_hand, _ = nano.mask_decoder.predict_masks(embedding, nano.prompt_encoder.get_dense_pe(), sparse, dense)
        plain = nano.prompt_encoder(points=None, boxes=box, masks=None)
        without, _ = nano.mask_decoder.predict_masks(embedding, nano.prompt_encoder.get_dense_pe(), *plain)
        ours = decode_prompts(nano, ImageFeatures(embedding), boxes=box).logits
    torch.testing.assert_close(ours, by_hand)
    assert not torch.allclose(ours, without)


def test_parameter_counts(nano):
    """Sam's own prompt encoder and decoder at their true size, an encoder small enough for a CPU, a tiny plugin."""
    assert count_parameters(nano.image_encoder.backbone) == 769_354
    assert count_parameters(nano.prompt_encoder) == 6_220
    assert count_parameters(nano.mask_decoder) == 4_058_340
    assert 2.5e6 < count_parameters(nano.image_encoder) < 2.6e6
    plugin = StableSamPlugin(256)
    attach_plugin(nano, plugin)
    try:
        assert count_parameters(nano) == count_parameters(plugin)
        assert 0.07e6 < count_parameters(plugin) < 0.085e6
    finally:
        detach_plugin(nano)
        nano.requires_grad_(True)


def test_pictures_of_a_batch_do_not_mix(nano):
    """No batch statistics anywhere: a picture has one embedding, alone and among others."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = nano.image_encoder(images)
        torch.testing.assert_close(nano.image_encoder(images[1:])[0], together[1], rtol=1e-4, atol=1e-5)
    assert not any("running_mean" in key for key in nano.state_dict())


def test_unknown_models_are_refused():
    with pytest.raises(ConfigError, match="expected one of nano, vit_t, .*, got 'sam3'"):
        build_base("sam3")


def test_tiny_is_always_the_same_model():
    one, other = build_base("tiny"), build_base("tiny")
    assert isinstance(one, BaseSam)
    assert not isinstance(one, NanoSam)
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())
