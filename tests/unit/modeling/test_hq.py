"""HQ-SAM as published: its token in the decoder, its mask, the sum; and SAM bit for bit when it is off."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from stable_sam.config import RefinerConfig
from stable_sam.errors import WeightsError
from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.bases.nano import NanoSam, build_nano
from stable_sam.modeling.bases.parts import sam_parts
from stable_sam.modeling.bases.sam import VitSam
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.modeling.decoder import DecoderOutput, decode_prompts
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.hq import HqBranch, attach_hq, build_hq, encode_with_early
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.modeling.weights import save_weights
from stable_sam.refining.predict import PromptArrays, embed_image, predict

BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [0.0, 0.0, 64.0, 64.0], [30.0, 8.0, 44.0, 20.0]])
POINTS = (torch.tensor([[[5.0, 7.0]], [[50.0, 60.0]], [[32.0, 20.0]]]), torch.tensor([[1], [0], [1]]))
PROMPTS = {"boxes": {"boxes": BOXES}, "points": {"points": POINTS}, "both": {"boxes": BOXES, "points": POINTS}}
TINY_SHA256 = hashlib.sha256(b"tiny").hexdigest()


def random_branch(sam: BaseSam) -> HqBranch:
    torch.manual_seed(7)
    branch = build_hq(sam)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    return branch


@pytest.fixture(scope="module", params=[build_tiny, lambda: build_nano(64)], ids=["tiny", "nano"])
def built(request) -> BaseSam:
    torch.manual_seed(0)
    model = request.param()
    attach_hq(model, random_branch(model))
    return model


@pytest.fixture
def sam(built) -> BaseSam:
    return copy.deepcopy(built)


def features_of(sam: BaseSam) -> ImageFeatures:
    size = sam.input_side
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)) * 255
    with torch.no_grad():
        return encode_with_early(sam, sam.preprocess(image))


@torch.no_grad()
def by_this_project(sam: BaseSam, features: ImageFeatures, prompts: dict) -> DecoderOutput:
    return decode_prompts(sam, features, **prompts)


def without_early(features: ImageFeatures) -> ImageFeatures:
    return replace(features, early=None)


@torch.no_grad()
def as_published(sam: BaseSam, features: ImageFeatures, boxes=None, points=None) -> tuple[Tensor, Tensor, Tensor]:
    """segment_anything's own decoder with a fifth mask token, the HQ one, as HQ-SAM's `MaskDecoderHQ` has it.

    It knows no fine features; those of an untrained nano are 0.
    Returns SAM's masks and IoU and the HQ mask, which is read from the fused features.
    """
    decoder, branch = copy.deepcopy(sam.mask_decoder), sam.hq
    decoder.num_mask_tokens = 5
    decoder.mask_tokens = nn.Embedding.from_pretrained(torch.cat((decoder.mask_tokens.weight, branch.hf_token.weight)))
    decoder.output_hypernetworks_mlps.append(copy.deepcopy(branch.hf_mlp))
    seen = {}
    decoder.output_upscaling.register_forward_hook(lambda _m, _i, output: seen.update(upscaled=output))
    decoder.output_hypernetworks_mlps[4].register_forward_hook(lambda _m, _i, output: seen.update(kernel=output))
    masks = sam.drawn_prompts(boxes, points) if isinstance(sam, NanoSam) else None
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    logits, iou = decoder.predict_masks(features.embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)

    hq_features = branch.embedding_encoder(features.embedding) + branch.compress_vit_feat(features.early)
    fused = branch.embedding_maskfeature(seen["upscaled"]) + hq_features.repeat(len(sparse), 1, 1, 1)
    return logits[:, :4], iou, torch.einsum("pc,pchw->phw", seen["kernel"], fused)[:, None]


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_masks_are_those_of_the_published_decoder(sam, kind):
    features = features_of(sam)
    logits, iou, hq_logits = as_published(sam, features, **PROMPTS[kind])
    output = by_this_project(sam, features, PROMPTS[kind])
    assert torch.equal(output.logits, logits)
    assert torch.equal(output.iou, iou)
    torch.testing.assert_close(output.hq_logits, hq_logits, rtol=1e-4, atol=1e-5)
    off = by_this_project(sam, without_early(features), PROMPTS[kind])
    assert not torch.equal(off.logits, logits), "the HQ token takes part in the decoder's attention"


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_off_is_sam_bit_for_bit(sam, kind):
    features = without_early(features_of(sam))
    with_branch = by_this_project(sam, features, PROMPTS[kind])
    del sam.hq
    without = by_this_project(sam, features, PROMPTS[kind])
    assert torch.equal(with_branch.logits, without.logits)
    assert torch.equal(with_branch.iou, without.iou)
    assert with_branch.hq_logits is None


def test_early_features_of_one_image_serve_all_its_prompts(sam):
    features = features_of(sam)
    shared = by_this_project(sam, features, PROMPTS["boxes"])
    repeated = by_this_project(sam, features.repeat(3), PROMPTS["boxes"])
    torch.testing.assert_close(shared.hq_logits, repeated.hq_logits, rtol=1e-3, atol=1e-3)


def test_hq_masks_have_the_decoders_grid_whatever_the_stride_of_the_early_features(sam):
    output = by_this_project(sam, features_of(sam), PROMPTS["boxes"])
    assert output.hq_logits is not None
    assert output.hq_logits.shape == (3, 1, *output.logits.shape[2:])


def test_keeping_the_early_features_does_not_change_the_embedding(sam):
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encode_with_early(sam, image).embedding, sam.image_encoder(image))
    hooks = [module for module in sam.image_encoder.modules() if module._forward_hooks]
    assert hooks == []


def test_early_features_of_a_vit_are_those_of_its_first_global_block():
    encoder = ImageEncoderViT(
        img_size=64, embed_dim=12, depth=4, num_heads=2, out_chans=32, window_size=2, global_attn_indexes=(1, 3)
    )
    sam = VitSam(encoder.eval(), *sam_parts(64, channels=32, mlp_dim=64, heads=4)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        early = encode_with_early(sam, image).early
        x = encoder.patch_embed(image) + encoder.pos_embed
        expected = encoder.blocks[1](encoder.blocks[0](x))
    assert torch.equal(early, expected.permute(0, 3, 1, 2))
    assert build_hq(sam).compress_vit_feat[0].weight.shape == (12, 32, 2, 2)


def test_only_the_branch_learns(sam):
    learning = {name for name, value in sam.named_parameters() if value.requires_grad}
    assert learning == {f"hq.{name}" for name, _ in sam.hq.named_parameters()}


def test_never_together_with_an_enabled_plugin(sam):
    host = attach_plugin(sam, StableSamPlugin(sam.prompt_encoder.embed_dim))
    features = features_of(sam)
    with pytest.raises(ValueError, match="got both"):
        by_this_project(sam, features, PROMPTS["boxes"])
    host.enabled = False
    assert by_this_project(sam, features, PROMPTS["boxes"]).hq_logits is not None


# From a file to masks


@pytest.fixture
def branch_file(tmp_path) -> Path:
    return save_weights(random_branch(build_tiny()), tmp_path / "hq.safetensors", {"base_sha256": TINY_SHA256})


def load_tiny(**settings) -> LoadedModel:
    return load_model(RefinerConfig(model="tiny", device="cpu", **settings))


@pytest.mark.parametrize("ambiguous", [False, True])
def test_the_final_mask_is_the_chosen_sam_mask_plus_the_hq_mask(branch_file, ambiguous):
    model = load_tiny(hq_uri=str(branch_file))
    assert model.hq is not None
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    view = embed_image(model, pixels)
    if ambiguous:
        prompts = PromptArrays(points_xy=np.array([[[9.0, 9.0]]]), point_labels=np.array([[1]]))
        tensors = {"points": (torch.tensor([[[9.0, 9.0]]]), torch.tensor([[1]]))}
    else:
        prompts = PromptArrays(boxes_xyxy=np.array([[3.0, 4.0, 50.0, 40.0]]))
        tensors = {"boxes": torch.tensor([[3.0, 4.0, 50.0, 40.0]])}
    logits, iou, hq_logits = as_published(model.sam, view.features, **tensors)
    chosen = 1 + int(iou[0, 1:].argmax()) if ambiguous else 0
    found = predict(model, view, prompts, 8)
    np.testing.assert_allclose(found.logits[0], (logits[0, chosen] + hq_logits[0, 0]).numpy(), rtol=1e-4, atol=1e-5)
    assert found.iou[0] == iou[0, chosen]
    model.hq.enabled = False
    plain = load_tiny(plugin=False)
    assert np.array_equal(predict(model, view, prompts, 8).logits, predict(plain, view, prompts, 8).logits)


def test_hq_takes_the_place_of_the_plugin_in_masks_and_identity(branch_file):
    model = load_tiny(hq_uri=str(branch_file))
    assert model.host is not None
    assert not model.host.enabled
    assert not any(p.requires_grad for p in model.sam.parameters())
    assert model.identity.model_id == "tiny+hq"
    assert model.identity.weights_sha256 == hashlib.sha256(b"tiny" + branch_file.read_bytes()).hexdigest()
    assert load_tiny(hq_uri=str(branch_file), plugin=False).identity == model.identity


@pytest.mark.parametrize(
    ("metadata", "drop", "message"),
    [
        ({"base_sha256": "0" * 64}, None, r"this HQ-SAM branch was trained on the base 0000.*got the base tiny"),
        ({}, None, r"this HQ-SAM branch was trained on the base unknown"),
        ({"base_sha256": TINY_SHA256}, "hf_token", r"expected .*HQ-SAM for tiny, got 1 missing \(hf_token\.weight\)"),
    ],
)
def test_a_branch_that_does_not_fit_is_refused_in_one_line(tmp_path, metadata, drop, message):
    branch = random_branch(build_tiny())
    if drop:
        delattr(branch, drop)
    file = save_weights(branch, tmp_path / "hq.safetensors", metadata)
    with pytest.raises(WeightsError, match=r"hq\.safetensors: " + message) as raised:
        load_tiny(hq_uri=str(file))
    assert "\n" not in str(raised.value)
