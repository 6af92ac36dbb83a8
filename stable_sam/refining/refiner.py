"""The `Refiner`, which turns the weak prompts of an image into masks with scores.

In the pipeline, only this module sees pixels, tensors and records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.errors import ImageError
from stable_sam.identity import ModelIdentity
from stable_sam.images.decode import DecodedImage, decode_for_input, upright_rgb
from stable_sam.images.frames import Frame
from stable_sam.images.tile_pixels import TilePixels
from stable_sam.images.tiles import TilePlan, prompt_in, tile_rule
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.records import Prompt, RefinedMask, Window
from stable_sam.refining.predict import ImageView, Prediction, PromptArrays, embed_resized, predict, predict_tensors
from stable_sam.refining.second_pass import ask_mirrored, consensus, mirrored_view
from stable_sam.refining.stability import jittered_prompts, prompt_stability
from stable_sam.refining.stability_on_device import prompt_stabilities
from stable_sam.refining.steps import InferredPrompts, PreparedImage, finish_prompts, in_order, prepare
from stable_sam.runs.calibrated import calibrated_routing
from stable_sam.timing import timed


class Refiner:
    """Loads a model once; `refine_image` is then a pure function of the image and its prompts.

    Prompts that pass the decoder together have the same number of tokens, so none is padded, and a prompt's mask does
    not depend on the other prompts except by rounding (scores within 1e-4, masks of IoU above 0.999).
    """

    def __init__(self, config: RefinerConfig | None = None, routing: RoutingConfig | None = None) -> None:
        """Load the model that `config` names. Raises `ConfigError`, `WeightsError` and `StorageError`."""
        self.config = config or RefinerConfig()
        self.model = load_model(self.config)
        self.routing = calibrated_routing(routing or RoutingConfig(), self.config, self.model.identity)

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the loaded model, for provenance."""
        return self.model.identity

    @property
    def input_side(self) -> int:
        """Side of the model's square input in pixels."""
        return self.model.sam.input_side

    def refine_image(self, image: NDArray[np.uint8] | Image.Image, prompts: Sequence[Prompt]) -> list[RefinedMask]:
        """Return one mask for each of `prompts`, in their order; that of an unusable prompt has status "failed".

        image: (H, W, 3), RGB, uint8 and upright, or a Pillow image of any mode, which is turned upright here. Prompts
        are in its upright pixels. The encoder runs once for each view that a usable prompt needs: the image, tiles of
        it, and these mirrored. Raises `ImageError` for any other array.
        """
        pixels = rgb_pixels(image)
        decoded = DecodedImage(pixels, (pixels.shape[0], pixels.shape[1]))
        return self.refine_prepared(prepare(decoded, prompts, self.input_side, self.config, TilePixels(decoded)))

    def refine_file(self, data: bytes, prompts: Sequence[Prompt], *, name: str = "image") -> list[RefinedMask]:
        """Return one mask for each of `prompts`, in their order, for the bytes of an image file.

        The file is decoded as in the pipeline and on the command line (`images.decode.decode_for_input`): a large JPEG
        at a reduced scale, which takes a fraction of the time and memory and gives masks that differ a little from
        those of all its pixels. When tiles need all pixels, it is also decoded in full. Errors call the image `name`.
        Raises `ImageError` when the file cannot be decoded.
        """
        decoded = self.decode(data, name=name)
        tiles = TilePixels(decoded, file=data, name=name, max_pixels=self.config.max_image_pixels)
        return self.refine_prepared(prepare(decoded, prompts, self.input_side, self.config, tiles))

    def decode(self, data: bytes, *, name: str = "image") -> DecodedImage:
        """Decode the bytes of an image file as `refine_file` does; raises `ImageError` when that is not possible."""
        limit, fit = self.config.max_image_pixels, self.model.base.fit
        return decode_for_input(data, name=name, max_pixels=limit, side=self.input_side, fit=fit)

    def refine_prepared(self, image: PreparedImage) -> list[RefinedMask]:
        """Return one mask for each prompt of a prepared image, in their order.

        The logits of at most `prompt_chunk_size` prompts exist at a time. Raises `ImageError` when a tile cannot be
        cut.
        """
        return in_order(
            image.prompts,
            (
                row
                for some in self.infer(image)
                for row in finish_prompts(image.prompts, some, self.config, self.routing)
            ),
        )

    def infer(self, image: PreparedImage) -> Iterator[InferredPrompts]:
        """Run the model on one view of the image after the other, for at most `prompt_chunk_size` prompts at a time.

        Raises `ImageError` when a tile cannot be cut.
        """
        rule = None if image.tiles is None else tile_rule(self.config, self.input_side)
        plan = TilePlan(rule, image.frame.original_hw, image.prompts)
        whole = cache(lambda: Encoded(self.model, image.pixels, image.frame))

        def encode(window: Window | None) -> Encoded:
            frame = replace(image.frame, window_xywh=window)
            return whole() if window is None else Encoded(self.model, image.pixels_of(frame), frame)

        for encoded, asked, prediction in ask_views(
            self.model, plan, image.prompts, encode, self.config.prompt_chunk_size
        ):
            yield self._inferred(encoded.view, asked, prediction, encoded, plan)

    def refine_group(self, view: ImageView, prompts: list[Prompt]) -> Iterator[RefinedMask]:
        """Yield the masks of checked prompts, all with the same number of tokens, on a view that is already encoded.

        There is no second pass. Only one mask of original size exists at a time.
        """
        prediction = _ask(self.model, view, prompts, self.config.prompt_chunk_size)
        inferred = self._inferred(view, dict(enumerate(prompts)), prediction)
        for _, mask in finish_prompts(prompts, inferred, self.config, self.routing):
            yield mask

    def _inferred(
        self,
        view: ImageView,
        prompts: Mapping[int, Prompt],
        prediction: Prediction,
        encoded: Encoded | None = None,
        plan: TilePlan | None = None,
    ) -> InferredPrompts:
        """Add prompt stability and the second pass to the first pass's `prediction` of `prompts`.

        The keys of `prompts` are indices of the image's prompts. There is no second pass when `encoded`, whose pixels
        it mirrors, is None.
        """
        chosen = list(prompts.values())
        stabilities: Sequence[float | None] = [None] * len(chosen)
        if self.config.jitter_count:
            with timed("jitter"):
                stabilities = self._prompt_stabilities(view, chosen, prediction)
        passes: list[str | None] = [None] * len(chosen)
        poor = self._poor(prediction)
        if encoded is not None and len(poor):
            with timed("second_pass"):
                arrays = prompt_arrays([chosen[row] for row in poor])
                logits, iou = ask_mirrored(self.model, encoded.mirrored, arrays, self.config.prompt_chunk_size)
                prediction.logits[poor] = consensus(prediction.logits[poor], logits)
                prediction.iou[poor] = (prediction.iou[poor] + iou) / 2
            for row in poor:
                passes[row] = self.config.second_pass
        return InferredPrompts(
            frame=view.frame,
            indices=tuple(prompts),
            logits=prediction.logits,
            iou=prediction.iou,
            dsp_weight=prediction.dsp_weight,
            prompt_stability=tuple(stabilities),
            second_pass=tuple(passes),
            view=tuple(None if plan is None else plan.view(index) for index in prompts),
        )

    def _poor(self, prediction: Prediction) -> NDArray[np.intp]:
        """Return the rows whose alpha_1 calls for a second pass; none when it is off or there is no plugin."""
        host = self.model.host
        limit = self.config.second_pass_from
        if limit is None or host is None or not host.enabled:
            return np.empty(0, np.intp)
        return np.flatnonzero(prediction.dsp_weight >= limit)

    def _prompt_stabilities(self, view: ImageView, prompts: list[Prompt], prediction: Prediction) -> list[float]:
        """Compute the mSF of K jittered prompts for each prompt, on masks at the resolution of the model's input."""
        count, frame = self.config.jitter_count, view.frame
        jittered = [
            jittered_prompts(
                prompt, count, self.config.jitter_scale,
                # The jitter of a box depends on its own sides, so the object's size is needed for points alone.
                object_side=0.0 if prompt.box_xyxy else _object_side(frame, logits),
                image_hw=frame.original_hw,
                window_xywh=frame.window_xywh,
            )
            for prompt, logits in zip(prompts, prediction.logits, strict=True)
        ]  # fmt: skip
        boxes = [box for box, _ in jittered if box is not None]
        points = [point for _, point in jittered if point is not None]
        nearby = PromptArrays(
            boxes_xyxy=np.concatenate(boxes) if boxes else None,
            points_xy=np.concatenate(points) if points else None,
            point_labels=np.repeat([p.point_labels for p in prompts], count, axis=0) if points else None,
        )
        logits, *_ = predict_tensors(self.model, view, nearby, self.config.prompt_chunk_size)
        per_prompt = logits.view(len(prompts), count, *logits.shape[1:])
        if self.model.device.type == "cuda":
            return prompt_stabilities(per_prompt, frame)
        # A CPU resizes only the part of each mask in which the object lies.
        return [prompt_stability(frame.masks_on_input(group.cpu().numpy())) for group in per_prompt]


class Encoded:
    """A view of an image after the encoder; the mirrored view is encoded when a second pass first needs it."""

    def __init__(self, model: LoadedModel, pixels: NDArray[np.uint8], frame: Frame) -> None:
        self._model = model
        self._pixels = pixels
        with timed("encode"):
            self.view = embed_resized(model, pixels, frame)

    @cached_property
    def mirrored(self) -> ImageView:
        """The mirrored view after the encoder."""
        return mirrored_view(self._model, self._pixels, self.view.frame)


def ask_views(
    model: LoadedModel,
    plan: TilePlan,
    prompts: Sequence[Prompt],
    encode: Callable[[Window | None], Encoded],
    chunk_size: int,
) -> Iterator[tuple[Encoded, dict[int, Prompt], Prediction]]:
    """Ask every prompt of `plan` in its view, and again in another view when the first answer makes that necessary.

    prompts: those that the plan was made for. encode: encodes the view of a window, or the whole image for None.
    Yields a view, at most `chunk_size` prompts as they were asked in it, by their indices in `prompts`, and the final
    answers to them. Every usable prompt is yielded once.
    """
    for window, indices in plan.views():
        encoded = encode(window)
        asked = {index: prompt_in(window, prompts[index]) for index in indices}
        for group in _groups(asked, chunk_size):
            prediction = _ask(model, encoded.view, list(group.values()), chunk_size)
            stays = [
                (row, index) for row, index in enumerate(group)
                if not plan.asks_again(index, encoded.view.frame, prediction.logits[row])
            ]  # fmt: skip
            if len(stays) < len(group):
                rows = [row for row, _ in stays]
                prediction = Prediction(
                    prediction.logits[rows], prediction.iou[rows], prediction.dsp_weight[rows], prediction.token[rows]
                )
            if stays:
                yield encoded, {index: group[index] for _, index in stays}, prediction


def _ask(model: LoadedModel, view: ImageView, prompts: Sequence[Prompt], chunk_size: int) -> Prediction:
    with timed("decode_prompts"):
        return predict(model, view, prompt_arrays(prompts), chunk_size)


def _object_side(frame: Frame, logits: NDArray[np.float32]) -> float:
    """Return the side, in original pixels, of a square with the mask's area.

    The area is measured on the model's input, because the mask of original size may be made in another process.
    """
    [inside] = frame.masks_on_input(logits[None])
    return sqrt(np.count_nonzero(inside) * prod(frame.region_hw) / prod(frame.resized_hw))


def _groups(prompts: Mapping[int, Prompt], chunk_size: int) -> Iterator[dict[int, Prompt]]:
    """Split prompts into groups of at most `chunk_size` with the same kind and number of tokens, in order."""
    kinds: dict[tuple[bool, int], list[int]] = {}
    for index, prompt in prompts.items():
        kinds.setdefault((prompt.box_xyxy is not None, len(prompt.points_xy)), []).append(index)
    for indices in kinds.values():
        for start in range(0, len(indices), chunk_size):
            yield {index: prompts[index] for index in indices[start : start + chunk_size]}


def prompt_arrays(prompts: Sequence[Prompt]) -> PromptArrays:
    """Convert prompts with the same kind and number of tokens to the arrays that `predict` takes."""
    first = prompts[0]
    return PromptArrays(
        boxes_xyxy=np.array([p.box_xyxy for p in prompts], dtype=np.float64) if first.box_xyxy else None,
        points_xy=np.array([p.points_xy for p in prompts], dtype=np.float64) if first.points_xy else None,
        point_labels=np.array([p.point_labels for p in prompts], dtype=np.int64) if first.points_xy else None,
    )


def rgb_pixels(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """Return a Pillow image, turned upright, as RGB (H, W, 3), or such an array unchanged.

    Raises `ImageError` for an array of another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f"expected an image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    return image
