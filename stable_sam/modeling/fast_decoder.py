"""SAM's mask decoder for the prompts of one image, its sums in an order that costs less than half.

`decoder.decode_prompts` is the reference: training, HQ-SAM and whoever looks inside use it. Here, for inference:

- The projections of an attention move from the image's many cells to the few tokens: q.(W x) = (W'q).x, and
  sum a_i (W x_i) = W (sum a_i x_i). `MOST_TOKENS` says up to how many that is less work.
- Features keep the order of tokens, (P, N, C) with N = H * W cells, so that nothing is transposed. The kernels of the
  transposed convolutions do not overlap: each is a matrix product, and cells go to their places when of each only one
  number is left.
- The IoU head needs no masks, so the token is chosen first, and one mask is computed.

Logits differ from the reference's by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor

from stable_sam.modeling.nano import NanoSam
from stable_sam.modeling.plugin import PLUGIN_LAYER, ImageStreamHost, PluginHost

MOST_TOKENS = 16
"""Output and prompt tokens up to which the order of this module is the cheaper one: 8 heads * 16 tokens = 128 channels."""


@dataclass(frozen=True, slots=True)
class ImageSide:
    """What is the same for all prompts of an image."""

    features: Tensor
    """(N, C), the embedding with what SAM adds for "no mask prompt"; for `NanoSam` without the drawn prompt."""
    position: Tensor
    """(N, C), positional encoding."""


@dataclass(frozen=True, slots=True)
class ChosenMasks:
    """One mask for each of P prompts: logits (P, h, w) at a quarter of the model's input, iou (P,), token (P,)."""

    logits: Tensor
    iou: Tensor
    token: Tensor
    """0 SAM's single mask, 1-3 its multimask."""
    alpha: Tensor | None
    """(P, 2) of the plugin."""


def image_side(sam: Sam, embedding: Tensor) -> ImageSide:
    """What `decode_image` needs of an image's `embedding` (1, C, H, W)."""
    encoder = sam.prompt_encoder
    constant = encoder.mask_downscaling[-1].bias if isinstance(sam, NanoSam) else encoder.no_mask_embed.weight[0]
    return ImageSide(_as_tokens(embedding)[0] + constant, _as_tokens(encoder.get_dense_pe())[0].contiguous())


def can_decode(sam: Sam, tokens: int) -> bool:
    """Whether `decode_image` knows the plugin that `sam` hosts, and prompts of `tokens` tokens are cheaper with it."""
    host = _host(sam)
    known = host is None or (host.plugin.spec.layers == "second" and not host.plugin.spec.move_positions)
    return known and 1 + sam.mask_decoder.num_mask_tokens + tokens <= MOST_TOKENS


def decode_image(
    sam: Sam,
    image: ImageSide,
    *,
    boxes: Tensor | None = None,
    points: tuple[Tensor, Tensor] | None = None,
    ambiguous: bool = False,
) -> ChosenMasks:
    """The mask of each of P prompts of one image: SAM's single mask, or of `ambiguous` ones the best by predicted IoU.

    boxes: (P, 4) XYXY, and points: (P, N, 2) with labels (P, N), as in `decoder.decode_prompts`.
    """
    decoder, host = sam.mask_decoder, _host(sam)
    first, second = decoder.transformer.layers
    sparse, _ = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
    output_tokens = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))
    tokens = torch.cat((output_tokens.expand(len(sparse), -1, -1), sparse), dim=1)

    features = image.features  # (N, C) for all prompts, or (P, N, C)
    if isinstance(sam, NanoSam):
        features = features + _drawn_features(sam, sam.drawn_prompts(boxes, points))
    queries = first.norm1(first.self_attn(q=tokens, k=tokens, v=tokens))
    queries = _read_image(first, queries, tokens, features, image.position)
    features = _write_image(first, queries, tokens, features, image.position)

    queries = second.norm1(queries + second.self_attn(q=queries + tokens, k=queries + tokens, v=queries))
    calibrated, alpha = features, None
    if host is not None:
        token = queries[:, host.plugin.spec.routing_token] + tokens[:, host.plugin.spec.routing_token]
        calibrated, alpha = host.plugin.calibrate_tokens(features, token)
        if host.plugin.spec.calibrates == "stream":
            features = calibrated
    queries = _read_image(second, queries, tokens, calibrated, image.position)
    features = _write_image(second, queries, tokens, features, image.position)

    transformer = decoder.transformer
    read = _attend_to_image(transformer.final_attn_token_to_image, queries + tokens, features + image.position, features)
    queries = transformer.norm_final_attn(queries + read)
    iou = decoder.iou_prediction_head(queries[:, 0])
    chosen = iou[:, 1:].argmax(dim=1) + 1 if ambiguous else torch.zeros_like(iou[:, 0], dtype=torch.long)
    kernels = _kernels(decoder, queries, chosen, ambiguous)
    return ChosenMasks(_mask_logits(decoder, features, kernels), iou.gather(1, chosen[:, None])[:, 0], chosen, alpha)


def _host(sam: Sam) -> PluginHost | None:
    host = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    return host if isinstance(host, PluginHost) and host.enabled else None


def _drawn_features(sam: NanoSam, drawn: Tensor) -> Tensor:
    """(P, N, C), what the mask prompts `drawn` (P, 1, S/4, S/4) add to the features, but for the constant part."""
    layers = sam.prompt_encoder.mask_downscaling
    return cast(Tensor, _as_tokens(layers[:-1](drawn)) @ layers[-1].weight.flatten(1).mT)


def _read_image(
    layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, features: Tensor, position: Tensor
) -> Tensor:
    """The middle of a decoder layer: the tokens attend to the image, then pass the MLP."""
    attention = layer.cross_attn_token_to_image
    if isinstance(attention, PluginHost):
        attention = attention.attention
    queries = layer.norm2(queries + _attend_to_image(attention, queries + tokens, features + position, features))
    return cast(Tensor, layer.norm3(queries + layer.mlp(queries)))


def _write_image(
    layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, features: Tensor, position: Tensor
) -> Tensor:
    """The end of a decoder layer: the image attends to the tokens; (P, N, C)."""
    attention = layer.cross_attn_image_to_token
    if isinstance(attention, ImageStreamHost):
        attention = attention.attention
    written = _attend_to_tokens(attention, features + position, queries + tokens, queries, features)
    return cast(Tensor, layer.norm4(written))


def _attend_to_image(attention: Attention, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attention` of tokens q (P, T, C) to cells (P, N, C), or (N, C) that all prompts share."""
    heads = attention.num_heads
    query = attention.q_proj(q).unflatten(2, (heads, -1))
    query = query * query.shape[-1] ** -0.5
    # The bias of the keys adds the same to all cells, which softmax does not see.
    asked = torch.einsum("pthd,hdc->phtc", query, attention.k_proj.weight.unflatten(0, (heads, -1)))
    weights = (asked.flatten(1, 2) @ keys.mT).softmax(dim=-1)  # (P, heads * T, N)
    read = (weights @ values).unflatten(1, (heads, -1))
    value = torch.einsum("phtc,hdc->pthd", read, attention.v_proj.weight.unflatten(0, (heads, -1)))
    return cast(Tensor, attention.out_proj(value.flatten(2) + attention.v_proj.bias))


def _attend_to_tokens(attention: Attention, q: Tensor, k: Tensor, v: Tensor, features: Tensor) -> Tensor:
    """`features` plus `attention` of cells q (P, N, C) or (N, C) to tokens k and v (P, T, C)."""
    heads = attention.num_heads
    keys = attention.k_proj(k).unflatten(2, (heads, -1))
    keys = keys * keys.shape[-1] ** -0.5
    weight, bias = (p.unflatten(0, (heads, -1)) for p in (attention.q_proj.weight, attention.q_proj.bias))
    asked = torch.einsum("pthd,hdc->phtc", keys, weight).flatten(1, 2)
    constant = torch.einsum("pthd,hd->pht", keys, bias)[..., None]
    weights = ((asked @ q.mT).unflatten(1, (heads, -1)) + constant).softmax(dim=2).flatten(1, 2)  # (P, heads * T, N)
    values = attention.v_proj(v).unflatten(2, (heads, -1))
    written = torch.einsum("pthd,chd->phtc", values, attention.out_proj.weight.unflatten(1, (heads, -1))).flatten(1, 2)
    # A head's weights add up to 1: so does the bias, given to the heads in equal parts.
    written = written + attention.out_proj.bias / heads
    return torch.baddbmm(features.expand(len(weights), -1, -1), weights.mT, written)


def _kernels(decoder: MaskDecoder, queries: Tensor, chosen: Tensor, ambiguous: bool) -> Tensor:
    """(P, C/8), what the mask of token `chosen` (P,) is read with."""
    if not ambiguous:
        return cast(Tensor, decoder.output_hypernetworks_mlps[0](queries[:, 1]))
    mlps = list(decoder.output_hypernetworks_mlps)[1:]
    kernels = torch.stack([mlp(queries[:, 2 + i]) for i, mlp in enumerate(mlps)], dim=1)
    return kernels[torch.arange(len(chosen), device=chosen.device), chosen - 1]


def _mask_logits(decoder: MaskDecoder, features: Tensor, kernels: Tensor) -> Tensor:
    """The logits (P, 4H, 4W) that `kernels` (P, C/8) read from the upscaled `features` (P, N, C)."""
    first, norm, _, second, _ = decoder.output_upscaling
    prompts, cells, _ = features.shape
    side = isqrt(cells)
    x = F.gelu(F.layer_norm(_upscaled(first, features), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    x = F.gelu(_upscaled(second, x))  # (P, N, 4, 4, C/8): the cell, then which quarter, then which quarter of that
    logits = x.flatten(1, 3) @ kernels[:, :, None]
    quarters = logits.view(prompts, side, side, 2, 2, 2, 2)
    return quarters.permute(0, 1, 3, 5, 2, 4, 6).reshape(prompts, 4 * side, 4 * side)


def _upscaled(layer: torch.nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution whose kernel of 2 x 2 is its stride: (..., C) to (..., 4, C')."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * C', C)
    bias = cast(Tensor, layer.bias).repeat(4)
    return F.linear(x, weight, bias).unflatten(-1, (4, -1))


def _as_tokens(grid: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C)."""
    return grid.flatten(2).mT
