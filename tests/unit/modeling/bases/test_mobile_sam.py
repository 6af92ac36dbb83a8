"""MobileSAM: the published layout, its encoder and decoder, and the plugin on it.

All but one test use a small one, with one block in each stage and an input of 128 pixels, whose windows need padding
as those of the real one do. Its weights are random and its file is laid out as the published one.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.modeling.bases import build_base, mobile_sam
from stable_sam.modeling.bases.mobile_sam import MobileSam, build_mobile_sam
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.fast.decoder import decode_chosen_masks, image_side
from stable_sam.modeling.hq import HqBranch, build_hq, encode_with_early
from stable_sam.modeling.load import load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.modeling.plugin_spec import PluginSpec
from stable_sam.records import Prompt
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.training import train_plugin as training
from stable_sam.training.train_plugin import train_plugin
from stable_sam.training.training_config import PluginTraining
from tests.unit.training.ellipses import settings_of, write_set

SIDE = 128
BOXES = torch.tensor([[8.0, 12.0, 80.0, 100.0], [0.0, 0.0, 128.0, 128.0], [60.0, 16.0, 88.0, 40.0]])
POINTS = (torch.tensor([[[10.0, 14.0]], [[100.0, 120.0]], [[64.0, 40.0]]]), torch.tensor([[1], [1], [1]]))
PROMPTS = {"boxes": {"boxes": BOXES}, "points": {"points": POINTS}, "both": {"boxes": BOXES, "points": POINTS}}
PUBLISHED_LAYOUT = (439, "d794ba6abcfafd91e08aa7d88d0d262661527cf678468f1d83fc4ade45680356")
"""Number of tensors of the published model, and the SHA-256 of their sorted lines "name shape"."""


def small_sam(seed: int) -> MobileSam:
    """A small MobileSAM with random weights, running statistics and attention biases."""
    torch.manual_seed(seed)
    sam = build_mobile_sam(SIDE, depths=(1, 1, 1, 1))
    tensors = sam.state_dict()
    for name, tensor in tensors.items():
        if name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bn.bias", "attention_biases")):
            tensor.normal_(std=0.3)
    sam.load_state_dict(tensors)
    return sam


@pytest.fixture(autouse=True)
def small_base(monkeypatch) -> None:
    monkeypatch.setattr(mobile_sam, "build", lambda name: build_mobile_sam(SIDE, depths=(1, 1, 1, 1)))


@pytest.fixture(scope="module")
def base_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("base") / "mobile_sam.pt"
    torch.save(small_sam(0).state_dict(), file)
    return file


@pytest.fixture
def sam() -> MobileSam:
    return small_sam(0)


def config_of(base_file: Path, **settings) -> RefinerConfig:
    return RefinerConfig(model="vit_t", checkpoint_uri=str(base_file), device="cpu", **settings)


def images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def random_plugin() -> StableSamPlugin:
    torch.manual_seed(5)
    plugin = StableSamPlugin(256)
    for parameter in plugin.parameters():
        nn.init.normal_(parameter, std=0.2)
    return plugin


# The file


def test_names_and_shapes_are_those_of_the_published_model(monkeypatch):
    monkeypatch.undo()
    sam = build_base("vit_t")
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in sam.state_dict().items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == PUBLISHED_LAYOUT
    assert sum(p.numel() for p in sam.parameters()) == 10_130_092
    assert sam.input_side == BASES["vit_t"].input_side


def test_every_tensor_of_the_file_is_in_the_loaded_model(base_file):
    loaded = load_model(config_of(base_file))
    stored, state = torch.load(base_file, weights_only=True), loaded.sam.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert loaded.host is None
    assert not any(p.requires_grad for p in loaded.sam.parameters())
    assert torch.equal(loaded.sam.image_encoder(images()), small_sam(0).image_encoder(images()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("image_encoder.head.weight"), r"1 missing \(image_encoder\.head\.weight\)"),
        (
            lambda state: state.pop("image_encoder.layers.1.downsample.conv2.c.weight"),
            r"1 missing \(image_encoder\.layers\.1\.downsample\.conv2\.c\.weight\)",
        ),
        (
            lambda state: state.update({"image_encoder.trunk.stages.0.extra": torch.zeros(1)}),
            r"1 unknown \(image_encoder\.trunk\.stages\.0\.extra\)",
        ),
        (
            lambda state: state.update({"image_encoder.norm_head.bias": torch.zeros(3)}),
            r"1 mis-shaped \(image_encoder\.norm_head\.bias \(3,\) instead of \(320,\)\)",
        ),
    ],
)
def test_a_file_of_another_layout_is_refused_in_its_own_names(tmp_path, base_file, change, message):
    state = torch.load(base_file, weights_only=True)
    change(state)
    broken = tmp_path / "broken.pt"
    torch.save(state, broken)
    with pytest.raises(WeightsError, match=r"broken\.pt: expected the weights of vit_t, got " + message) as raised:
        load_model(config_of(broken))
    assert "\n" not in str(raised.value)


def test_the_package_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("stable_sam.bases.base.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model: vit_t needs timm, .* pip install 'stable-sam\[timm\]'"):
        build_base("vit_t")


def test_the_input_keeps_its_size(sam):
    sam.set_input_side(SIDE)
    with pytest.raises(ConfigError, match="takes an input of 128 pixels only, got 256"):
        sam.set_input_side(256)


# The encoder


def test_new_weights_count_although_the_encoder_has_run_before(sam):
    """timm keeps a table of attention biases from pass to pass."""
    with torch.no_grad():
        before = sam.image_encoder(images())
        sam.load_state_dict(small_sam(1).state_dict())
        after = sam.image_encoder(images())
        assert torch.equal(after, small_sam(1).image_encoder(images()))
    assert not torch.equal(before, after)


def test_training_mode_leaves_the_encoder_and_its_running_statistics_alone(sam):
    state = {name: tensor.clone() for name, tensor in sam.image_encoder.state_dict().items()}
    with torch.no_grad():
        expected = sam.image_encoder(images(2))
        sam.train()
        assert torch.equal(sam.image_encoder(images(2)), expected)
    assert sam.mask_decoder.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in sam.image_encoder.state_dict().items())


def test_fast_features_are_the_features_but_for_rounding(sam):
    """Within 1e-4 in float32, where they are about 1; in bfloat16 as near to float32 as the reference is."""
    with torch.no_grad():
        expected = sam.features(images(2)).embedding
        torch.testing.assert_close(sam.fast_features(images(2)).embedding, expected, rtol=0, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            reference, fast = sam.features(images()).embedding, sam.fast_features(images()).embedding
    expected = expected[:1]
    assert (fast - expected).abs().mean() < 1.2 * (reference - expected).abs().mean()


def test_light_hq_sam_fuses_what_enters_the_second_transformer_stage(sam):
    trunk = sam.image_encoder.trunk
    with torch.no_grad():
        features = encode_with_early(sam, images())
        second = trunk.stages[1](trunk.stages[0](trunk.patch_embed(images())))
        assert torch.equal(features.early, trunk.stages[2].downsample(second))
    assert features.early.shape == (1, 160, SIDE // 16, SIDE // 16)
    assert torch.equal(features.embedding, sam.features(images()).embedding)
    assert build_hq(sam).compress_vit_feat[0].weight.shape == (160, 256, 2, 2)


def random_hq(sam: MobileSam) -> HqBranch:
    torch.manual_seed(7)
    branch = build_hq(sam)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.1)
    return branch


def test_a_whole_light_hq_sam_loads_on_the_base_that_it_holds(tmp_path, base_file, sam):
    branch = {f"mask_decoder.{name}": tensor for name, tensor in random_hq(sam).state_dict().items()}
    own, other = tmp_path / "sam_hq_vit_tiny.pth", tmp_path / "other.pth"
    counters = {name: value + 7 for name, value in sam.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counters  # another training of the branch counts on, which changes no mask
    torch.save(sam.state_dict() | counters | branch, own)
    torch.save(small_sam(1).state_dict() | branch, other)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    prompts = PromptArrays(boxes_xyxy=np.array([[10.0, 12.0, 90.0, 70.0]]))
    with_hq, plain = load_model(config_of(base_file, hq_uri=str(own))), load_model(config_of(base_file))
    masks = [predict(model, embed_image(model, pixels), prompts, 8).logits for model in (with_hq, plain)]
    assert masks[0].shape == masks[1].shape
    assert not np.allclose(*masks)
    with pytest.raises(WeightsError, match=r"other\.pth: expected HQ-SAM on the base .*mobile_sam\.pt, got another"):
        load_model(config_of(base_file, hq_uri=str(other)))


# The decoder and the plugin


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_with_the_plugin_off_masks_are_those_of_segment_anything_bit_for_bit(sam, kind):
    with torch.no_grad():
        features = sam.features(images())
        sparse, dense = sam.prompt_encoder(masks=None, **{"boxes": None, "points": None, **PROMPTS[kind]})
        position = sam.prompt_encoder.get_dense_pe()
        logits, iou = sam.mask_decoder.predict_masks(features.embedding, position, sparse, dense)
        host = attach_plugin(sam, random_plugin())
        on = decode_prompts(sam, features, **PROMPTS[kind])
        host.enabled = False
        off = decode_prompts(sam, features, **PROMPTS[kind])
    assert torch.equal(off.logits, logits)
    assert torch.equal(off.iou, iou)
    assert not torch.allclose(on.logits, logits)


@pytest.mark.parametrize("kind", list(PROMPTS))
@pytest.mark.parametrize("hosted", [False, True])
def test_the_fast_decoders_masks_are_the_references(sam, kind, hosted):
    """Within 1e-4 of the logits' scale."""
    if hosted:
        attach_plugin(sam, random_plugin())
    ambiguous = kind == "points"
    with torch.no_grad():
        features = sam.features(images())
        expected = decode_prompts(sam, features, **PROMPTS[kind])
        masks = decode_chosen_masks(sam, image_side(sam, features), ambiguous=ambiguous, **PROMPTS[kind])
    row = torch.arange(3)
    token = expected.iou[:, 1:].argmax(dim=1) + 1 if ambiguous else torch.zeros(3, dtype=torch.long)
    assert torch.equal(masks.token, token)
    logits = expected.logits[row, token]
    torch.testing.assert_close(masks.logits, logits, rtol=0, atol=1e-4 * logits.abs().max().item())
    torch.testing.assert_close(masks.iou, expected.iou[row, token], rtol=1e-4, atol=1e-5)


def test_an_image_and_its_prompts_become_rows(base_file):
    refiner = Refiner(config_of(base_file, stability_offset=0.002))
    pixels = np.random.default_rng(4).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    prompts = [
        Prompt(prompt_id="box", image_id="i", image_uri="u", box_xyxy=(10.0, 12.0, 60.0, 70.0)),
        Prompt(prompt_id="point", image_id="i", image_uri="u", points_xy=((40.0, 30.0),), point_labels=(1,)),
    ]
    rows = refiner.refine_image(pixels, prompts)
    assert [(row.prompt_id, row.status, row.mask_size) for row in rows] == [
        ("box", "ok", (90, 120)),
        ("point", "ok", (90, 120)),
    ]
    assert refiner.identity.model_id == "vit_t"
    assert refiner.identity.weights_sha256 == hashlib.sha256(base_file.read_bytes()).hexdigest()


def test_the_plugin_learns_on_it_from_cached_embeddings_and_fits_no_other_base(base_file, tmp_path, monkeypatch):
    data = tmp_path / "data"
    write_set(data / "one", 0, "images", "{}")
    settings = settings_of(
        PluginTraining, steps=12, batch_images=3, learning_rate=0.02, windows=0.0, noise_scales=(0.0,),
        point_counts=(1,), plugin=PluginSpec(estimates_quality=False).model_dump(),
    )  # fmt: skip
    losses: list[float] = []
    loss_of = training.plugin_loss

    def watched(*arguments):
        loss, figures = loss_of(*arguments)
        losses.append(loss.item())
        return loss, figures

    monkeypatch.setattr(training, "plugin_loss", watched)
    file = train_plugin(load_model(config_of(base_file)), data, tmp_path / "out", settings)
    torch.set_flush_denormal(False)  # training switches it on
    assert len(list((tmp_path / "out" / "embeddings").rglob("*.safetensors"))) == 3
    assert np.mean(losses[-4:]) < np.mean(losses[:4])

    model = load_model(config_of(base_file, plugin_uri=str(file)))
    view = embed_image(model, np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    prompts = PromptArrays(boxes_xyxy=np.array([[10.0, 12.0, 90.0, 70.0]]))
    on = predict(model, view, prompts, 8)
    model.host.enabled = False
    off = predict(model, view, prompts, 8)
    assert not np.array_equal(on.logits > 0, off.logits > 0)

    other = tmp_path / "other.pt"
    torch.save(small_sam(1).state_dict(), other)
    with pytest.raises(WeightsError, match=r"plugin\.safetensors: this plugin was trained on the base .*other\.pt"):
        load_model(config_of(other, plugin_uri=str(file)))
