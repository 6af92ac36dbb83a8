"""One pass of SAM's prompt encoder and mask decoder over a batch of prompts, for training and for inference.

`segment_anything.MaskDecoder.predict_masks` takes one image with many prompts. A training batch has prompts of many
images, so this module calls the decoder's own parts in the same order with one embedding for each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from stable_sam.modeling.bases.base import BaseSam, Points
from stable_sam.modeling.features import FineFeatures, ImageFeatures
from stable_sam.modeling.plugin import PLUGIN_LAYER, PluginHost, PluginTrace


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """The decoder's answers to P prompts. Mask 0 is SAM's single mask, masks 1 to 3 are its multimask output."""

    logits: Tensor
    """Mask logits (P, 4, h, w) at a quarter of the model's input resolution."""
    iou: Tensor
    """Predicted IoU (P, 4) of the masks."""
    trace: PluginTrace | None
    """What the plugin did; None when no plugin is hosted and enabled."""
    hq_logits: Tensor | None = None
    """Logits (P, 1, h, w) of HQ-SAM's mask, to be added to those of the chosen SAM mask; None when HQ-SAM is off."""


def decode_prompts(
    sam: BaseSam,
    features: ImageFeatures,
    *,
    boxes: Tensor | None = None,
    points: Points | None = None,
) -> DecoderOutput:
    """Predict the masks of P prompts.

    features: either P images, one for each prompt, or one image that all prompts share. Early features among them
    switch on the HQ-SAM branch of `sam`. boxes: (P, 4) XYXY. points: xy (P, N, 2) and labels (P, N), where 1 is object,
    0 background and -1 padding. Boxes and points are in pixels of the model's square input.
    Raises `ValueError` for early features together with an enabled plugin.
    """
    early = features.early
    host = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    if early is not None and isinstance(host, PluginHost) and host.enabled:
        raise ValueError("expected HQ-SAM or the plugin, got both: disable one")
    decoder = sam.mask_decoder
    output_tokens = sam.output_tokens
    if early is not None:
        output_tokens = torch.cat((output_tokens, sam.hq.hf_token.weight))
    source, position, tokens = decoder_inputs(sam, features.embedding, output_tokens, boxes, points)
    tokens_out, source_out = decoder.transformer(source, position, tokens)

    masks_from = sam.iou_token + 1
    masks_to = masks_from + decoder.num_mask_tokens
    logits, upscaled = read_masks(decoder, tokens_out[:, masks_from:masks_to], source_out, features.fine)
    iou = sam.predicted_iou(tokens_out[:, sam.iou_token])
    hq_logits = None
    if early is not None:
        hq_logits = sam.hq(features.embedding, early, upscaled, tokens_out[:, masks_to])

    return DecoderOutput(logits, iou, host.trace if isinstance(host, PluginHost) else None, hq_logits)


def trace_prompts(sam: BaseSam, features: ImageFeatures, boxes: Tensor) -> PluginTrace:
    """Compute the trace that `decode_prompts` returns for P boxes, at half the cost: the decoder stops at the plugin.

    boxes: (P, 4) XYXY in pixels of the model's square input. Only the plugin gets gradients. Raises `ValueError` unless
    `sam` hosts a plugin in decoder layer 2 alone.
    """
    first, second = sam.mask_decoder.transformer.layers
    host = second.cross_attn_token_to_image
    if not isinstance(host, PluginHost) or isinstance(first.cross_attn_token_to_image, PluginHost):
        raise ValueError("expected a plugin in decoder layer 2 alone")
    with torch.no_grad():
        source, position, tokens = decoder_inputs(sam, features.embedding, sam.output_tokens, boxes, None)
        keys, key_pe = source.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
        queries, keys = first(queries=tokens, keys=keys, query_pe=tokens, key_pe=key_pe)
        queries_pe = queries + tokens
        queries = second.norm1(queries + second.self_attn(q=queries_pe, k=queries_pe, v=queries)) + tokens
    return host.calibrate(queries, keys + key_pe, keys)[2]


def read_masks(
    decoder: MaskDecoder, mask_tokens: Tensor, source: Tensor, fine: FineFeatures | None
) -> tuple[Tensor, Tensor]:
    """Return the logits (P, 4, h, w) of SAM's masks, and the upscaled features (P, C/8, h, w) they are read from.

    mask_tokens: (P, 4, C), and source: (P, HW, C) on a square grid; both are outputs of the transformer. fine: fine
    features of P images, or of the one image that all prompts share; they are added inside the upscaling, as in SAM 2.
    """
    side = int(source.shape[1] ** 0.5)
    grid = source.transpose(1, 2).reshape(source.shape[0], source.shape[2], side, side)
    if fine is None:
        upscaled = decoder.output_upscaling(grid)
    else:
        first, norm, activation, second, last_activation = decoder.output_upscaling
        upscaled = last_activation(second(activation(norm(first(grid) + fine[1]))) + fine[0])
    kernels = torch.stack(
        [mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )  # (P, 4, C/8)
    return (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:]), upscaled


def decoder_inputs(
    sam: BaseSam,
    embeddings: Tensor,
    output_tokens: Tensor,
    boxes: Tensor | None,
    points: Points | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transformer's inputs for P prompts.

    They are the features with the mask prompt added (P, C, H, W), their positional encoding (P, C, H, W) and the output
    tokens followed by the prompt tokens (P, T + N, C). Boxes and points are those of `decode_prompts`.
    """
    sparse, dense = sam.embed_prompts(boxes, points)
    prompts = sparse.shape[0]
    position = sam.prompt_encoder.get_dense_pe().expand(prompts, -1, -1, -1)
    tokens = torch.cat((output_tokens.expand(prompts, -1, -1), sparse), dim=1)
    return embeddings + dense, position, tokens
