"""Runs the encoder on an image, and the decoder on its prompts in original pixels, chunk by chunk."""

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
from stable_sam.modeling.fast.decoder import ImageSide, can_decode, decode_chosen_masks, image_side
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.hq import encode_with_early
from stable_sam.modeling.load import LoadedModel
from stable_sam.modeling.single_mask import best_multimask, single_tokens
from stable_sam.timing import keeps_spans, turn

CELLS_IN_CACHE = 5000
"""Largest number of cells of the decoder's grid, summed over the prompts of a pass, whose features stay in a CPU's
caches.

A cell takes a few times 1 kB; the cells are those of 8 prompts of `nano` or 1 of a base with an input of 1024 pixels.
"""
Chunk = tuple[Tensor, Tensor, Tensor, Tensor]
"""The fields of a `Prediction`, in their order, as tensors on the model's device."""


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image, or a tile of it, as the decoder reads it."""

    features: ImageFeatures
    """Features in float32, with early ones when the model has HQ-SAM's branch."""
    frame: Frame
    side: ImageSide
    """The tensors of the fast decoder that all prompts share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptArrays:
    """P prompts of one image in original pixels, all with the same number of tokens, so that none is padded."""

    boxes_xyxy: NDArray[np.float64] | None = None
    """Boxes (P, 4); None for prompts without one."""
    points_xy: NDArray[np.float64] | None = None
    """Points (P, N, 2); None for prompts without points."""
    point_labels: NDArray[np.int64] | None = None
    """Labels (P, N) of the points: 1 is object, 0 background."""

    def __len__(self) -> int:
        first = self.points_xy if self.boxes_xyxy is None else self.boxes_xyxy
        return 0 if first is None else len(first)

    @property
    def ambiguous(self) -> bool:
        """Whether each prompt is a single point, which SAM answers with three masks: it may mean a part of an object,
        the object or a group of objects."""
        return self.boxes_xyxy is None and self.points_xy is not None and self.points_xy.shape[1] == 1

    @property
    def tokens(self) -> int:
        """Number of prompt tokens of one prompt; SAM adds a padding token to points without a box, and SAM 2, which is
        not counted here, to a box, too."""
        points = 0 if self.points_xy is None else self.points_xy.shape[1]
        return points + (1 if self.boxes_xyxy is None else 2)

    def rows(self, start: int, stop: int) -> PromptArrays:
        """Return the prompts from index `start` up to, but not including, `stop`."""
        return PromptArrays(
            boxes_xyxy=None if self.boxes_xyxy is None else self.boxes_xyxy[start:stop],
            points_xy=None if self.points_xy is None else self.points_xy[start:stop],
            point_labels=None if self.point_labels is None else self.point_labels[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """One mask for each of P prompts."""

    logits: NDArray[np.float32]
    """Mask logits (P, h, w) at a quarter of the model's input resolution; above 0 is object."""
    iou: NDArray[np.float32]
    """Predicted IoU (P,), the IoU head's estimate for this mask."""
    dsp_weight: NDArray[np.float32]
    """Alpha_1 of the plugin (P,); 0 without a plugin."""
    token: NDArray[np.int64]
    """Mask token (P,) that made the mask: 0 is SAM's single mask, 1 to 3 are its multimask output."""


def embed_image(model: LoadedModel, image: NDArray[np.uint8] | DecodedImage) -> ImageView:
    """Run the encoder on an upright RGB image (H, W, 3) in the dtype of the model's identity."""
    decoded = image if isinstance(image, DecodedImage) else DecodedImage(image, (image.shape[0], image.shape[1]))
    frame = frame_of(model, decoded.original_hw)
    return embed_resized(model, resize_image(decoded.pixels, frame, decoded.scale), frame)


def frame_of(model: LoadedModel, original_hw: tuple[int, int]) -> Frame:
    """Return the frame of an image of (height, width) original pixels in the square input of `model`."""
    return Frame(original_hw, model.sam.input_side, fit=model.base.fit)


@torch.inference_mode()
def embed_resized(model: LoadedModel, resized: NDArray[np.uint8], frame: Frame) -> ImageView:
    """Run the encoder on an RGB image (h, w, 3) that was resized to `frame.resized_hw` before."""
    image = torch.from_numpy(np.require(resized, requirements=["C", "W"])).permute(2, 0, 1)[None]
    square = model.sam.preprocess(_sent(image, model).float())
    half = model.identity.dtype == "bfloat16"
    with turn(model.lock), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        if model.hq is not None:
            features = encode_with_early(model.sam, square)
        else:
            compiled = model.compiled
            features = model.sam.fast_features(square) if compiled is None else compiled.encode(model.sam, square)
        if model.device.type == "cuda" and keeps_spans():
            torch.cuda.synchronize(model.device)
    features = features.map(torch.Tensor.float)
    return ImageView(features, frame, image_side(model.sam, features))


def predict(
    model: LoadedModel, view: ImageView, prompts: PromptArrays, chunk_size: int, *, reference: bool = False
) -> Prediction:
    """Return the results of `predict_tensors` as arrays."""
    # The copies wait for the GPU without the model's lock, so that other threads can give the GPU work meanwhile.
    fields = predict_tensors(model, view, prompts, chunk_size, reference=reference)
    logits, iou, weight, token = (field.cpu().numpy() for field in fields)
    return Prediction(logits, iou, weight, token)


@torch.inference_mode()
def predict_tensors(
    model: LoadedModel, view: ImageView, prompts: PromptArrays, chunk_size: int, *, reference: bool = False
) -> Chunk:
    """Predict the masks of all `prompts`, at most `chunk_size` of them at a time.

    A mask is SAM's single mask, or for an ambiguous prompt that of its three masks whose predicted IoU is highest. SAM
    2 also replaces single masks that are unstable (`modeling.single_mask`). HQ-SAM, when it is on, adds the logits of
    its one mask to the chosen mask; the predicted IoU stays SAM's, as published. reference: always run SAM's own
    modules, so that hooks on them see every pass.
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
    decode = decode_chosen_masks if compiled is None else compiled.decode
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
    if prompts.ambiguous:
        token = best_multimask(output.iou)
    else:
        token = single_tokens(model.sam, output.logits[:, 0], output.iou)
    weight = torch.zeros_like(output.iou[:, 0]) if output.trace is None else output.trace.alpha[:, 0]
    logits, iou = output.logits[row, token], output.iou[row, token]
    if output.hq_logits is not None:
        logits = logits + output.hq_logits[:, 0]
    return logits, iou, weight, token


def _prompt_tensors(
    model: LoadedModel, view: ImageView, prompts: PromptArrays
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Return boxes, and points with labels, in pixels of the model's input, on its device."""
    boxes = points = None
    if prompts.boxes_xyxy is not None:
        boxes = _sent(torch.from_numpy(view.frame.to_model_xyxy(prompts.boxes_xyxy)), model)
    if prompts.points_xy is not None and prompts.point_labels is not None:
        coordinates = torch.from_numpy(view.frame.to_model_xy(prompts.points_xy))
        points = (_sent(coordinates, model), _sent(torch.from_numpy(prompts.point_labels), model))
    return boxes, points


def _sent(tensor: Tensor, model: LoadedModel) -> Tensor:
    """Copy a tensor from the host to the model's device without waiting for the work queued on the device."""
    return tensor.to(model.device, non_blocking=model.device.type == "cuda")
