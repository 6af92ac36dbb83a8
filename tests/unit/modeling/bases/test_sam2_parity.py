"""SAM 2.1 against transformers' `Sam2Model` with the same weights, from the image to masks of its size."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import transformers

from stable_sam.bases import BASES
from stable_sam.identity import ModelIdentity
from stable_sam.modeling import single_mask
from stable_sam.modeling.bases import build_base
from stable_sam.modeling.bases.sam2 import Sam2, published_name
from stable_sam.modeling.load import LoadedModel
from stable_sam.modeling.single_mask import STABILITY_OFFSET
from stable_sam.refining.predict import ImageView, PromptArrays, embed_image, predict
from tests.unit.modeling.bases.small_sam2 import draw_weights

RENAMED = (
    (r"^sam_prompt_encoder\.pe_layer\.\w+$", "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^sam_", ""),
    (r"image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"\.norm(\d)", r".layer_norm\1"),
    (r"\.norm_final", ".layer_norm_final"),
    (r"\.out_proj\.", ".o_proj."),
    (r"(blocks\.\d+|transformer\.layers\.\d)\.mlp\.layers\.0\.", r"\1.mlp.proj_in."),
    (r"(blocks\.\d+|transformer\.layers\.\d)\.mlp\.layers\.1\.", r"\1.mlp.proj_out."),
    (r"(mlps\.\d|head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|head)\.layers\.2\.", r"\1.proj_out."),
    (r"(mlps\.\d|head)\.layers\.1\.", r"\1.layers.0."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"^no_mem_embed$", "no_memory_embedding"),
)
"""Names in the published files, as regular expressions, and in transformers."""
HW = (300, 420)
BOXES = np.array([[20.0, 30.0, 200.0, 250.0], [200.5, 40.25, 320.0, 120.75], [0.0, 0.0, 420.0, 300.0]])
POINTS = np.array([[[40.0, 50.0], [90.0, 200.0]], [[250.0, 100.0], [220.0, 60.0]], [[5.0, 7.0], [400.0, 299.0]]])
LABELS = np.array([[1, 0], [1, 1], [0, 1]])
PROMPTS = {
    "boxes": PromptArrays(boxes_xyxy=BOXES),
    "points": PromptArrays(points_xy=POINTS, point_labels=LABELS),
    "both": PromptArrays(boxes_xyxy=BOXES, points_xy=POINTS, point_labels=LABELS),
    "one point": PromptArrays(points_xy=POINTS[:, :1], point_labels=np.ones((3, 1), np.int64)),
}


def weights_of(sam: Sam2) -> dict[str, torch.Tensor]:
    weights = {}
    for key, value in sam.state_dict().items():
        name = published_name(key)
        for pattern, other in RENAMED:
            name = re.sub(pattern, other, name)
        weights[name] = value
    points = [weights.pop(f"prompt_encoder.point_embeddings.{index}.weight") for index in range(4)]
    weights["prompt_encoder.point_embed.weight"] = torch.cat(points)
    positions = weights["prompt_encoder.shared_embedding.positional_embedding"]
    return weights | {"shared_image_embedding.positional_embedding": positions}


@pytest.fixture(scope="module")
def both():
    """Our model, and what transformers makes of the same image with the same weights."""
    sam = build_base("sam2.1_t")
    draw_weights(sam, seed=1)
    reference = transformers.Sam2Model(transformers.Sam2Config()).eval()
    reference.load_state_dict(weights_of(sam), strict=True)
    identity = ModelIdentity(model_id="sam2.1_t", weights_sha256="", dtype="float32")
    model = LoadedModel(
        base=BASES["sam2.1_t"], sam=sam.eval(), host=None, identity=identity, device=torch.device("cpu")
    )
    image = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    processor = transformers.Sam2ImageProcessor()
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        embeddings = reference.get_image_embeddings(pixels)
    return embed_image(model, image), model, reference, embeddings, processor


def test_the_features_are_equal(both):
    view: ImageView
    view, _, _, embeddings, _ = both
    for ours, theirs in zip((*view.features.fine, view.features.embedding), embeddings, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.std().item())


@pytest.mark.parametrize("offset", [STABILITY_OFFSET, 5.0])
@pytest.mark.parametrize("kind", list(PROMPTS))
def test_masks_and_predicted_iou_are_equal(both, kind, offset, monkeypatch):
    """On both paths within 1e-4 of the logits' standard deviation, on the decoder's grid and in pixels of the image.

    The larger offset makes the single masks of these weights unstable.
    """
    view, model, reference, embeddings, processor = both
    monkeypatch.setattr(single_mask, "STABILITY_OFFSET", offset)
    monkeypatch.setattr(reference.mask_decoder, "dynamic_multimask_stability_delta", offset)
    prompts = PROMPTS[kind]
    scale = 1024 / np.array(HW[::-1])
    given = {}
    if prompts.boxes_xyxy is not None:
        given["input_boxes"] = torch.tensor(prompts.boxes_xyxy * np.tile(scale, 2), dtype=torch.float32)[None]
    if prompts.points_xy is not None:
        given["input_points"] = torch.tensor(prompts.points_xy * scale, dtype=torch.float32)[None]
        given["input_labels"] = torch.tensor(prompts.point_labels)[None]
    with torch.no_grad():
        theirs = reference(image_embeddings=embeddings, multimask_output=prompts.ambiguous, **given)
    iou, logits = theirs.iou_scores[0], theirs.pred_masks[0]
    best = iou.argmax(dim=1)
    row = torch.arange(3)
    iou, logits = iou[row, best].numpy(), logits[row, best]
    atol = 1e-4 * logits.std().item()
    whole = processor.post_process_masks([logits[:, None]], [HW], binarize=False)[0][:, 0].numpy()
    for reference_path in (True, False):
        ours = predict(model, view, prompts, 8, reference=reference_path)
        assert (ours.token > 0).any() == (prompts.ambiguous or offset > STABILITY_OFFSET)
        np.testing.assert_allclose(ours.iou, iou, atol=1e-5)
        np.testing.assert_allclose(ours.logits, logits.numpy(), atol=atol)
        for one, other in zip(ours.logits, whole, strict=True):
            np.testing.assert_allclose(view.frame.to_original(one), other, atol=2 * atol)
