"""Each fast path against the path it stands for: equal but for rounding, within the tolerance said here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from stable_sam import rle
from stable_sam.config import RefinerConfig
from stable_sam.images.frames import Frame
from stable_sam.images.resize import resize_image
from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.bases.nano import ChannelNorm, build_nano
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.fast import encoder
from stable_sam.modeling.fast.decoder import MOST_TOKENS, can_decode, decode_chosen_masks, image_side
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.modeling.plugin_spec import PluginSpec
from stable_sam.modeling.single_mask import single_tokens
from stable_sam.refining import stability
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.stability import prompt_stability, stability_score
from stable_sam.rle import encode_mask, encode_patch
from tests.model_parts import detach_plugin
from tests.unit.modeling.bases.small_sam2 import build_small_sam2

BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [0.0, 0.0, 64.0, 64.0], [30.0, 8.0, 44.0, 20.0]])
POINTS = (torch.tensor([[[5.0, 7.0], [50.0, 60.0]], [[1.0, 1.0], [9.0, 2.0]], [[32.0, 32.0], [33.0, 20.0]]]),
          torch.tensor([[1, 0], [1, 1], [0, 1]]))  # fmt: skip
ONE_POINT = (POINTS[0][:, :1], torch.tensor([[1], [1], [1]]))
PROMPTS = {
    "boxes": {"boxes": BOXES},
    "points": {"points": POINTS},
    "both": {"boxes": BOXES, "points": POINTS},
    "one point": {"points": ONE_POINT},
}
PLUGINS = {
    "no plugin": None,
    "default": PluginSpec(),
    "paper": PluginSpec(calibrates="attention", routing_reads="token"),
    "amplitude": PluginSpec(amplitude=True, offsets="free"),
    "no offsets": PluginSpec(offsets="none", routing="sigmoid", routing_token=0),
    "no routing": PluginSpec(routing="none"),
    "five samples": PluginSpec(samples=5),
}
SIZES = [(100, 150), (151, 100), (64, 64), (13, 700), (40, 31), (301, 222), (480, 640), (1, 1), (2, 3000)]


@pytest.fixture(scope="module")
def models() -> list[BaseSam]:
    torch.manual_seed(0)
    return [build_tiny(), build_nano(64), build_small_sam2()]


def features_of(sam: BaseSam) -> ImageFeatures:
    """With fine features also where the encoder makes none, and not those of an untrained nano, which are 0."""
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 255
    channels = sam.prompt_encoder.embed_dim
    fine = (
        torch.randn(1, channels // 8, 16, 16, generator=generator),
        torch.randn(1, channels // 4, 8, 8, generator=generator),
    )
    with torch.no_grad():
        return ImageFeatures(sam.features(sam.preprocess(image)).embedding, fine)


def random_plugin(sam: BaseSam, spec: PluginSpec) -> StableSamPlugin:
    torch.manual_seed(5)
    plugin = StableSamPlugin(sam.prompt_encoder.embed_dim, spec)
    for parameter in plugin.parameters():
        nn.init.normal_(parameter, std=0.2)
    return plugin


@pytest.mark.parametrize("kind", list(PROMPTS))
@pytest.mark.parametrize("plugin", list(PLUGINS))
def test_the_decoders_masks_are_the_references(models, plugin, kind):
    """Within 1e-4 of the logits' scale."""
    for sam in models:
        features, spec = features_of(sam), PLUGINS[plugin]
        if spec is not None:
            attach_plugin(sam, random_plugin(sam, spec))
        try:
            with torch.no_grad():
                expected = decode_prompts(sam, features, **PROMPTS[kind])
                ambiguous = kind == "one point"
                masks = decode_chosen_masks(sam, image_side(sam, features), ambiguous=ambiguous, **PROMPTS[kind])
        finally:
            detach_plugin(sam)
        row = torch.arange(3)
        if ambiguous:
            token = expected.iou[:, 1:].argmax(dim=1) + 1
        else:
            token = single_tokens(sam, expected.logits[:, 0], expected.iou)
        logits = expected.logits[row, token]
        assert torch.equal(masks.token, token)
        torch.testing.assert_close(masks.logits, logits, rtol=0, atol=1e-4 * logits.abs().max().item())
        torch.testing.assert_close(masks.iou, expected.iou[row, token], rtol=1e-4, atol=1e-5)
        assert (masks.alpha is None) == (spec is None)
        if masks.alpha is not None:
            torch.testing.assert_close(masks.alpha, expected.trace.alpha, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", ["none", "one", "all"])
@pytest.mark.parametrize("spec", ["default", "paper", "amplitude", "no routing"])
def test_the_regular_path_of_good_prompts_is_the_references(models, spec, share):
    for sam in models:
        features, host = features_of(sam), attach_plugin(sam, random_plugin(sam, PLUGINS[spec]))
        try:
            with torch.no_grad():
                side = image_side(sam, features)
                alpha = decode_chosen_masks(sam, side, boxes=BOXES).alpha[:, 0]
                limit = {"none": 1e-6, "one": alpha.sort().values[:2].mean(), "all": 1.0}[share]
                host.plugin.regular_below = float(limit)
                expected = decode_prompts(sam, features, boxes=BOXES)
                masks = decode_chosen_masks(sam, side, boxes=BOXES)
        finally:
            detach_plugin(sam)
        logits = expected.logits[torch.arange(3), single_tokens(sam, expected.logits[:, 0], expected.iou)]
        torch.testing.assert_close(masks.logits, logits, rtol=0, atol=1e-4 * logits.abs().max().item())
        torch.testing.assert_close(masks.alpha, expected.trace.alpha, rtol=1e-4, atol=1e-5)


def test_a_plugin_that_came_after_the_image_projects_it_itself(models):
    """Within 1e-4 of the logits' scale: what is prepared for an image is prepared for one plugin."""
    sam = models[0]
    features = features_of(sam)
    with torch.no_grad():
        attach_plugin(sam, random_plugin(sam, PluginSpec())).plugin.sampling.project.weight.mul_(2.0)
        sides = [image_side(sam, features)]
        detach_plugin(sam)
        sides.append(image_side(sam, features))
        attach_plugin(sam, random_plugin(sam, PluginSpec()))
        expected = decode_chosen_masks(sam, image_side(sam, features), boxes=BOXES).logits
        for side in sides:
            logits = decode_chosen_masks(sam, side, boxes=BOXES).logits
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    detach_plugin(sam)


def test_a_disabled_plugin_is_passed_by(models):
    sam = models[0]
    side = image_side(sam, features_of(sam))
    with torch.no_grad():
        expected = decode_chosen_masks(sam, side, boxes=BOXES)
        attach_plugin(sam, random_plugin(sam, PluginSpec())).enabled = False
        masks = decode_chosen_masks(sam, side, boxes=BOXES)
    detach_plugin(sam)
    assert torch.equal(masks.logits, expected.logits)
    assert masks.alpha is None


def test_what_the_fast_decoder_does_not_know_is_left_to_the_reference(models):
    sam = models[0]
    assert can_decode(sam, MOST_TOKENS - 5)
    assert not can_decode(sam, MOST_TOKENS - 4)
    for spec in (PluginSpec(), PluginSpec(layers="both"), PluginSpec(move_positions=True)):
        host = attach_plugin(sam, random_plugin(sam, spec))
        assert can_decode(sam, 2) == (spec == PluginSpec())
        host.enabled = False
        assert can_decode(sam, 2)
        detach_plugin(sam)


@pytest.mark.parametrize("points", [1, 3, 11])
def test_predict_takes_the_fast_path_where_it_can(points):
    """11 points are too many tokens for it."""
    model = Refiner(RefinerConfig(model="tiny")).model
    view = embed_image(model, np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    xy = np.random.default_rng(1).uniform(0, 48, (3, points, 2))
    prompts = PromptArrays(points_xy=xy, point_labels=np.ones((3, points), dtype=np.int64))
    fast, reference = (predict(model, view, prompts, 2, reference=reference) for reference in (False, True))
    np.testing.assert_allclose(fast.logits, reference.logits, atol=1e-4 * np.abs(reference.logits).max())
    np.testing.assert_allclose(fast.iou, reference.iou, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.dsp_weight, reference.dsp_weight, rtol=1e-4)
    np.testing.assert_array_equal(fast.token, reference.token)
    assert np.array_equal(fast.logits, reference.logits) == (points == 11)


def some_transformer(seed: int, heads: int) -> ImageEncoderViT:
    """5 x 5 cells, in windows of 4 and all with all, whose relative positions count."""
    torch.manual_seed(seed)
    transformer = ImageEncoderViT(
        img_size=80, embed_dim=12, depth=2, num_heads=heads, out_chans=32, window_size=4, global_attn_indexes=(1,),
        use_rel_pos=True,
    ).eval()  # fmt: skip
    for block in transformer.blocks:
        for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
            nn.init.normal_(table)
    return transformer


@pytest.mark.parametrize("scores", [1, 4**4 * 2 * 3, 2**21])
def test_the_vision_transformer_is_sams(monkeypatch, scores):
    """Within 1e-5, whatever the parts: one row of cells, three windows, all at once."""
    transformer, images = some_transformer(0, heads=2), torch.randn(2, 3, 80, 80)
    monkeypatch.setattr(encoder, "SCORES_AT_A_TIME", scores)
    with torch.no_grad():
        found = encoder.encode_vit(transformer, images)
        torch.testing.assert_close(found, transformer(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_vision_transformer_of_a_gpu_is_sams(monkeypatch, heads):
    """Within 1e-4, and in bfloat16 as near to float32 as SAM's own."""
    transformer, images = some_transformer(1, heads), torch.randn(2, 3, 80, 80)
    monkeypatch.setattr(encoder, "read_in_parts", encoder.read_by_channels)
    with torch.no_grad():
        expected = transformer(images)
        torch.testing.assert_close(encoder.encode_vit(transformer, images), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half, sams_half = encoder.encode_vit(transformer, images), transformer(images)
    assert not torch.equal(half, expected)
    assert (half - expected).abs().mean() <= 1.2 * (sams_half - expected).abs().mean()


@pytest.mark.parametrize("half", [False, True])
def test_the_attention_of_a_gpu_has_heads_that_its_kernels_take(monkeypatch, half):
    """Of a multiple of 8 channels, without a mask; flash attention, in bfloat16, wants all three alike."""
    seen = []

    def watched(q, k, v, **options):
        seen.append((q.shape[3], k.shape[3], v.shape[3], options.get("attn_mask")))
        return attention(q, k, v, **options)

    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(encoder, "read_in_parts", encoder.read_by_channels)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        encoder.encode_vit(some_transformer(0, heads=2), torch.randn(1, 3, 80, 80))
    assert seen == [(16, 16, 16 if half else 6, None)] * 2  # 6 + 4 + 4 in windows, 6 + 5 + 5 of all


def test_the_norm_of_channels_is_sams():
    x, ours, theirs = torch.randn(2, 6, 5, 4), ChannelNorm(6), LayerNorm2d(6)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hw", SIZES)
def test_the_resized_image_is_torchs(hw):
    """Bit for bit, whatever the layout."""
    pixels = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    frame = Frame(hw, 64)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    expected = nn.functional.interpolate(planes, frame.resized_hw, mode="bilinear", antialias=True)
    resized = resize_image(pixels, frame)
    np.testing.assert_array_equal(resized, expected[0].permute(1, 2, 0).numpy())
    assert resized.flags.c_contiguous
    assert resized.dtype == np.uint8


def some_logits(seed: int, kind: str) -> np.ndarray:
    """(16, 16): a bump somewhere, noise everywhere, or nothing above 0."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    bump = 3 - np.hypot(y - draw.uniform(-1, 17), x - draw.uniform(-1, 17)) * draw.uniform(0.5, 2)
    return {"bump": bump, "noise": draw.normal(size=(16, 16)), "nothing": np.full((16, 16), -9.0)}[kind].astype("f4")


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("kind", ["bump", "noise", "nothing"])
def test_a_mask_made_in_a_rectangle_is_the_whole_images(hw, kind):
    """Values within 1e-4; they lie nowhere so near to the thresholds here, so masks and scores are equal."""
    for seed in range(5):
        logits, frame = some_logits(seed, kind), Frame(hw, 64)
        whole, patch = frame.to_original(logits), frame.to_original_above(logits, -1.0)
        there = np.s_[patch.top : patch.top + patch.values.shape[0], patch.left : patch.left + patch.values.shape[1]]
        above = whole > -1.0
        np.testing.assert_allclose(patch.values[above[there]], whole[there][above[there]], atol=1e-4)
        assert np.count_nonzero(above) == np.count_nonzero(above[there]) == np.count_nonzero(patch.values > -1.0)
        assert encode_patch(patch.values, patch.top, patch.left, hw) == encode_mask(whole > 0)
        assert stability_score(patch.values, 1.0) == stability_score(whole, 1.0)


def test_the_rectangle_is_small_where_the_sizes_have_common_factors():
    logits = np.full((16, 16), -9.0, dtype=np.float32)
    logits[4:6, 8:10] = 5.0
    assert Frame((480, 640), 64).to_original_above(logits, 0.0).values.shape == (180, 180)
    assert Frame((479, 640), 64).to_original_above(logits, 0.0).values.shape == (479, 180)


@pytest.mark.parametrize("hw", SIZES)
def test_prompt_stability_in_a_rectangle_is_the_whole_images(hw):
    frame = Frame(hw, 64)
    for kind in ("bump", "noise", "nothing"):
        group = np.stack([some_logits(7, kind), some_logits(7, kind) - 0.5, some_logits(8, kind)])
        masks = list(frame.masks_on_input(group))
        whole = [frame.to_input(one) > 0 for one in group]
        assert [np.count_nonzero(mask) for mask in masks] == [np.count_nonzero(mask) for mask in whole]
        assert prompt_stability(masks) == prompt_stability(whole)


patches = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), *[st.integers(0, 3)] * 4)
)


@settings(max_examples=200, deadline=None)
@given(patches, st.sampled_from([1, 20, rle.STRIP_PIXELS]), st.sampled_from([0, rle.WHOLE_PIXELS]))
def test_run_lengths_of_a_patch_are_those_of_the_image(given_patch, strip, largest_whole):
    """By strips of a column, of some, of all, and as a whole; of truths and of numbers."""
    mask, top, bottom, left, right = given_patch
    whole = np.pad(mask, ((top, bottom), (left, right)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rle, "STRIP_PIXELS", strip)
        patched.setattr(rle, "WHOLE_PIXELS", largest_whole)
        for values in (mask, np.where(mask, 0.5, 0.0).astype(np.float32), np.asfortranarray(mask)):
            assert encode_patch(values, top, left, whole.shape) == encode_mask(whole)


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_stability_score_does_not_depend_on_the_parts(monkeypatch, at_once, order):
    logits = np.array(np.random.default_rng(0).normal(size=(9, 13)), dtype=np.float32, order=order)
    monkeypatch.setattr(stability, "VALUES_AT_ONCE", at_once)
    assert stability_score(logits, 0.5) == np.count_nonzero(logits > 0.5) / np.count_nonzero(logits > -0.5)
    assert stability_score(logits - 9, 0.5) == stability_score(logits[:0], 0.5) == 0.0
