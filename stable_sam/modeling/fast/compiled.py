"""The fast encoder and decoder under `torch.compile`, limited to few shapes, because each shape is compiled anew.

The references are `BaseSam.fast_features` and `fast.decoder.decode_chosen_masks`, which it compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from stable_sam.modeling.bases.base import BaseSam, Points
from stable_sam.modeling.fast.decoder import ChosenMasks, ImageSide, decode_chosen_masks
from stable_sam.modeling.features import ImageFeatures

COMPILED_TOKENS = 2
"""Number of prompt tokens that the decoder is compiled for: a box or one point. Other numbers are rare, and each would
be one more shape."""
SHAPES = 64
"""Largest number of compiled programs that torch keeps for a function: one for each bucket, kind of prompt and state of
the plugin."""
Result = TypeVar("Result")


class CompiledPasses:
    """Runs `fast_features` and `decode_chosen_masks`, compiled at the first call of each shape, in a thread of its own.

    It has its own thread because torch keeps CUDA graphs for each thread. The results are copies, because the next pass
    overwrites a graph's outputs. The caller must let only one pass run at a time.
    """

    def __init__(self, *, graphs: bool, backend: str = "inductor") -> None:
        """`graphs` replays all kernels of a pass as one CUDA graph, on a GPU; `backend` is a backend of
        `torch.compile`."""
        mode = "reduce-overhead" if graphs else None
        self._graphs = graphs
        self._encode = torch.compile(_encode, dynamic=False, mode=mode, backend=backend)
        self._decode = torch.compile(decode_chosen_masks, dynamic=False, mode=mode, backend=backend)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compiled")

    def encode(self, sam: BaseSam, images: Tensor) -> ImageFeatures:
        """Run `sam.fast_features` under the caller's autocast, and return a copy of the features."""
        device = images.device.type
        half = torch.is_autocast_enabled(device)

        def call() -> ImageFeatures:
            with torch.autocast(device, torch.bfloat16, enabled=half):
                return self._encode(sam, images).map(torch.clone)

        return self._run(call)

    def decode(
        self,
        sam: BaseSam,
        image: ImageSide,
        *,
        boxes: Tensor | None = None,
        points: Points | None = None,
        ambiguous: bool = False,
    ) -> ChosenMasks:
        """Run `fast.decoder.decode_chosen_masks` on the prompts, padded to the next power of two.

        Returns copies of the results without the padding.
        """
        count = len(boxes if points is None else points[0])  # type: ignore[arg-type]  # there are boxes or points
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


def _encode(sam: BaseSam, images: Tensor) -> ImageFeatures:
    return sam.fast_features(images)


def bucket(count: int) -> int:
    """Return the smallest power of two that is at least `count`, the number of prompts."""
    return 1 << (count - 1).bit_length()


def _longer(rows: Tensor, more: int) -> Tensor:
    """Append the last of `rows` to them `more` times."""
    return rows if more == 0 else torch.cat((rows, rows[-1:].expand(more, *rows.shape[1:])))
