"""An image through the encoder, prompts in original pixels through the decoder: arrays in, arrays out, in chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_sam.images.decode import DecodedImage
from stable_sam.images.frames import Frame
from stable_sam.images.resize import resize_image
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.fast.compiled import COMPILED_TOKENS
from stable_sam.modeling.fast.decoder import ImageSide, can_decode, decode_image, image_side
from stable_sam.modeling.fast.encoder import encode
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.hq import encode_with_early
from stable_sam.modeling.load import LoadedModel
from stable_sam.timing import keeps_spans, turn

CELLS_IN_CACHE = 5000
"""Cells of the decoder's grid, of all prompts of a pass together, that stay in a CPU's caches: 1 kB each, a few times.

8 prompts of `nano`, 1 of `vit_*`.
"""
Chunk = tuple[Tensor, Tensor, Tensor, Tensor]
"""The fields of a `Prediction`, on the model's device."""


@dataclass(frozen=True, slots=True)
class ImageView:
    """What the decoder needs of an image: its features, float32, and its frame."""

    features: ImageFeatures
    """With early ones for a model with HQ-SAM's branch."""
    frame: Frame
    side: ImageSide
    """What the decoder needs of the features for every prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptArrays:
    """P prompts of one image with equally many tokens, so that nothing has to be padded; original pixels."""

    boxes_xyxy: NDArray[np.float64] | None = None
    """(P, 4)"""
    points_xy: NDArray[np.float64] | None = None
    """(P, N, 2)"""
    point_labels: NDArray[np.int64] | None = None
    """(P, N)"""

    def __len__(self) -> int:
        first = self.points_xy if self.boxes_xyxy is None else self.boxes_xyxy
        return 0 if first is None else len(first)

    @property
    def ambiguous(self) -> bool:
        """One point alone may mean a part, a thing or a group of things: SAM answers it with three masks."""
        return self.boxes_xyxy is None and self.points_xy is not None and self.points_xy.shape[1] == 1

    @property
    def tokens(self) -> int:
        """Tokens of the decoder that one prompt takes; SAM pads points without a box by one."""
        points = 0 if self.points_xy is None else self.points_xy.shape[1]
        return points + (1 if self.boxes_xyxy is None else 2)

    def rows(self, start: int, stop: int) -> PromptArrays:
        """The prompts from `start` up to `stop`."""
        return PromptArrays(
            boxes_xyxy=None if self.boxes_xyxy is None else self.boxes_xyxy[start:stop],
            points_xy=None if self.points_xy is None else self.points_xy[start:stop],
            point_labels=None if self.point_labels is None else self.point_labels[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One mask for each of P prompts."""

    logits: NDArray[np.float32]
    """(P, h, w), a quarter of the model's square input; above 0 is object."""
    iou: NDArray[np.float32]
    """(P,), the IoU head's estimate for this mask."""
    dsp_weight: NDArray[np.float32]
    """(P,), alpha_1 of the plugin; 0 without plugin."""
    token: NDArray[np.int64]
    """(P,), which of the decoder's mask tokens made the mask: 0 SAM's single mask, 1-3 its multimask."""


def embed_image(model: LoadedModel, image: NDArray[np.uint8] | DecodedImage) -> ImageView:
    """Run the encoder on an image (H, W, 3), RGB, upright; in the arithmetic of the model's identity."""
    picture = image if isinstance(image, DecodedImage) else DecodedImage(image, (image.shape[0], image.shape[1]))
    frame = Frame(picture.original_hw, int(model.sam.image_encoder.img_size))
    return embed_resized(model, resize_image(picture.pixels, frame, picture.scale), frame)


@torch.inference_mode()
def embed_resized(model: LoadedModel, resized: NDArray[np.uint8], frame: Frame) -> ImageView:
    """The same for an image (h, w, 3) that has `frame.resized_hw` already."""
    image = torch.from_numpy(np.require(resized, requirements=["C", "W"])).permute(2, 0, 1)[None]
    square = model.sam.preprocess(_sent(image, model).float())
    half = model.identity.dtype == "bfloat16"
    with turn(model.lock), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        if model.hq is not None:
            features = encode_with_early(model.sam, square)
        else:
            features = (encode if model.compiled is None else model.compiled.encode)(model.sam, square)
        if model.device.type == "cuda" and keeps_spans():
            torch.cuda.synchronize(model.device)
    features = features.map(torch.Tensor.float)
    return ImageView(features, frame, image_side(model.sam, features))


def predict(
    model: LoadedModel, view: ImageView, prompts: PromptArrays, chunk_size: int, *, reference: bool = False
) -> Prediction:
    """What `predict_tensors` says, as arrays."""
    # Outside of the model's lock: whoever waits for a GPU here lets others give it work.
    fields = predict_tensors(model, view, prompts, chunk_size, reference=reference)
    logits, iou, weight, token = (field.cpu().numpy() for field in fields)
    return Prediction(logits, iou, weight, token)


@torch.inference_mode()
def predict_tensors(
    model: LoadedModel, view: ImageView, prompts: PromptArrays, chunk_size: int, *, reference: bool = False
) -> Chunk:
    """The masks of all `prompts`; at most `chunk_size` of them are in the decoder at a time.

    SAM's single mask, or for an ambiguous prompt that of its three masks whose predicted IoU is highest. HQ-SAM, when
    it is on, adds the logits of its one mask to the chosen mask; the predicted IoU stays SAM's, as published.
    reference: pass through SAM's own modules in any case, for those who watch them.
    """
    hq = model.hq is not None and model.hq.enabled
    chunk = _predict_chunk
    if not hq and not reference and can_decode(model.sam, prompts.tokens):
        chunk = _predict_chunk_fast
        if model.device.type == "cpu":
            chunk_size = min(chunk_size, max(1, CELLS_IN_CACHE // len(view.side.features)))
    starts = range(0, len(prompts), chunk_size)
    with turn(model.lock):
        chunks = [chunk(model, view, prompts.rows(start, start + chunk_size)) for start in starts]
    logits, iou, weight, token = (torch.cat(part) for part in zip(*chunks, strict=True))
    return logits, iou, weight, token


def _predict_chunk_fast(model: LoadedModel, view: ImageView, prompts: PromptArrays) -> Chunk:
    boxes, points = _prompt_tensors(model, view, prompts)
    compiled = None if prompts.tokens != COMPILED_TOKENS else model.compiled
    decode = decode_image if compiled is None else compiled.decode
    masks = decode(model.sam, view.side, boxes=boxes, points=points, ambiguous=prompts.ambiguous)
    weight = torch.zeros_like(masks.iou) if masks.alpha is None else masks.alpha[:, 0]
    return masks.logits, masks.iou, weight, masks.token


def _predict_chunk(model: LoadedModel, view: ImageView, prompts: PromptArrays) -> Chunk:
    count = len(prompts)
    boxes, points = _prompt_tensors(model, view, prompts)
    hq = model.hq is not None and model.hq.enabled
    features = view.features if hq else replace(view.features, early=None)
    output = decode_prompts(model.sam, features, boxes=boxes, points=points)
    row = torch.arange(count, device=model.device)
    token = output.iou[:, 1:].argmax(dim=1) + 1 if prompts.ambiguous else torch.zeros_like(row)
    weight = torch.zeros_like(output.iou[:, 0]) if output.trace is None else output.trace.alpha[:, 0]
    logits, iou = output.logits[row, token], output.iou[row, token]
    if output.hq_logits is not None:
        logits = logits + output.hq_logits[:, 0]
    return logits, iou, weight, token


def _prompt_tensors(
    model: LoadedModel, view: ImageView, prompts: PromptArrays
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Boxes and points in pixels of the model's input, on its device."""
    boxes = points = None
    if prompts.boxes_xyxy is not None:
        boxes = _sent(torch.from_numpy(view.frame.to_model_xyxy(prompts.boxes_xyxy)), model)
    if prompts.points_xy is not None and prompts.point_labels is not None:
        coordinates = torch.from_numpy(view.frame.to_model_xy(prompts.points_xy))
        points = (_sent(coordinates, model), _sent(torch.from_numpy(prompts.point_labels), model))
    return boxes, points


def _sent(tensor: Tensor, model: LoadedModel) -> Tensor:
    """A tensor of the host on the model's device, in its turn: what the device has to do before is not waited for."""
    return tensor.to(model.device, non_blocking=model.device.type == "cuda")
