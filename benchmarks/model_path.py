"""Compare the refiner with the loop that people write with a base's own predictor: same architecture, same rows.

    python benchmarks/model_path.py --model nano --out model_path.json --markdown model_path.md
    python benchmarks/model_path.py --model vit_b --prompts 1 5 --rounds 2
    python benchmarks/model_path.py --model nano vit_t vit_b sam2.1_t --dtype float32 bfloat16 --prompts 1 10 --rounds 2

The loop is `SamPredictor.set_image`, then `predict` and COCO's run lengths for each box; with jitter also `predict` for
each of its K jittered boxes and mSF of their masks. MobileSAM's predictor is the same code. Of SAM 2.1 the loop is
transformers' `Sam2Model`. Both sides start from the decoded image and end with run lengths and
scores. They take turns within every round, and a ratio is the median of the rounds' ratios. The CPU time of all threads
is compared, too, because other work on the machine stretches it less. `nano` has its bundled weights, other bases
random ones, which have the same speed. In bfloat16 both sides run the image encoder under autocast. The refiner's
second pass is off, because the loop has none.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from segment_anything import SamPredictor
from skimage import data

from benchmarks.gpu_models import build
from benchmarks.timing import Seconds, add_outputs, cell, spread, timed, write
from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.stability import jittered_prompts, prompt_stability
from stable_sam.rle import decode_mask

Times = dict[tuple[int, int], dict[str, list[Seconds]]]
"""(prompts, K) to side to the seconds of every round, by the clock and of CPU."""
WARM_UP = 1
"""Rounds not counted: the first passes choose algorithms and fill caches."""


def main() -> None:
    """Measure, print a table and write JSON and Markdown."""
    options = _options()
    torch.set_num_threads(options.threads)
    results = [
        _compare(load_refiner(name, dtype, options), hw, options)
        for name in options.model
        for dtype in options.dtype
        for hw in options.image_hw
    ]
    text = "\n\n".join(_markdown(result) for result in results) + "\n"
    write(results, text, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(BASES), nargs="+", default=["nano"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+", default=["float32"])
    parser.add_argument("--plugin", action="store_true", help="a random plugin; nano has its own always")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--jitter", type=int, nargs="+", default=[0, 8], help="K")
    parser.add_argument("--image-hw", type=_size, nargs="+", default=[(480, 640), (1024, 1365)], metavar="HxW")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-loop", action="store_true", help="the refiner alone: what K costs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu")
    add_outputs(parser)
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def load_refiner(name: str, dtype: str, options: argparse.Namespace) -> Refiner:
    """The refiner of a base, with `--plugin` and on `--device`."""
    model = build(name, options.device, plugin=options.plugin, dtype=dtype)
    given = {"model": name, "dtype": dtype, "second_pass": "off", "tiles": "off"}
    with mock.patch("stable_sam.refining.refiner.load_model", return_value=model):
        return Refiner(RefinerConfig.from_dict(given))


def _compare(refiner: Refiner, hw: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every round by number of prompts and K, of the loop and of the refiner."""
    picture = Image.fromarray(data.chelsea()).resize(hw[::-1], Image.Resampling.BICUBIC)
    pixels = np.array(picture)
    prompts = some_boxes(hw, max(options.prompts))
    predictor = _predictor(refiner, options)
    cases = [(count, jitter) for count in options.prompts for jitter in options.jitter]
    times: Times = {case: {"loop": [], "refiner": []} for case in cases}
    rows: list[RefinedMask] = []
    masks: list[NDArray[np.bool_]] = []
    for number in range(WARM_UP + options.rounds):
        for count, jitter in cases:
            refiner.config = refiner.config.model_copy(update={"jitter_count": jitter})
            sides: dict[str, Callable[[], Any]] = {
                "loop": lambda count=count, jitter=jitter: _loop(predictor, pixels, prompts[:count], jitter),
                "refiner": lambda count=count: refiner.refine_image(pixels, prompts[:count]),
            }
            if predictor is None:
                del sides["loop"]
            for side in list(sides)[:: 1 if number % 2 else -1]:
                seconds, answer = timed(sides[side], refiner.model.device)
                if number >= WARM_UP:
                    times[count, jitter][side].append(seconds)
                rows, masks = (answer, masks) if side == "refiner" else (rows, answer)
    return {
        "model": refiner.identity.model_id,
        "dtype": refiner.identity.dtype,
        "input_size": refiner.input_side,
        "image_hw": hw,
        "device": str(refiner.model.device),
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "load_average": os.getloadavg()[0],
        # The loop of SAM 2.1 has other random weights.
        "agreement": [
            _iou(decode_mask(hw, str(row.mask_counts)), mask)
            for row, mask in zip(rows, masks, strict=False)
            if not isinstance(predictor, _Sam2)
        ],
        "cases": [_case(count, jitter, times) for count, jitter in cases],
    }


class _Sam:
    """segment_anything's predictor."""

    def __init__(self, refiner: Refiner) -> None:
        self.predictor, self.model = SamPredictor(refiner.model.sam), refiner.model

    def set_image(self, pixels: NDArray[np.uint8]) -> None:
        half = self.model.identity.dtype == "bfloat16"
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=half):
            self.predictor.set_image(pixels)
        self.predictor.features = self.predictor.features.float()

    def predict(self, box: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float]:
        sam, drawn = self.predictor.model, None
        if sam.draws_prompts:
            resized = self.predictor.transform.apply_boxes(box, self.predictor.original_size)
            drawn = sam.mask_prompts(torch.as_tensor(resized, dtype=torch.float32), None)[0].numpy()
        masks, scores, _ = self.predictor.predict(box=box, mask_input=drawn, multimask_output=False)
        return masks[0], float(scores[0])


class _Sam2:
    """transformers' SAM 2.1 tiny with random weights."""

    def __init__(self, refiner: Refiner) -> None:
        import transformers

        self.model, self.half = transformers.Sam2Model(transformers.Sam2Config()).eval(), refiner.identity.dtype
        self.processor = transformers.Sam2ImageProcessor()

    @torch.inference_mode()
    def set_image(self, pixels: NDArray[np.uint8]) -> None:
        self.hw = pixels.shape[:2]
        given = self.processor(images=pixels, return_tensors="pt")["pixel_values"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half == "bfloat16"):
            embeddings = self.model.get_image_embeddings(given)
        self.embeddings = [embedding.float() for embedding in embeddings]

    @torch.inference_mode()
    def predict(self, box: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float]:
        scale = 1024 / np.array(self.hw[::-1])
        boxes = torch.tensor(box * np.tile(scale, 2), dtype=torch.float32)[None, None]
        output = self.model(image_embeddings=self.embeddings, input_boxes=boxes, multimask_output=False)
        masks = self.processor.post_process_masks([output.pred_masks[0]], [self.hw])[0]
        return masks[0, 0].numpy(), float(output.iou_scores[0, 0, 0])


def _predictor(refiner: Refiner, options: argparse.Namespace) -> _Sam | _Sam2 | None:
    name = refiner.model.base.name
    if options.no_loop:
        return None
    if refiner.model.base.family != "sam2":
        return _Sam(refiner)
    if name != "sam2.1_t":
        raise SystemExit(f"{name}: the loop of SAM 2.1 is that of sam2.1_t alone; add --no-loop")
    return _Sam2(refiner)


def _loop(
    predictor: _Sam | _Sam2, pixels: NDArray[np.uint8], prompts: list[Prompt], jitter: int
) -> list[NDArray[np.bool_]]:
    """What people write, up to the row they store."""
    predictor.set_image(pixels)
    masks = []
    for prompt in prompts:
        mask, score = predictor.predict(np.array(prompt.box_xyxy))
        stability = None
        if jitter:
            boxes, _ = jittered_prompts(prompt, jitter, 0.1, object_side=0.0, image_hw=pixels.shape[:2])
            assert boxes is not None
            stability = prompt_stability(predictor.predict(box)[0] for box in boxes)
        rle = coco_mask.encode(np.asfortranarray(mask))
        row = (rle["counts"].decode(), coco_mask.area(rle), coco_mask.toBbox(rle), score, stability)
        assert len(row) == 5
        masks.append(mask)
    return masks


def some_boxes(hw: tuple[int, int], count: int) -> list[Prompt]:
    """That many boxes of a tenth to a half of the picture's sides."""
    draw = np.random.default_rng(0)
    sides = draw.uniform(0.1, 0.5, (count, 2)) * hw[::-1]
    low = draw.uniform(0.0, 1.0, (count, 2)) * (np.array(hw[::-1]) - sides)
    return [
        Prompt(prompt_id=str(n), image_id="i", image_uri="i", box_xyxy=tuple(corners))
        for n, corners in enumerate(np.concatenate((low, low + sides), axis=1).tolist())
    ]


def _case(count: int, jitter: int, times: Times) -> dict[str, Any]:
    ours, loop = (np.array(times[count, jitter][side]) for side in ("refiner", "loop"))  # (rounds, 2)
    plain = np.array(times[count, 0]["refiner"]) if (count, 0) in times else ours[:0]
    return {
        "prompts": count,
        "jitter": jitter,
        "refiner_ms": spread(1000 * ours[:, 0]),
        "loop_ms": spread(1000 * loop[:, 0]) if len(loop) else None,
        "loop_to_refiner": spread(loop[:, 0] / ours[:, 0]) if len(loop) else None,
        "loop_to_refiner_cpu": spread(loop[:, 1] / ours[:, 1]) if len(loop) else None,
        "jitter_to_none_cpu": spread(ours[:, 1] / plain[:, 1]) if jitter and len(plain) else None,
    }


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def _markdown(result: dict[str, Any]) -> str:
    height, width = result["image_hw"]
    agreement = result["agreement"]
    lines = [
        f"{result['model']} in {result['dtype']} at {result['input_size']} px on {result['device']}, "
        f"{result['threads']} threads, image of {width} x {height}: medians of {result['rounds']} rounds, in "
        f"brackets the middle half of them; load {result['load_average']:.1f}."
        + (f" Masks of both: IoU {np.median(agreement):.4f}, least {min(agreement):.4f}." if agreement else ""),
        "",
        "| prompts | K | loop, ms | refiner, ms | loop / refiner | the same, CPU time | K to none, CPU time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {case['prompts']} | {case['jitter']} | {cell(case['loop_ms'], 0)} | {cell(case['refiner_ms'], 0)} "
        f"| {cell(case['loop_to_refiner'], 2)} | {cell(case['loop_to_refiner_cpu'], 2)} "
        f"| {cell(case['jitter_to_none_cpu'], 2)} |"
        for case in result["cases"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
