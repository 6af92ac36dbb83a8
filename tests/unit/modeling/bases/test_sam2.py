"""SAM 2.1 on images: its published files, what it adds to SAM's decoder, and which mask answers a prompt."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch

from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.explain.explanation import explain
from stable_sam.modeling import single_mask
from stable_sam.modeling.bases import family_of, sam2
from stable_sam.modeling.bases.sam2 import Sam2
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.hq import build_hq
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.modeling.single_mask import single_tokens
from stable_sam.modeling.weights import save_weights
from stable_sam.records import Prompt
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask
from tests.model_parts import detach_plugin
from tests.unit.modeling.bases.small_sam2 import build_small_sam2, use_small_sam2, write_published

NAMES = ("sam2.1_t", "sam2.1_s", "sam2.1_b+", "sam2.1_l")
BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 44.0, 20.0]])
POINTS = (torch.tensor([[[5.0, 7.0], [50.0, 60.0]], [[1.0, 1.0], [9.0, 2.0]]]), torch.tensor([[1, 0], [1, 1]]))
PROMPTS = {
    "boxes": {"boxes": BOXES},
    "points": {"points": POINTS},
    "both": {"boxes": BOXES, "points": POINTS},
}


@pytest.fixture(scope="module")
def sam() -> Sam2:
    return build_small_sam2()


@pytest.fixture
def small(monkeypatch) -> None:
    use_small_sam2(monkeypatch)


def loaded(file, **changes) -> LoadedModel:
    return load_model(RefinerConfig(model="sam2.1_t", checkpoint_uri=str(file), device="cpu", **changes))


@pytest.mark.parametrize("name", NAMES)
def test_every_size_has_the_parameters_of_the_published_one(name):
    with torch.device("meta"):
        sam = family_of(name).build(name)
    assert sum(value.numel() for value in sam.parameters()) == BASES[name].parameters
    assert sam.input_side == BASES[name].input_side
    assert BASES[name].fit == "stretch"


def test_a_published_file_is_loaded_without_what_videos_need(sam, small, tmp_path):
    model = loaded(write_published(sam, tmp_path / "sam2.pt"))
    expected = sam.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.sam.state_dict().items())
    assert not model.sam.training
    assert not any(value.requires_grad for value in model.sam.parameters())


def test_other_tensors_are_refused_by_the_names_in_the_file(sam, small, tmp_path):
    file = tmp_path / "sam2.pt"
    write_published(sam, file, without=("sam_mask_decoder.transformer.layers.0.mlp.layers.1.bias",))
    with pytest.raises(
        WeightsError, match=r"1 missing \(sam_mask_decoder\.transformer\.layers\.0\.mlp\.layers\.1\.bias\)"
    ):
        loaded(file)
    write_published(sam, file, memory=torch.ones(1))
    with pytest.raises(WeightsError, match=r"sam2\.pt: expected the weights of sam2\.1_t, got 1 unknown \(memory\)"):
        loaded(file)
    write_published(sam, file, no_mem_embed=torch.ones(1, 1, 3))
    with pytest.raises(WeightsError, match=r"1 mis-shaped \(no_mem_embed \(1, 1, 3\) instead of \(1, 1, 32\)\)"):
        loaded(file)


@pytest.mark.parametrize("without", sam2.NEW_IN_2_1)
def test_a_file_of_sam_2_0_is_refused_by_name(sam, small, tmp_path, without):
    file = write_published(sam, tmp_path / "sam2_hiera_tiny.pt", without=(without,))
    with pytest.raises(WeightsError, match=r"sam2_hiera_tiny\.pt: expected .*sam2\.1_t.*SAM 2\.0") as raised:
        loaded(file)
    assert "\n" not in str(raised.value)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("timm", "stable_sam.modeling.bases.sam2"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model: sam2\.1_s needs timm.*pip install 'stable-sam\[timm\]'"):
        family_of("sam2.1_s")


def test_hq_sam_is_refused(sam):
    with pytest.raises(ConfigError, match="HQ-SAM is not defined"):
        build_hq(sam)


def test_features_have_the_shapes_of_the_decoders_upscaling(sam):
    with torch.no_grad():
        features = sam.features(torch.rand(2, 3, 64, 64))
    assert features.embedding.shape == (2, 32, 4, 4)
    assert [part.shape for part in features.fine] == [(2, 4, 16, 16), (2, 8, 8, 8)]


def test_a_box_has_one_padding_token_and_points_the_one_of_sam(sam):
    tokens = {
        kind: sam.embed_prompts(prompts.get("boxes"), prompts.get("points"))[0] for kind, prompts in PROMPTS.items()
    }
    assert {kind: value.shape[1] for kind, value in tokens.items()} == {"boxes": 3, "points": 3, "both": 5}
    padding = sam.prompt_encoder.not_a_point_embed.weight.expand(2, -1)
    assert all((value == padding[:, None]).all(dim=2).any(dim=1).all() for value in tokens.values())


@pytest.mark.parametrize("kind", list(PROMPTS))
@pytest.mark.parametrize("enabled", [False, True])
def test_the_plugin_moves_masks_and_nothing_when_it_is_off(sam, kind, enabled):
    torch.manual_seed(5)
    plugin = StableSamPlugin(32)
    for parameter in plugin.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        features = sam.features(torch.rand(1, 3, 64, 64))
        expected = decode_prompts(sam, features, **PROMPTS[kind])
        host = attach_plugin(sam, plugin)
        host.enabled = enabled
        output = decode_prompts(sam, features, **PROMPTS[kind])
    detach_plugin(sam)
    assert host.routing_token == 2, "the token of the single mask"
    assert torch.equal(output.logits, expected.logits) != enabled
    assert torch.equal(output.iou, expected.iou) != enabled
    assert ((output.iou > 0) & (output.iou < 1)).all()


def test_an_unstable_single_mask_is_replaced_by_the_best_of_three(sam):
    logits = torch.full((4, 10, 10), -1.0)
    logits[:, :5] = 1.0
    logits[1, 0, 0] = logits[2, 0, :2] = 0.0  # 49 and 48 of 50 pixels are surely inside
    logits[3] = -1.0
    iou = torch.tensor([[0.9, 0.1, 0.7, 0.3]]).expand(4, -1)
    assert single_tokens(sam, logits, iou).tolist() == [0, 0, 2, 0]
    assert single_tokens(sam, -logits, iou).tolist()[3] == 0, "nothing is unsure in a mask of everything"


@pytest.mark.parametrize("offset", [0.0, single_mask.STABILITY_OFFSET])
@pytest.mark.parametrize("kind", ["box", "points", "both", "point"])
def test_predict_chooses_the_mask_alike_on_both_paths(sam, small, tmp_path, monkeypatch, kind, offset):
    """Fast and reference, within 1e-4 of the logits' scale. Without an offset every mask is stable; of random masks few
    are."""
    monkeypatch.setattr(single_mask, "STABILITY_OFFSET", offset)
    model = loaded(write_published(sam, tmp_path / "sam2.pt"))
    rng = np.random.default_rng(0)
    view = embed_image(model, rng.integers(0, 256, (48, 72, 3), dtype=np.uint8))
    boxes = np.sort(rng.uniform(0, 48, (6, 2, 2)), axis=1).reshape(6, 4)
    points = rng.uniform(0, 48, (6, 1 if kind == "point" else 2, 2))
    prompts = PromptArrays(
        boxes_xyxy=boxes if kind in ("box", "both") else None,
        points_xy=None if kind == "box" else points,
        point_labels=None if kind == "box" else np.ones(points.shape[:2], np.int64),
    )
    fast, reference = (predict(model, view, prompts, 4, reference=reference) for reference in (False, True))
    np.testing.assert_array_equal(fast.token, reference.token)
    np.testing.assert_allclose(fast.logits, reference.logits, atol=1e-4 * np.abs(reference.logits).max())
    np.testing.assert_allclose(fast.iou, reference.iou, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(fast.logits, reference.logits), "the fast path was taken"
    if kind != "point":
        assert (fast.token > 0).any() == (offset > 0)


def test_the_refiner_asks_in_tiles_mirrored_and_near_the_prompt_and_explains(sam, small, tmp_path):
    """On an image three times as wide as high, whose cells are 60 x 20 pixels."""
    base = write_published(sam, tmp_path / "sam2.pt")
    torch.manual_seed(5)
    plugin = StableSamPlugin(32)
    for parameter in plugin.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    metadata = {
        "base_sha256": hashlib.sha256(base.read_bytes()).hexdigest(), "plugin": plugin.spec.model_dump_json()
    }  # fmt: skip
    file = save_weights(plugin, tmp_path / "plugin.safetensors", metadata, torch.float32)
    config = RefinerConfig(
        model="sam2.1_t", checkpoint_uri=str(base), plugin_uri=str(file), device="cpu", tile_below_cells=1.5
    )
    refiner = Refiner(config)
    image = np.random.default_rng(0).integers(0, 256, (80, 240, 3), dtype=np.uint8)
    asked = [
        Prompt(prompt_id="large", image_id="x", image_uri="x", box_xyxy=(10.0, 10.0, 150.0, 70.0)),
        Prompt(prompt_id="small", image_id="x", image_uri="x", box_xyxy=(20.0, 20.0, 50.0, 30.0)),
        Prompt(prompt_id="high", image_id="x", image_uri="x", box_xyxy=(20.0, 10.0, 30.0, 40.0)),
    ]
    rows = refiner.refine_image(image, asked)
    assert [(row.status, row.mask_size, row.second_pass) for row in rows] == [("ok", (80, 240), "mirror")] * 3
    assert [row.view is None for row in rows] == [True, False, True], "1.5 cells down are not small"
    assert all(row.prompt_stability is not None and row.dsp_weight > 0 for row in rows)
    explained = explain(refiner, image, asked[0])
    assert explained.frame.fit == "stretch"
    assert explained.sam.attention.shape == (4, 4)
    np.testing.assert_allclose(explained.positions_xy()[0, 0], (30, 10))
    assert decode_mask(rows[0].mask_size, rows[0].mask_counts).shape == (80, 240)
