"""The plugin's defining property (off, or alpha = (0, 1): SAM bit for bit), its size, and what training may touch."""

import pytest
import torch
from torch import Tensor, nn

from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.bases.nano import NanoSam, build_nano
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts, trace_prompts
from stable_sam.modeling.deformable_sampling import DeformableSampling, bilinear_sample
from stable_sam.modeling.dynamic_routing import DynamicRouting
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.plugin import PLUGIN_LAYER, PluginHost, StableSamPlugin, attach_plugin
from stable_sam.modeling.plugin_spec import PluginSpec
from tests.model_parts import count_parameters, detach_plugin

BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [0.0, 0.0, 64.0, 64.0], [30.0, 8.0, 44.0, 20.0]])
POINTS = torch.tensor([[[5.0, 7.0], [50.0, 60.0]], [[1.0, 1.0], [9.0, 2.0]], [[32.0, 32.0], [33.0, 20.0]]])
LABELS = torch.tensor([[1, 0], [1, 1], [0, 1]])
PROMPTS = {
    "boxes": {"boxes": BOXES},
    "points": {"points": (POINTS, LABELS)},
    "both": {"boxes": BOXES, "points": (POINTS, LABELS)},
}


SPECS = {
    "default": PluginSpec(),
    "paper": PluginSpec(calibrates="attention", routing_reads="token"),
    "stream": PluginSpec(calibrates="stream", routing_reads="features"),
    "both layers": PluginSpec(layers="both", calibrates="stream"),
    "amplitude": PluginSpec(amplitude=True, offsets="free"),
    "no offsets": PluginSpec(offsets="none", routing="sigmoid", routing_token=0),
    "no routing": PluginSpec(routing="none"),
    "moved positions": PluginSpec(move_positions=True),
    "five samples": PluginSpec(samples=5),
}


def random_plugin(channels: int, spec: PluginSpec | None = None) -> StableSamPlugin:
    torch.manual_seed(5)
    plugin = StableSamPlugin(channels, spec)
    for parameter in plugin.parameters():
        nn.init.normal_(parameter, std=0.5)
    return plugin


def embedding_of(sam: BaseSam) -> Tensor:
    size = sam.input_side
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)) * 255
    with torch.no_grad():
        return sam.image_encoder(sam.preprocess(image))


@torch.no_grad()
def by_segment_anything(sam: BaseSam, embedding: Tensor, boxes=None, points=None) -> tuple[Tensor, Tensor]:
    # What a user of segment_anything would give its prompt encoder: nano wants the box as a mask prompt, too.
    masks = sam.drawn_prompts(boxes, points) if isinstance(sam, NanoSam) else None
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    return sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)


@torch.no_grad()
def by_this_project(sam: BaseSam, embedding: Tensor, boxes=None, points=None) -> DecoderOutput:
    return decode_prompts(sam, ImageFeatures(embedding), boxes=boxes, points=points)


@pytest.fixture
def sam() -> BaseSam:
    return build_tiny()


@pytest.fixture(scope="module")
def nano() -> BaseSam:
    torch.manual_seed(0)
    return build_nano(64)


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_decoder_without_plugin_is_segment_anythings_bit_for_bit(sam, nano, kind):
    for model in (sam, nano):
        embedding = embedding_of(model)
        logits, iou = by_segment_anything(model, embedding, **PROMPTS[kind])
        output = by_this_project(model, embedding, **PROMPTS[kind])
        assert torch.equal(output.logits, logits)
        assert torch.equal(output.iou, iou)
        assert output.trace is None


@pytest.mark.parametrize("kind", list(PROMPTS))
@pytest.mark.parametrize("how", ["off", "alpha (0, 1)"])
@pytest.mark.parametrize("spec", list(SPECS))
def test_a_plugin_that_does_nothing_gives_sam_bit_for_bit(sam, nano, kind, how, spec):
    for model, fresh in ((sam, build_tiny()), (nano, None)):
        embedding = embedding_of(model)
        expected = by_segment_anything(fresh or model, embedding, **PROMPTS[kind])
        host = attach_plugin(model, random_plugin(model.prompt_encoder.embed_dim, SPECS[spec]))
        if how == "off":
            host.enabled = False
        else:
            host.plugin.forced_alpha = (0.0, 1.0)
        ours = by_this_project(model, embedding, **PROMPTS[kind])
        theirs = by_segment_anything(model, embedding, **PROMPTS[kind])
        detach_plugin(model)
        for logits, iou in ((ours.logits, ours.iou), theirs):
            assert torch.equal(logits, expected[0])
            assert torch.equal(iou, expected[1])
        assert (ours.trace is None) == (how == "off")


@pytest.mark.parametrize("spec", list(SPECS))
def test_an_active_plugin_changes_masks_and_leaves_a_trace(sam, spec):
    embedding = embedding_of(sam)
    plain = by_this_project(sam, embedding, boxes=BOXES)
    attach_plugin(sam, random_plugin(32, SPECS[spec]))
    output = by_this_project(sam, embedding, boxes=BOXES)
    assert not torch.allclose(output.logits, plain.logits)
    assert output.trace is not None
    assert output.trace.alpha.shape == (3, 2)
    if SPECS[spec].routing != "sigmoid":
        torch.testing.assert_close(output.trace.alpha.sum(dim=1), torch.ones(3))
    assert output.trace.offsets.shape == (3, 2, 4, 4)


def test_the_plugins_of_two_prompts_do_not_mix(sam):
    embedding = embedding_of(sam)
    attach_plugin(sam, random_plugin(32))
    together = by_this_project(sam, embedding, boxes=BOXES)
    for row in range(3):
        with torch.no_grad():
            alone = decode_prompts(sam, ImageFeatures(embedding), boxes=BOXES[row : row + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.trace.alpha[0], together.trace.alpha[row], rtol=1e-4, atol=1e-5)


def test_plugin_has_the_published_size():
    plugin = StableSamPlugin(channels=256)
    assert round(count_parameters(plugin) / 1e6, 2) == 0.08
    assert count_parameters(plugin.sampling) == 65_792 + 6_656 + 512 + 514


def test_a_training_step_moves_the_plugin_and_nothing_else(sam):
    embedding = embedding_of(sam)
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    plugin = random_plugin(32)
    attach_plugin(sam, plugin)
    assert {id(p) for p in sam.parameters() if p.requires_grad} == {id(p) for p in plugin.parameters()}
    moved_from = [p.detach().clone() for p in plugin.parameters()]

    optimizer = torch.optim.SGD([p for p in sam.parameters() if p.requires_grad], lr=0.1)
    output = decode_prompts(sam, ImageFeatures(embedding), boxes=BOXES)
    (output.logits.square().mean() + output.iou.square().mean()).backward()
    optimizer.step()

    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in plugin.parameters())
    assert all(not torch.equal(p, old) for p, old in zip(plugin.parameters(), moved_from, strict=True))
    detach_plugin(sam)
    after = sam.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_attach_is_in_place_and_detach_undoes_it(sam):
    attention = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    keys = list(sam.state_dict())
    host = attach_plugin(sam, StableSamPlugin(32))
    assert sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image is host
    assert host.attention is attention
    assert sum(isinstance(module, PluginHost) for module in sam.modules()) == 1
    with pytest.raises(ValueError, match="already hosts"):
        attach_plugin(sam, StableSamPlugin(32))
    detach_plugin(sam)
    detach_plugin(sam)
    assert sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image is attention
    assert list(sam.state_dict()) == keys


def test_the_calibrated_features_go_on_in_the_image_stream_only_when_asked(sam):
    """The change is added to what layer 2's image-to-token attention reads and gives, and nowhere else."""
    inputs = {}
    attention = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_image_to_token
    attention.register_forward_pre_hook(lambda _m, _a, kw: inputs.update(q=kw["q"]), with_kwargs=True)
    embedding = embedding_of(sam)
    by_this_project(sam, embedding, boxes=BOXES)
    plain = inputs["q"]
    for calibrates in ("attention", "stream"):
        host = attach_plugin(sam, random_plugin(32, PluginSpec(calibrates=calibrates)))
        by_this_project(sam, embedding, boxes=BOXES)
        expected = plain + host.change if calibrates == "stream" else plain
        torch.testing.assert_close(inputs["q"], expected)
        detach_plugin(sam)


def test_both_layers_share_one_plugin(sam):
    embedding = embedding_of(sam)
    host = attach_plugin(sam, random_plugin(32, PluginSpec(layers="both")))
    by_this_project(sam, embedding, boxes=BOXES)
    first = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    assert first.plugin is host.plugin
    assert not torch.equal(first.trace.alpha, host.trace.alpha)
    host.enabled = False
    by_this_project(sam, embedding, boxes=BOXES)
    assert first.trace is None


@pytest.mark.parametrize("spec", ["default", "paper", "moved positions"])
def test_good_prompts_take_sams_path_and_the_others_the_deformed_features(sam, spec):
    embedding = embedding_of(sam)
    plain = by_this_project(sam, embedding, boxes=BOXES)
    host = attach_plugin(sam, random_plugin(32, SPECS[spec]))
    alpha = by_this_project(sam, embedding, boxes=BOXES).trace.alpha[:, 0]
    host.plugin.forced_alpha = (1.0, 0.0)
    before = by_this_project(sam, embedding, boxes=BOXES)
    host.plugin.forced_alpha = None
    host.plugin.regular_below = float(alpha.median())
    good = alpha < host.plugin.regular_below
    assert 0 < good.sum() < 3
    after = by_this_project(sam, embedding, boxes=BOXES)
    assert torch.equal(after.logits[good], plain.logits[good])
    assert torch.equal(after.logits[~good], before.logits[~good])
    assert not torch.equal(before.logits[good], plain.logits[good])
    assert torch.equal(after.trace.alpha[:, 0], alpha)


def test_a_new_plugin_starts_as_sam(sam):
    embedding = embedding_of(sam)
    plain = by_this_project(sam, embedding, boxes=BOXES)
    attach_plugin(sam, StableSamPlugin(32))
    output = by_this_project(sam, embedding, boxes=BOXES)
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.trace.alpha[:, 0], torch.full((3,), 0.5))
    assert torch.count_nonzero(output.trace.offsets) == 0


def test_samples_are_read_where_the_offset_points():
    features = torch.arange(20.0).view(1, 1, 4, 5)
    offsets = torch.zeros(1, 2, 4, 5)
    torch.testing.assert_close(bilinear_sample(features, offsets), features)
    offsets[:, 0] = 1.0
    torch.testing.assert_close(bilinear_sample(features, offsets)[..., :4], features[..., 1:])
    torch.testing.assert_close(bilinear_sample(features, offsets)[..., 4], features[..., 4])
    offsets[:, 0], offsets[:, 1] = 0.0, 0.5
    torch.testing.assert_close(bilinear_sample(features, offsets)[:, :, :3], features[:, :, :3] + 2.5)


def test_offsets_reach_at_most_max_offset():
    sampling = DeformableSampling(8, max_offset=1.5)
    nn.init.normal_(sampling.offset.weight, std=50)
    _, places, _ = sampling(torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert 1.0 < places.offsets.abs().max() <= 1.5


@pytest.mark.parametrize("bound", ["tanh", "free"])
def test_several_samples_start_at_the_cell_and_on_a_ring_around_it(bound):
    sampling = DeformableSampling(8, bound=bound, samples=5)
    features = torch.randn(1, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    sampled, places, _ = sampling(features)
    torch.testing.assert_close(places.offsets[0, 4, 4, 0], torch.zeros(2))
    torch.testing.assert_close(places.offsets[0, 4, 4, 1:].norm(dim=-1), torch.full((4,), 2.0))
    torch.testing.assert_close(places.weights[0, 4, 4], torch.tensor([0.9, 0.025, 0.025, 0.025, 0.025]))
    around = features[0, :, 4, 6] + features[0, :, 4, 2] + features[0, :, 2, 4] + features[0, :, 6, 4]
    torch.testing.assert_close(sampled[0, :, 4, 4], 0.9 * features[0, :, 4, 4] + 0.025 * around)


def test_routing_starts_at_the_given_weight():
    alpha, _ = DynamicRouting(8, initial_dsp_weight=0.3)(torch.randn(5, 8), torch.zeros(5, 8, 2, 2))
    torch.testing.assert_close(alpha, torch.tensor([0.3, 0.7]).expand(5, 2))


@pytest.mark.parametrize("calibrates", ["attention", "stream"])
def test_the_trace_alone_is_that_of_a_whole_pass_and_teaches_the_plugin_alone(sam, calibrates):
    features = ImageFeatures(embedding_of(sam))
    plugin = random_plugin(32, PluginSpec(calibrates=calibrates, estimates_quality=True))
    attach_plugin(sam, plugin)
    trace = trace_prompts(sam, features, BOXES)
    whole = decode_prompts(sam, features, boxes=BOXES).trace
    torch.testing.assert_close(trace.alpha, whole.alpha)
    torch.testing.assert_close(trace.quality, whole.quality)
    trace.quality.sum().backward()
    assert plugin.routing.quality.weight.grad.abs().sum() > 0
    assert all(p.grad is None for name, p in sam.named_parameters() if ".plugin." not in name)


def test_the_trace_alone_needs_a_plugin_in_layer_2_alone(sam):
    features = ImageFeatures(embedding_of(sam))
    with pytest.raises(ValueError, match="layer 2 alone"):
        trace_prompts(sam, features, BOXES)
    attach_plugin(sam, StableSamPlugin(32, PluginSpec(layers="both")))
    with pytest.raises(ValueError, match="layer 2 alone"):
        trace_prompts(sam, features, BOXES)
