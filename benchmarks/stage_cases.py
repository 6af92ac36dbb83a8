"""The stages of `stages.py` that work on pixels and tensors, each with its input, the usual code and our code."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from segment_anything.utils.amg import calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from skimage import data as pictures

from benchmarks.model_path import some_boxes
from stable_sam.images.decode import DecodedImage, decode_for_input
from stable_sam.images.frames import Frame
from stable_sam.images.resize import resize_image
from stable_sam.refining.predict import PromptArrays, embed_image, embed_resized, frame_of, predict
from stable_sam.refining.refiner import Refiner, prompt_arrays
from stable_sam.refining.stability import jittered_prompts, prompt_stability, stability_score
from stable_sam.rle import decode_mask, encode_patch

SIZES = {"0.3 MP": (480, 640), "1.4 MP": (1024, 1365), "12 MP": (3000, 4000)}
PROMPTS = 8
JITTER = 8
"""K."""
OFFSET = 1.0
"""Of the stability score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison."""

    stage: str
    what: str
    usual: Callable[[], Any] | None
    """None: there is nothing to compare with."""
    ours: Callable[[], Any]
    difference: str = ""
    """Of what ours returns from what the usual code returns."""


def photograph(hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture of this size whose detail is as fine as its pixels: photographs side by side."""
    (height, width), tile = hw, pictures.astronaut()
    return np.tile(tile, (-(-height // len(tile)), -(-width // len(tile)), 1))[:height, :width]


def jpeg(hw: tuple[int, int], **options: Any) -> bytes:
    """The photograph as a camera stores it."""
    buffer = io.BytesIO()
    Image.fromarray(photograph(hw)).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def decode_cases(sides: Sequence[int]) -> Iterator[Case]:
    """Pillow's way to an array against `decode_for_input`, for all pixels and for models of these input sides."""
    for name, hw in SIZES.items():
        for kind, options in (("", {}), (", progressive", {"progressive": True})):
            data = jpeg(hw, **options)

            def usual(data: bytes = data) -> NDArray[np.uint8]:
                with Image.open(io.BytesIO(data)) as image:
                    return np.array(ImageOps.exif_transpose(image).convert("RGB"))

            for side in (None, *sides):

                def ours(data: bytes = data, side: int | None = side) -> DecodedImage:
                    return decode_for_input(data, name="x", max_pixels=10**8, side=side)

                picture = ours()
                if side is None:
                    yield Case(stage="decode", what=f"{name}{kind}, all pixels", usual=usual, ours=ours,
                               difference=_equal(usual(), picture.pixels))  # fmt: skip
                elif picture.scale > 1:
                    frame = Frame(hw, side)
                    difference = _grey(resize_image(usual(), frame), resize_image(picture.pixels, frame, picture.scale))
                    yield Case(stage="decode", what=f"{name}{kind}, 1/{picture.scale} for {side} px", usual=usual,
                               ours=ours, difference=difference)  # fmt: skip


def resize_cases(sides: Sequence[int]) -> Iterator[Case]:
    """SAM's resize of all pixels against ours of what was decoded for the model."""
    for name, hw in SIZES.items():
        data = jpeg(hw)
        pixels = decode_for_input(data, name="x", max_pixels=10**8).pixels
        for side in sides:
            frame, picture = Frame(hw, side), decode_for_input(data, name="x", max_pixels=10**8, side=side)
            transform = ResizeLongestSide(side)

            def usual(transform: ResizeLongestSide = transform, pixels: NDArray[np.uint8] = pixels) -> Any:
                return transform.apply_image(pixels)

            def ours(picture: DecodedImage = picture, frame: Frame = frame) -> NDArray[np.uint8]:
                return resize_image(picture.pixels, frame, picture.scale)

            what = f"{name} to {side} px" + (f", decoded at 1/{picture.scale}" if picture.scale > 1 else "")
            yield Case(stage="resize", what=what, usual=usual, ours=ours, difference=_grey(usual(), ours()))


def encode_cases(refiner: Refiner) -> Iterator[Case]:
    """The base's own encoder against ours, which adds what the decoder needs of the image for every prompt."""
    hw, sam = SIZES["1.4 MP"], refiner.model.sam
    frame = frame_of(refiner.model, hw)
    resized = resize_image(photograph(hw), frame)

    @torch.inference_mode()
    def usual() -> torch.Tensor:
        image = torch.as_tensor(resized).permute(2, 0, 1)[None]
        return sam.image_encoder(sam.preprocess(image.float()))

    def ours() -> Any:
        return embed_resized(refiner.model, resized, frame)

    off = (usual() - ours().features.embedding).abs().max().item()
    yield Case(stage="encode", what="one picture", usual=usual, ours=ours, difference=_off(off))


def prompt_cases(refiner: Refiner) -> Iterator[Case]:
    """segment_anything's decoder for all boxes at once against ours."""
    hw = SIZES["1.4 MP"]
    view = embed_image(refiner.model, photograph(hw))
    arrays = prompt_arrays(some_boxes(hw, PROMPTS))

    def answer(reference: bool) -> Any:
        return predict(refiner.model, view, arrays, PROMPTS, reference=reference)

    yield Case(stage="prompts", what=f"{PROMPTS} boxes", usual=lambda: answer(True), ours=lambda: answer(False),
               difference=_iou(answer(True).logits > 0, answer(False).logits > 0))  # fmt: skip


def jitter_cases(refiner: Refiner) -> Iterator[Case]:
    """prompt_stability of one prompt: K moved boxes through the decoder, mSF of their masks on the model's input."""
    hw = SIZES["1.4 MP"]
    view = embed_image(refiner.model, photograph(hw))
    boxes, _ = jittered_prompts(some_boxes(hw, 1)[0], JITTER, 0.1, object_side=0.0, image_hw=hw)
    arrays = PromptArrays(boxes_xyxy=boxes)

    def usual() -> float:
        logits = predict(refiner.model, view, arrays, JITTER, reference=True).logits
        return prompt_stability([view.frame.to_input(one) > 0 for one in logits])

    def ours() -> float:
        return prompt_stability(view.frame.masks_on_input(predict(refiner.model, view, arrays, JITTER).logits))

    yield Case(stage="jitter", what=f"one box, K = {JITTER}", usual=usual, ours=ours,
               difference=_off(abs(usual() - ours())))  # fmt: skip


def upsample_cases(refiner: Refiner) -> Iterator[Case]:
    """A mask's logits to original size: SAM's two steps in torch against the rectangle that holds the object."""
    for name, frame, logits in _objects(refiner.input_side):
        low = torch.from_numpy(logits)[None, None]

        def usual(low: torch.Tensor = low, frame: Frame = frame) -> torch.Tensor:
            return refiner.model.sam.postprocess_masks(low, frame.resized_hw, frame.original_hw)

        def ours(logits: NDArray[np.float32] = logits, frame: Frame = frame) -> Any:
            return frame.to_original_above(logits, -OFFSET)

        patch = ours()
        mask = np.zeros(frame.original_hw, np.bool_)
        mask[patch.top : patch.top + patch.values.shape[0], patch.left : patch.left + patch.values.shape[1]] = (
            patch.values > 0
        )
        yield Case(stage="upsample", what=name, usual=usual, ours=ours,
                   difference=_iou(usual()[0, 0].numpy() > 0, mask))  # fmt: skip


def rle_cases(side: int) -> Iterator[Case]:
    """Run lengths, area and box: COCO's functions on a mask in C order against those of the rectangle."""
    for name, frame, logits in _objects(side):
        whole = np.ascontiguousarray(frame.to_original(logits))
        patch = frame.to_original_above(logits, -OFFSET)

        def usual(whole: NDArray[np.float32] = whole) -> Any:
            rle = coco_mask.encode(np.asfortranarray(whole > 0))
            return rle, coco_mask.area(rle), coco_mask.toBbox(rle)

        def ours(patch: Any = patch, frame: Frame = frame) -> Any:
            return encode_patch(patch.values, patch.top, patch.left, frame.original_hw)

        encoded = ours()
        yield Case(stage="rle", what=name, usual=usual, ours=ours,
                   difference=_equal(whole > 0, decode_mask(encoded.size_hw, encoded.counts)))  # fmt: skip


def score_cases(side: int) -> Iterator[Case]:
    """stability_score: SAM's function on all logits against ours on the rectangle's."""
    for name, frame, logits in _objects(side):
        whole = torch.from_numpy(np.ascontiguousarray(frame.to_original(logits)))[None]
        patch = frame.to_original_above(logits, -OFFSET)

        def usual(whole: torch.Tensor = whole) -> torch.Tensor:
            return calculate_stability_score(whole, 0.0, OFFSET)

        def ours(patch: Any = patch) -> float:
            return stability_score(patch.values, OFFSET)

        yield Case(stage="score", what=name, usual=usual, ours=ours,
                   difference=_off(abs(float(usual()) - ours())))  # fmt: skip


def _objects(side: int) -> Iterator[tuple[str, Frame, NDArray[np.float32]]]:
    """Logits of a round object that takes a tenth or a half of the picture's width."""
    cells = side // 4
    y, x = np.mgrid[:cells, :cells]
    grain = np.random.default_rng(0).normal(0.0, 0.2, (cells, cells))
    for name, hw in SIZES.items():
        for share in (0.1, 0.5):
            logits = 0.5 * (share / 2 * cells - np.hypot(y - 0.37 * cells, x - 0.5 * cells)) + grain
            yield f"{name}, object of {share:g} of the width", Frame(hw, side), logits.astype(np.float32)


def _grey(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> str:
    mean = float(np.abs(one.astype(np.int16) - other).mean())
    return f"{mean:.2g} grey levels" if mean else "none"


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> str:
    union = np.count_nonzero(one | other)
    return f"IoU {np.count_nonzero(one & other) / union if union else 1.0:.5f}"


def _off(by: float) -> str:
    return f"{by:.0e}" if by else "none"


def _equal(one: NDArray[np.generic], other: NDArray[np.generic]) -> str:
    return "none" if np.array_equal(one, other) else "NOT EQUAL"
