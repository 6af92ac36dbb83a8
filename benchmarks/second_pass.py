"""Measure what the second pass of poor prompts gains in mIoU and costs in time.

    python benchmarks/second_pass.py --data DIR [--max-objects 300] [--prompts detector-box,noisy-box,...] [--threads 1]

DIR holds images with people's masks, as for `stable-sam evaluate`. Each image is refined without a second pass, with
one for poor prompts (alpha_1 of at least 0.5) and with one for every prompt; each way comes first equally often. The
command prints mIoU by kind of prompt and by alpha_1, 95 % intervals by bootstrap over objects, and the medians over
images of the ratios of CPU times.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stable_sam.calibration.labels import asked_prompts, truth_iou
from stable_sam.config import RefinerConfig
from stable_sam.evaluation.prompts import PromptKind
from stable_sam.evaluation.sample import sample_objects
from stable_sam.evaluation.true_masks import read_truth
from stable_sam.images.decode import decode_image
from stable_sam.refining.refiner import Refiner

WAYS = {
    "off": {"second_pass": "off"},
    "poor": {"second_pass_dsp_weight": 0.5},
    "all": {"second_pass_dsp_weight": 0.0},
}
ALPHA = (0.0, 0.25, 0.5, 1.01)
Floats = NDArray[np.float64]


def main() -> None:
    """Refine, compare, print."""
    options = _options()
    torch.set_num_threads(options.threads)
    sets = read_truth(options.data, min_area_fraction=0.005)
    if options.max_objects:
        sets = sample_objects(sets, options.max_objects, 0)
    kinds = [PromptKind.parse(name) for name in options.prompts.split(",")]
    refiners = {name: Refiner(RefinerConfig(**settings)) for name, settings in WAYS.items()}
    rows: list[dict[str, object]] = []
    seconds: list[list[float]] = []
    images = 0
    for part in sets:
        for image in part.images:
            asked = list(asked_prompts(part.name, image, kinds, 0))
            if not asked:
                continue
            pixels = decode_image(image.path.read_bytes(), name=str(image.path), max_pixels=10**8)
            first = images % len(WAYS)
            order = list(WAYS)[first:] + list(WAYS)[:first]
            images += 1
            masks, took = {}, {}
            for name in order:
                began = time.process_time()
                masks[name] = refiners[name].refine_image(pixels, [prompt for _, _, prompt in asked])
                took[name] = time.process_time() - began
            seconds.append([took[name] for name in WAYS])
            for number, (item, kind, _) in enumerate(asked):
                rows.append(
                    {"set": part.name, "object": f"{part.name}/{item.annotation_id}", "kind": kind.name,
                     "alpha": masks["off"][number].dsp_weight, "passed": masks["poor"][number].second_pass is not None,
                     **{name: truth_iou(masks[name][number], item) for name in WAYS}}
                )  # fmt: skip
    _report(rows, np.array(seconds), [kind.name for kind in kinds])


def _report(rows: Sequence[dict[str, object]], seconds: Floats, kinds: Sequence[str]) -> None:
    def column(name: str) -> NDArray[np.generic]:
        return np.array([row[name] for row in rows])

    alpha, everything = column("alpha"), np.ones(len(rows), bool)
    groups = [("all", everything)]
    groups += [(kind, column("kind") == kind) for kind in kinds]
    groups += [(name, column("set") == name) for name in sorted(set(column("set")))]
    groups += [(f"{low:g} <= alpha_1 < {min(high, 1):g}", (alpha >= low) & (alpha < high))
               for low, high in itertools.pairwise(ALPHA)]  # fmt: skip
    print("| prompts | masks | poor | no second pass | poor ones | gain | every one | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for name, group in groups:
        if group.any():
            off, poor, every = (column(way)[group].astype(float) for way in WAYS)
            of = column("object")[group]
            print(
                f"| {name} | {group.sum()} | {column('passed')[group].mean():.0%} | {off.mean():.3f} "
                f"| {poor.mean():.3f} | {_interval(poor - off, of)} "
                f"| {every.mean():.3f} | {_interval(every - off, of)} |"
            )
    ratios = seconds[:, 1:] / seconds[:, :1]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
    total = seconds.sum(0)[1:] / seconds.sum(0)[0]
    print(f"\nCPU time of an image ({len(rows) / len(seconds):.1f} prompts, K = 8), ratio to no second pass: ", end="")
    print("; ".join(f"{name} {middle[i]:.2f} [{low[i]:.2f}, {high[i]:.2f}], in all {total[i]:.2f}"
                    for i, name in enumerate(("poor ones", "every one"))))  # fmt: skip


def _interval(gains: Floats, objects: NDArray[np.generic]) -> str:
    """Mean, and its 95 % interval when objects are drawn again."""
    _, of = np.unique(objects, return_inverse=True)
    count, total = np.bincount(of), np.bincount(of, gains)
    draws = list(_draws(len(count), 1000))
    means = [total[draw].sum() / count[draw].sum() for draw in draws]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def _draws(count: int, times: int) -> Iterator[NDArray[np.int64]]:
    random = np.random.default_rng(0)
    for _ in range(times):
        yield random.integers(0, count, count)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-objects", type=int)
    parser.add_argument("--prompts", default="gt-box,detector-box,noisy-box-0.2,noisy-box,3-points,1-point")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
