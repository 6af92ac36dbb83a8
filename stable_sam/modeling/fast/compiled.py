"""The encoder and the fast decoder through `torch.compile`, for few shapes, so that little has to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from stable_sam.modeling.fast.decoder import ChosenMasks, ImageSide, decode_image
from stable_sam.modeling.fast.encoder import encode
from stable_sam.modeling.features import ImageFeatures

COMPILED_TOKENS = 2
"""Prompts of so many tokens, a box or one point, are compiled for; others are rare, and each number is a shape more."""
SHAPES = 64
"""Programs of a function that torch keeps: buckets, times boxes and points, times a plugin that is switched off."""
Result = TypeVar("Result")


class CompiledPasses:
    """`encode` and `decode_image`, compiled at the first call of each shape, and in a thread of their own.

    torch keeps CUDA graphs for each thread; and their answers are overwritten by the next pass, so what is returned
    here is a copy. The caller lets one pass run at a time.
    """

    def __init__(self, *, graphs: bool, backend: str = "inductor") -> None:
        """graphs: on a GPU, start the kernels of a pass at once (CUDA graphs). backend: torch's name of a compiler."""
        mode = "reduce-overhead" if graphs else None
        self._graphs = graphs
        self._encode = torch.compile(encode, dynamic=False, mode=mode, backend=backend)
        self._decode = torch.compile(decode_image, dynamic=False, mode=mode, backend=backend)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compiled")

    def encode(self, sam: Sam, images: Tensor) -> ImageFeatures:
        """`fast_encoder.encode` in the caller's arithmetic."""
        device = images.device.type
        half = torch.is_autocast_enabled(device)

        def call() -> ImageFeatures:
            with torch.autocast(device, torch.bfloat16, enabled=half):
                return self._encode(sam, images).map(torch.clone)

        return self._run(call)

    def decode(
        self,
        sam: Sam,
        image: ImageSide,
        *,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
        ambiguous: bool = False,
    ) -> ChosenMasks:
        """`fast_decoder.decode_image`, on the next power of two of prompts, of which those too many are dropped."""
        count = len(boxes if points is None else points[0])  # type: ignore[arg-type]  # one of both is there
        more = bucket(count) - count
        boxes = None if boxes is None else _longer(boxes, more)
        points = None if points is None else (_longer(points[0], more), _longer(points[1], more))

        def call() -> ChosenMasks:
            masks = self._decode(sam, image, boxes=boxes, points=points, ambiguous=ambiguous)
            alpha = None if masks.alpha is None else masks.alpha[:count].clone()
            return ChosenMasks(
                masks.logits[:count].clone(), masks.iou[:count].clone(), masks.token[:count].clone(), alpha
            )

        return self._run(call)

    def _run(self, call: Callable[[], Result]) -> Result:
        def run() -> Result:
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            patched: Any = torch._dynamo.config.patch(recompile_limit=SHAPES)
            with torch.inference_mode(), patched:
                return call()

        return self._thread.submit(run).result()


def bucket(count: int) -> int:
    """The number of prompts, a power of two, that `count` of them are decoded as."""
    return 1 << (count - 1).bit_length()


def _longer(rows: Tensor, more: int) -> Tensor:
    """`rows` and the last of them again, `more` times."""
    return rows if more == 0 else torch.cat((rows, rows[-1:].expand(more, *rows.shape[1:])))
