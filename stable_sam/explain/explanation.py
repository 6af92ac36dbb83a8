"""Explanation of a mask by the image features that its token attends to, for SAM and Stable-SAM (the paper's teaser).

A grid of h x w cells covers the model's square input. Positions are in pixels of the view, which is the whole image, or
for a small object its tile (`stable_sam.images.tiles`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stable_sam.errors import ConfigError, PromptError
from stable_sam.images.decode import DecodedImage
from stable_sam.images.frames import Frame
from stable_sam.images.tile_pixels import TilePixels
from stable_sam.images.tiles import prompt_in
from stable_sam.modeling.plugin import PluginHost, PluginTrace
from stable_sam.prompt_check import check_prompt
from stable_sam.records import Prompt, RefinedMask, View
from stable_sam.refining.predict import ImageView, embed_resized, predict
from stable_sam.refining.refiner import Refiner, prompt_arrays, rgb_pixels
from stable_sam.refining.steps import prepare
from stable_sam.rle import decode_mask

if TYPE_CHECKING:  # for types only, because stable_sam.modeling has to be the first to import segment_anything
    from segment_anything.modeling.transformer import Attention


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedMask:
    """The mask that one method, SAM or Stable-SAM, gives for the prompt, and what its token attends to."""

    refined: RefinedMask
    """Mask and scores as in a row of the pipeline's table."""
    mask: NDArray[np.bool_]
    """Mask (H, W) in pixels of the view."""
    attention: NDArray[np.float32]
    """Attention (h, w) of the mask token that made `mask` to the image's cells in decoder layer 2, averaged over the
    heads. It sums to 1 over the model's square input, padding included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answers of one base to one prompt, without and with the plugin."""

    pixels: NDArray[np.uint8]
    """RGB pixels (H, W, 3) of the view."""
    prompt: Prompt
    """The prompt in pixels of the view, with its box clipped to the image."""
    sam: ExplainedMask
    """The answer without the plugin."""
    stable_sam: ExplainedMask
    """The answer with the plugin."""
    alpha: tuple[float, float]
    """Routing weights: alpha_1 weighs the features sampled at p + dp, alpha_2 SAM's own at p."""
    offsets: NDArray[np.float32]
    """Offsets dp (2, h, w), x then y, in cells."""
    frame: Frame
    """Frame of the view, taken as an image of its own."""

    def positions_xy(self, offsets: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """Return the cells' centres p, or p + dp with `offsets`, as (h, w, 2) in pixels of the view.

        Centres in the padding lie outside the view.
        """
        height, width = self.sam.attention.shape
        cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + 0.5
        if offsets is not None:
            # Where an offset leaves the grid, the plugin reads the cell at the border.
            cells = np.clip(cells + np.moveaxis(offsets, 0, -1), 0.5, np.array([width, height]) - 0.5)
        return self.frame.to_original_xy(cells * (self.frame.side / np.array([width, height])))


def explain(
    refiner: Refiner, image: NDArray[np.uint8] | Image.Image, prompt: Prompt, *, decoded: DecodedImage | None = None
) -> Explanation:
    """Answer `prompt` without and with the refiner's plugin, and record what the decoder attended to.

    image: (H, W, 3), RGB, uint8 and upright, or a Pillow image of any mode, which is turned upright here. decoded: the
    same image as it was decoded for the model, perhaps at a reduced scale; by default `image`. Both methods are asked
    once, without a second pass, in the view that the refiner takes for this prompt, which is a tile for a small object.
    The model is left as it was. Raises `ConfigError` when the refiner has no plugin or also has HQ-SAM's branch,
    `PromptError` for a prompt that cannot be used, and `ImageError` for an image that cannot.
    """
    host = refiner.model.host
    if host is None:
        raise ConfigError(f"explain: expected a plugin to compare {refiner.identity.model_id} with, got none")
    if refiner.model.hq is not None:
        raise ConfigError("explain: expected SAM and its plugin alone, got HQ-SAM's branch (hq_uri), too")
    pixels = rgb_pixels(image)
    whole = DecodedImage(pixels, (pixels.shape[0], pixels.shape[1]))
    prompt = check_prompt(prompt, whole.original_hw)
    prepared = prepare(decoded or whole, [prompt], refiner.input_side, refiner.config, TilePixels(whole))
    [inferred] = refiner.infer(prepared)
    frame = inferred.frame
    view = embed_resized(refiner.model, prepared.pixels_of(frame), frame)
    asked = prompt_in(frame.window_xywh, prompt)
    sam, _ = _answer(refiner, host, view, asked, inferred.view[0], plugin=False)
    stable_sam, trace = _answer(refiner, host, view, asked, inferred.view[0], plugin=True)
    if trace is None:
        raise RuntimeError("the plugin was enabled and left no trace")
    alpha_1, alpha_2 = trace.alpha[0].tolist()
    return Explanation(
        pixels=pixels[_of(frame)],
        prompt=_moved(asked, -frame.region_xywh[0], -frame.region_xywh[1]),
        sam=sam,
        stable_sam=stable_sam,
        alpha=(alpha_1, alpha_2),
        offsets=trace.offsets[0].float().cpu().numpy(),
        frame=Frame(frame.region_hw, frame.side, fit=frame.fit),
    )


def attention_weights(attention: Attention, q: Tensor, k: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) of each head, (B, heads, N, M), from `attention`'s inputs.

    q: (B, N, C), k: (B, M, C).
    """
    queries, keys = (
        projection(tokens).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for projection, tokens in ((attention.q_proj, q), (attention.k_proj, k))
    )
    logits: Tensor = queries @ keys.transpose(2, 3) / sqrt(queries.shape[-1])
    return logits.softmax(dim=-1)


@torch.inference_mode()
def _answer(
    refiner: Refiner, host: PluginHost, view: ImageView, prompt: Prompt, name: View | None, *, plugin: bool
) -> tuple[ExplainedMask, PluginTrace | None]:
    was_enabled, host.enabled = host.enabled, plugin
    try:
        [refined] = refiner.refine_group(view, [prompt])
        with _recorded(_token_to_image(host)) as weights:
            prediction = predict(refiner.model, view, prompt_arrays([prompt]), chunk_size=1, reference=True)
        trace = host.trace
    finally:
        host.enabled = was_enabled
    if refined.mask_size is None or refined.mask_counts is None:
        raise PromptError(str(refined.error))
    row = weights[0][0, :, refiner.model.sam.iou_token + 1 + int(prediction.token[0])].mean(dim=0)
    side = isqrt(len(row))
    return ExplainedMask(
        refined=replace(refined, view=name),
        mask=decode_mask(refined.mask_size, refined.mask_counts)[_of(view.frame)],
        attention=row.reshape(side, side).float().cpu().numpy(),
    ), trace


def _of(frame: Frame) -> tuple[slice, slice]:
    """Return the rows and columns of the image that the view shows."""
    x, y, width, height = frame.region_xywh
    return slice(y, y + height), slice(x, x + width)


def _moved(prompt: Prompt, dx: float, dy: float) -> Prompt:
    box = prompt.box_xyxy
    return replace(
        prompt,
        box_xyxy=None if box is None else (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy),
        points_xy=tuple((x + dx, y + dy) for x, y in prompt.points_xy),
    )


def _token_to_image(host: PluginHost) -> Attention:
    """Return SAM's own attention module, whose inputs are the features after the plugin."""
    attention: Attention = host.attention
    return attention


@contextmanager
def _recorded(attention: Attention) -> Iterator[list[Tensor]]:
    """Record the attention weights of every pass through `attention` in a `with` block, without changing its output."""
    weights: list[Tensor] = []

    def record(module: Attention, _: tuple[()], inputs: dict[str, Tensor], output: Tensor) -> None:
        weights.append(attention_weights(module, inputs["q"], inputs["k"]))

    handle = attention.register_forward_hook(record, with_kwargs=True)
    try:
        yield weights
    finally:
        handle.remove()
