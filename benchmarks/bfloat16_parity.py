"""Compare the masks of bfloat16 with those of float32 on photographs: the image encoder alone, and the decoder as well.

    python benchmarks/bfloat16_parity.py --data data/val --images 3 --out parity.json --markdown parity.md

Up to three objects of each image are asked for, by a noisy box and by a point in the middle of their box, without tiles
and second pass. The library keeps the decoder in float32; in bfloat16 it is an experiment of this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.timing import add_outputs, write
from stable_sam.config import RefinerConfig
from stable_sam.evaluation.true_masks import TruthImage, read_truth
from stable_sam.prompt_noise import noisy_box
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining import predict
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import mask_iou

NOISE = 0.2
"""Scale of the boxes' noise."""
OBJECTS = 3
"""Most objects of an image."""
COPIES = 3
"""K, the number of jittered prompts."""


def main() -> None:
    """Measure, print a table and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sets with instances.json and images")
    parser.add_argument("--images", type=int, default=3, help="of each set")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint")
    add_outputs(parser)
    options = parser.parse_args()
    given = {"model": options.model, "checkpoint_uri": options.checkpoint, "jitter_count": COPIES}
    given |= {"tiles": "off", "second_pass": "off"}
    single = Refiner(RefinerConfig.from_dict(given))
    half = Refiner(RefinerConfig.from_dict(given | {"dtype": "bfloat16"}), single.routing)
    rows: dict[str, list[dict[str, float]]] = {"encoder": [], "encoder and decoder": []}
    for image in (image for one in read_truth(options.data, limit=options.images) for image in one.images):
        pixels, prompts = Image.open(image.path).convert("RGB"), _prompts(image)
        expected = single.refine_image(pixels, prompts)
        rows["encoder"] += _differences(expected, half.refine_image(pixels, prompts))
        with _decoder_in_bfloat16():
            rows["encoder and decoder"] += _differences(expected, half.refine_image(pixels, prompts))
    results = {part: _summary(found) for part, found in rows.items()}
    names = list(results["encoder"])
    lines = [f"| bfloat16 | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [
        f"| {part} | {' | '.join(f'{value:.4g}' for value in found.values())} |" for part, found in results.items()
    ]
    write(results, "\n".join(lines) + "\n", options)


def _prompts(image: TruthImage) -> list[Prompt]:
    rng = np.random.default_rng(0)
    prompts = []
    for number, item in enumerate(image.objects[:OBJECTS]):
        [box] = noisy_box(item.box_xyxy(), NOISE, image.size_hw, rng, 1).tolist()
        x0, y0, x1, y1 = item.box_xyxy()
        unnamed = {"image_id": "", "image_uri": ""}
        prompts.append(Prompt(prompt_id=f"box {number}", box_xyxy=tuple(box), **unnamed))
        middle = (float(x0 + x1) / 2, float(y0 + y1) / 2)
        prompts.append(Prompt(prompt_id=f"point {number}", points_xy=(middle,), point_labels=(1,), **unnamed))
    return prompts


@contextmanager
def _decoder_in_bfloat16() -> Iterator[None]:
    """Run the fast decoder under autocast; two operations that take no mixed types get equal ones."""
    chunk, bag = predict._predict_chunk_fast, F.embedding_bag

    def in_half(*arguments: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            logits, iou, weight, token = chunk(*arguments)
        return logits.float(), iou.float(), weight.float(), token

    def equal_types(index: Any, table: Any, *, per_sample_weights: Any, mode: str) -> Any:
        return bag(index, table, mode=mode, per_sample_weights=per_sample_weights.to(table.dtype))

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(predict, "_predict_chunk_fast", in_half))
        patches.enter_context(mock.patch.object(F, "embedding_bag", equal_types))
        patches.enter_context(mock.patch.object(torch.Tensor, "baddbmm_", torch.Tensor.baddbmm))
        yield


def _differences(expected: list[RefinedMask], found: list[RefinedMask]) -> list[dict[str, float]]:
    return [_difference(one, other) for one, other in zip(expected, found, strict=True) if one.status == "ok"]


def _difference(one: RefinedMask, other: RefinedMask) -> dict[str, float]:
    scores = "predicted_iou", "stability_score", "prompt_stability"
    return {
        "IoU": mask_iou(one.mask_size, one.mask_counts, other.mask_size, other.mask_counts) or 0.0,
        **{name: abs(getattr(one, name) - getattr(other, name)) for name in scores},
        "same route": float(one.route == other.route),
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        "masks": float(len(rows)),
        "mean IoU": float(columns["IoU"].mean()),
        "5 % of IoU below": float(np.quantile(columns["IoU"], 0.05)),
        **{f"change of {name}, mean": float(columns[name].mean()) for name in list(columns)[1:4]},
        "largest change of prompt_stability": float(columns["prompt_stability"].max()),
        "same route": float(columns["same route"].mean()),
    }


if __name__ == "__main__":
    main()
