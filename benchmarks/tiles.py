"""Measure what tiles gain for small objects in mIoU, and what they cost in encoder passes and time.

    python -m benchmarks.tiles --data DIR --limit 46                      # masks of people, then the costs
    python -m benchmarks.tiles --data DIR --rules 3:3 4:3 3:4 --no-costs  # which rule; the first is compared in detail

DIR holds images with people's masks, as for `stable-sam evaluate`; `--limit` of them are used, evenly spread. Every
object gets a prompt, by default a detector's box, and is refined in the whole image and in tiles by each rule, which is
`tile_below_cells:tile_scale`. The command prints for every rule mIoU, the gain over the whole image and over the filled
box, and encoder passes; for the first rule also by the object's share of the image and by the cells of the whole
image's embedding that its box (for points: its true box) spans. Brackets are paired 95 % intervals by bootstrap over
objects. The costs are those of `benchmarks.tile_costs`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.tile_costs import EncoderClock, print_costs
from stable_sam.calibration.labels import asked_prompts, truth_iou
from stable_sam.config import RefinerConfig
from stable_sam.evaluation.prompts import PromptKind, fill_box
from stable_sam.evaluation.true_masks import TruthImage, TruthSet, read_truth
from stable_sam.images.decode import decode_image
from stable_sam.images.tiles import CELL
from stable_sam.refining.refiner import Refiner

SHARES = (0.0, 0.001, 0.005, 0.02, 0.1, 1.01)
CELLS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 1e9)
WHOLE = "whole picture"
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Answers:
    """What one way of asking answered to all prompts, in their order, and what it cost."""

    iou: list[float] = field(default_factory=list)
    view: list[str | None] = field(default_factory=list)
    clock: EncoderClock = field(default_factory=EncoderClock)


def main() -> None:
    """Refine, compare, print."""
    options = _options()
    torch.set_num_threads(options.threads)
    given = {"model": options.model, "checkpoint_uri": options.checkpoint, "device": options.device}
    config = RefinerConfig.from_dict({**given, "second_pass": options.second_pass, "jitter_count": 0})
    if options.data is not None:
        _masks(read_truth(options.data, limit=options.limit), config, options.rules, PromptKind.parse(options.prompts))
    if not options.no_costs:
        print_costs(config)


def _masks(sets: Sequence[TruthSet], config: RefinerConfig, rules: Sequence[str], kind: PromptKind) -> None:
    refiners = {WHOLE: Refiner(config.model_copy(update={"tiles": "off"}))}
    for rule in rules:
        below_cells, scale = map(float, rule.split(":"))
        refiners[rule] = Refiner(config.model_copy(update={"tile_below_cells": below_cells, "tile_scale": scale}))
    answers = {name: Answers() for name in refiners}
    facts: dict[str, list[float]] = {"share": [], "cells": [], "filled": []}
    pictures = 0
    for part in sets:
        for image in part.images:
            asked = list(asked_prompts(part.name, image, [kind], 0))
            pictures += bool(asked)
            pixels = _pixels(image)
            for name, refiner in refiners.items() if asked else ():
                with answers[name].clock.running():
                    masks = refiner.refine_image(pixels, [prompt for _, _, prompt in asked])
                answers[name].iou += [truth_iou(mask, item) for mask, (item, _, _) in zip(masks, asked, strict=True)]
                answers[name].view += [mask.view for mask in masks]
            for item, _, prompt in asked:
                box = item.box_xyxy() if prompt.box_xyxy is None else np.array(prompt.box_xyxy)
                side = refiners[WHOLE].input_side
                facts["share"].append(float(coco_mask.area(item.rle)) / pixels[..., 0].size)
                facts["cells"].append((box[2:] - box[:2]).max() * side / CELL / max(image.size_hw))
                facts["filled"].append(_filled(box, item.rle, image.size_hw))
    known = {name: np.array(values) for name, values in facts.items()}
    print(f"{len(known['share'])} prompts, {kind.name}, on {pictures} pictures; second pass {config.second_pass}\n")
    _print_rules(answers, known["filled"], pictures)
    _print_slices(answers[WHOLE], answers[rules[0]], known)


def _print_rules(answers: dict[str, Answers], filled: Floats, pictures: int) -> None:
    whole, first = (np.array(some.iou) for some in list(answers.values())[:2])
    ways = " | ".join(("way", "in tiles", "mIoU", "to the whole picture", "to the filled box", "to the first rule"))
    print(f"| {ways} | encoder passes of a picture | encoder's time to whole |\n|{'---|' * 8}")
    for name, some in answers.items():
        iou, clock = np.array(some.iou), some.clock
        print(
            f"| {name} | {_share(some.view):.0%} | {iou.mean():.3f} | {_gain(iou, whole)} | {_gain(iou, filled)} "
            f"| {_gain(iou, first)} | {clock.passes / pictures:.2f} "
            f"| {clock.seconds / answers[WHOLE].clock.seconds:.2f} |"
        )
    print()


def _print_slices(whole: Answers, tiles: Answers, known: dict[str, Floats]) -> None:
    there, near, filled = np.array(whole.iou), np.array(tiles.iou), known["filled"]
    views = np.array(tiles.view, dtype=object)
    for by, edges in (("share", SHARES), ("cells", CELLS)):
        print(f"| {by} | prompts | in tiles | wider | filled | whole picture | tiles | gain | to the filled box |")
        print(f"|{'---|' * 9}")
        for low, high in [(0.0, np.inf), *pairwise(edges)]:
            some = (known[by] >= low) & (known[by] < high)
            if some.any():
                name = "all" if high == np.inf else f"{low:g} to {high:g}"
                print(
                    f"| {name} | {some.sum()} | {_share(views[some]):.0%} | {(views[some] == 'wider').mean():.0%} "
                    f"| {filled[some].mean():.3f} | {there[some].mean():.3f} | {near[some].mean():.3f} "
                    f"| {_gain(near[some], there[some])} | {_gain(near[some], filled[some])} |"
                )
        print()


def _share(views: Sequence[str | None] | NDArray[np.object_]) -> float:
    """Of the prompts that are small."""
    return float(np.mean([view is not None for view in views]))


def _gain(ours: Floats, theirs: Floats) -> str:
    gains = ours - theirs
    draws = np.random.default_rng(0).integers(0, len(gains), (2000, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), (0.025, 0.975))
    return f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def _filled(box_xyxy: Floats, truth: dict[str, object], image_hw: tuple[int, int]) -> float:
    """IoU of a box, as a mask, with the true one."""
    filled = coco_mask.encode(np.asfortranarray(fill_box(box_xyxy, image_hw).view(np.uint8)))
    return float(coco_mask.iou([filled], [truth], [0])[0, 0])


def _pixels(image: TruthImage) -> NDArray[np.uint8]:
    return decode_image(image.path.read_bytes(), name=str(image.path), max_pixels=10**9)


def _options() -> argparse.Namespace:
    usual = RefinerConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="without it only the costs are measured")
    parser.add_argument("--limit", type=int, help="pictures of each set")
    parser.add_argument("--prompts", default="detector-box")
    parser.add_argument("--rules", nargs="+", default=[f"{usual.tile_below_cells:g}:{usual.tile_scale:g}"])
    parser.add_argument("--second-pass", default="off", choices=["off", "mirror"])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", help="URI of the base's weights; the bundled ones for nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-costs", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
