"""SAM's mask decoder for the prompts of one image, with its sums reordered to less than half of the work.

`modeling.decoder.decode_prompts` is the reference, which training, HQ-SAM and explanations use. Logits differ from the
reference's by rounding. This module, for inference only, saves work as follows:

- Layer 1 reads the same image for every prompt, so its projections of the image are computed once (`image_side`). A
  prompt that a base draws as a mask prompt adds only a few channels to them.
- Layer 1 adds to the image's features what its tokens write: for each cell a weighted sum of some 70 vectors. So the
  plugin's projection of the sum is that of the image, computed once, plus the weighted sum of the projected vectors.
- In layer 2 the projections move from the image's many cells to the few tokens: q.(W x) = (W'q).x, and
  sum a_i (W x_i) = W (sum a_i x_i). That is less work for up to `MOST_TOKENS` tokens.
- Features keep the layout of tokens, (P, N, C) with N = H * W cells, so that nothing is transposed. The kernels of the
  transposed convolutions do not overlap, so that each convolution is a matrix product; the cells are put into their
  places at the end, when each has a single number.
- The last attention is computed only for the tokens that are used. The IoU head needs no masks, so the token is chosen
  first, and only its mask is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from stable_sam.modeling.bases.base import BaseSam, Points
from stable_sam.modeling.fast.attention import asked_of_cells, per_head, per_token, read_cells, written_to_cells
from stable_sam.modeling.fast.mask_logits import mask_kernels, mask_logits, quarters_of
from stable_sam.modeling.fast.prompt_tokens import prompt_tokens
from stable_sam.modeling.features import FineFeatures, ImageFeatures
from stable_sam.modeling.plugin import PLUGIN_LAYER, ImageStreamHost, PluginHost, StableSamPlugin
from stable_sam.modeling.single_mask import best_multimask, single_tokens

MOST_TOKENS = 16
"""Largest number of output and prompt tokens with which this decoder is cheaper than the reference: 16 tokens with 8
heads are as many vectors as a projection has channels, 128."""


@dataclass(frozen=True, slots=True)
class ImageSide:
    """The decoder's tensors that all prompts of an image share: N cells, h heads of D channels."""

    features: Tensor
    """Image embedding (N, C) with what SAM adds for "no mask prompt"; for a base that draws prompts, without the
    drawn prompt."""
    position: Tensor
    """Positional encoding (N, C)."""
    keys: Tensor
    """Keys (h, D, N) of layer 1's token-to-image attention."""
    values: Tensor
    """Values (h, N, D) of layer 1's token-to-image attention."""
    queries: Tensor
    """Queries (h, D, N) of layer 1's image-to-token attention."""
    projected: tuple[StableSamPlugin, Tensor] | None
    """The attached plugin and `features` times the weight of `_projection`, (N, C); None without a plugin."""
    fine: FineFeatures | None
    """Fine features (N, 4, 4, C/8) and (N, 4, C/4), ordered as by `upscaled`; None when the encoder has none."""


@dataclass(frozen=True, slots=True)
class ChosenMasks:
    """One mask for each of P prompts."""

    logits: Tensor
    """Mask logits (P, h, w) at a quarter of the model's input resolution."""
    iou: Tensor
    """Predicted IoU (P,)."""
    token: Tensor
    """Mask token (P,) that made the mask: 0 is SAM's single mask, 1 to 3 are its multimask output."""
    alpha: Tensor | None
    """The plugin's alpha (P, 2); None when no plugin is hosted and enabled."""


@dataclass(frozen=True, slots=True)
class _Layer1:
    """The results of layer 1 for P prompts."""

    queries: Tensor
    """Tokens (P, T, C)."""
    features: Tensor
    """Image features (P, N, C): the layer norm of `ImageSide.features` + weights.mT @ written."""
    scale: Tensor
    """Factor (P, N, 1) by which that layer norm multiplied each cell."""
    weights: Tensor
    """Weight (P, M, N) of each of M vectors in each cell."""
    written: Tensor
    """The M vectors (P, M, C) that the layer's tokens and the drawn prompt write into cells."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Drawn prompts, which add cells.mT @ weight.mT to the features."""

    cells: Tensor
    """Channels (P, M, N) of the drawn prompts before the last layer of SAM's mask downscaling."""
    weight: Tensor
    """Weight (C, M) of that last layer."""


def image_side(sam: BaseSam, image: ImageFeatures) -> ImageSide:
    """Compute what `decode_chosen_masks` needs of the features of one image, once for all of its prompts."""
    encoder, layer = sam.prompt_encoder, sam.mask_decoder.transformer.layers[0]
    constant = encoder.mask_downscaling[-1].bias if sam.draws_prompts else encoder.no_mask_embed.weight[0]
    features = image.embedding[0].flatten(1).T + constant
    position = encoder.get_dense_pe()[0].flatten(1).T.contiguous()
    read, written = _own(layer.cross_attn_token_to_image), _own(layer.cross_attn_image_to_token)
    keys, values, queries = (
        projection(x).unflatten(1, (read.num_heads, -1)).transpose(0, 1).contiguous()
        for projection, x in (
            (read.k_proj, features + position),
            (read.v_proj, features),
            (written.q_proj, features + position),
        )
    )
    projected = None
    attached = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    if isinstance(attached, PluginHost):
        projected = attached.plugin, features @ _projection(layer.norm4, attached.plugin)[0]
    fine = None if image.fine is None else (quarters_of(image.fine[0], 2), quarters_of(image.fine[1], 1))
    return ImageSide(features, position, keys.mT, values, queries.mT, projected, fine)


def can_decode(sam: BaseSam, tokens: int) -> bool:
    """Tell whether `decode_chosen_masks` supports the plugin of `sam` and is cheaper for prompts of `tokens` tokens."""
    host = _host(sam)
    known = host is None or (host.plugin.spec.layers == "second" and not host.plugin.spec.move_positions)
    return known and len(sam.output_tokens) + tokens <= MOST_TOKENS


def decode_chosen_masks(
    sam: BaseSam,
    image: ImageSide,
    *,
    boxes: Tensor | None = None,
    points: Points | None = None,
    ambiguous: bool = False,
) -> ChosenMasks:
    """Predict one mask for each of P prompts of one image.

    It is SAM's single mask, or for `ambiguous` prompts the one of the three multimasks with the highest predicted IoU.
    A base that replaces unstable single masks (`modeling.single_mask`) has both computed from the same features.
    boxes: (P, 4) XYXY. points: xy (P, N, 2) and labels (P, N), where 1 is object, 0 background and -1 padding. Boxes
    and points are in pixels of the model's square input.
    """
    decoder, host = sam.mask_decoder, _host(sam)
    sparse = prompt_tokens(sam.prompt_encoder, boxes, sam.padded_points(boxes, points))
    tokens = torch.cat((sam.output_tokens.expand(len(sparse), -1, -1), sparse), dim=1)
    masks = sam.mask_prompts(boxes, points)
    drawn = None if masks is None else _drawn(sam, masks)

    transformer = decoder.transformer
    first = _first_layer(transformer.layers[0], image, tokens, drawn)
    projected = None if host is None else _projected(transformer.layers[0].norm4, host.plugin, image, first)
    queries, features, alpha = _second_layer(transformer.layers[1], first, projected, image.position, tokens, host)
    alone = not ambiguous and sam.least_stability is None
    used = slice(sam.iou_token, sam.iou_token + 1 + (1 if alone else decoder.num_mask_tokens))
    queries, tokens = queries[:, used], tokens[:, used]
    read = read_cells(transformer.final_attn_token_to_image, queries + tokens, features + image.position, features)
    queries = transformer.norm_final_attn(queries + read)

    iou = sam.predicted_iou(queries[:, 0])
    single, best = torch.zeros_like(iou[:, 0], dtype=torch.long), best_multimask(iou)
    if alone or ambiguous:
        chosen = single if alone else best
        kernels = mask_kernels(decoder, queries[:, 1:], chosen[:, None])
        logits = mask_logits(decoder, features, image.fine, kernels)[:, 0]
    else:
        kernels = mask_kernels(decoder, queries[:, 1:], torch.stack((single, best), dim=1))
        both = mask_logits(decoder, features, image.fine, kernels)
        chosen = single_tokens(sam, both[:, 0], iou)
        logits = torch.where((chosen == 0)[:, None, None], both[:, 0], both[:, 1])
    return ChosenMasks(logits, iou.gather(1, chosen[:, None])[:, 0], chosen, alpha)


def _host(sam: BaseSam) -> PluginHost | None:
    host = sam.mask_decoder.transformer.layers[PLUGIN_LAYER].cross_attn_token_to_image
    return host if isinstance(host, PluginHost) and host.enabled else None


def _own(attention: nn.Module) -> Attention:
    """Return SAM's own attention, unwrapped when the plugin hosts it."""
    return cast(Attention, attention.attention if isinstance(attention, PluginHost | ImageStreamHost) else attention)


def _drawn(sam: BaseSam, masks: Tensor) -> _Drawn:
    layers = sam.prompt_encoder.mask_downscaling
    return _Drawn(layers[:-1](masks).flatten(2), layers[-1].weight.flatten(1))


def _first_layer(layer: TwoWayAttentionBlock, image: ImageSide, tokens: Tensor, drawn: _Drawn | None) -> _Layer1:
    queries = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens))
    attention = _own(layer.cross_attn_token_to_image)
    scores = _shared_scores(attention, attention.q_proj(queries + tokens), attention.k_proj, image.keys, drawn)
    weights = scores.softmax(dim=-1)  # (P, h, T, N)
    value = weights.transpose(0, 1).flatten(1, 2) @ image.values  # (h, P * T, D)
    value = torch.unflatten(value, 1, tokens.shape[:2]).permute(1, 2, 0, 3)
    if drawn is not None:
        read = weights.flatten(1, 2) @ drawn.cells.mT  # (P, h * T, M)
        projection = per_head(attention.v_proj.weight @ drawn.weight, attention)
        value = value + torch.einsum("phtm,hdm->pthd", torch.unflatten(read, 1, weights.shape[1:3]), projection)
    queries = layer.norm2(queries + attention.out_proj(value.flatten(2)))
    queries = layer.norm3(queries + layer.mlp(queries))

    attention = _own(layer.cross_attn_image_to_token)
    scores = _shared_scores(attention, attention.k_proj(queries + tokens), attention.q_proj, image.queries, drawn)
    weights, written = scores.softmax(dim=2).flatten(1, 2), written_to_cells(attention, queries)
    if drawn is not None:
        weights = torch.cat((weights, drawn.cells), dim=1)
        written = torch.cat((written, drawn.weight.mT.expand(len(written), -1, -1)), dim=1)
    features, norm = torch.baddbmm(image.features.expand(len(weights), -1, -1), weights.mT, written), layer.norm4
    features, _, scale = torch.native_layer_norm(features, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return _Layer1(queries, features, scale, weights, written)


def _projection(norm: nn.LayerNorm, plugin: StableSamPlugin) -> tuple[Tensor, Tensor]:
    """Fold `norm` and the plugin's projection into a weight (C, C) and a bias (C,).

    The plugin's projection of norm(x) is then scale * (x @ weight) + bias, where `scale` is the norm's own factor. The
    norm subtracts each cell's mean; here the projection's weights add up to 0 over the input channels instead.
    """
    project = plugin.sampling.project
    weight = project.weight.flatten(1)
    scaled = weight * norm.weight
    return (scaled - scaled.mean(dim=1, keepdim=True)).T, cast(Tensor, project.bias) + weight @ norm.bias


def _projected(norm: nn.LayerNorm, plugin: StableSamPlugin, image: ImageSide, first: _Layer1) -> Tensor:
    """Compute the plugin's projection x*_p (P, N, C) of layer 1's features."""
    if image.projected is None or image.projected[0] is not plugin:
        return plugin.sampling.project_tokens(first.features)
    weight, bias = _projection(norm, plugin)
    shared = image.projected[1].expand(len(first.written), -1, -1)
    return torch.addcmul(bias, torch.baddbmm(shared, first.weights.mT, first.written @ weight), first.scale)


def _second_layer(
    layer: TwoWayAttentionBlock,
    first: _Layer1,
    projected: Tensor | None,
    position: Tensor,
    tokens: Tensor,
    host: PluginHost | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the tokens (P, T, C), features (P, N, C) and the plugin's alpha (P, 2) after layer 2.

    projected: the plugin's x*_p (P, N, C), None without a plugin.
    """
    queries, features = first.queries, first.features
    queries = layer.norm1(queries + layer.self_attn(q=queries + tokens, k=queries + tokens, v=queries))
    calibrated, alpha = features, None
    if host is not None:
        assert projected is not None, "expected projected features, which the plugin samples"
        token = queries[:, host.routing_token] + tokens[:, host.routing_token]
        calibrated, alpha = host.plugin.calibrate_tokens(features, projected, token)
    positioned = calibrated + position
    read = read_cells(_own(layer.cross_attn_token_to_image), queries + tokens, positioned, calibrated)
    queries = layer.norm2(queries + read)
    queries = layer.norm3(queries + layer.mlp(queries))
    if host is None or host.plugin.spec.calibrates == "stream":
        features = calibrated
    else:
        positioned = features + position

    attention = _own(layer.cross_attn_image_to_token)
    keys = per_token(attention.k_proj(queries + tokens), attention)
    scores = asked_of_cells(keys, attention.q_proj.weight, attention) @ positioned.mT
    constant = torch.einsum("pthd,hd->pht", keys, attention.q_proj.bias.unflatten(0, (attention.num_heads, -1)))
    weights = (torch.unflatten(scores, 1, constant.shape[1:]) + constant[..., None]).softmax(dim=2).flatten(1, 2)
    return queries, layer.norm4(features.baddbmm_(weights.mT, written_to_cells(attention, queries))), alpha


def _shared_scores(
    attention: Attention, q: Tensor, projection: nn.Linear, shared: Tensor, drawn: _Drawn | None
) -> Tensor:
    """Return scores (P, h, T, N) of projected tokens q (P, T, h * D) with the cells `shared` (h, D, N).

    projection: the layer that projected the cells; it also projects what `drawn` adds to them.
    """
    query = per_token(q, attention)
    prompts, count = query.shape[:2]
    scores = query.permute(2, 0, 1, 3).flatten(1, 2) @ shared  # (h, P * T, N)
    scores = torch.unflatten(scores, 1, (prompts, count)).transpose(0, 1)
    if drawn is None:
        return scores
    weight = per_head(projection.weight @ drawn.weight, attention)
    asked = torch.einsum("pthd,hdm->phtm", query, weight).flatten(1, 2)
    return torch.unflatten(torch.baddbmm(scores.flatten(1, 2), asked, drawn.cells), 1, (-1, count))
