"""What tiles bring small objects in mIoU, and what they cost in encoder passes and time.

    python benchmarks/tiles.py --data DIR [--limit 60] [--below-cells 3 --scale 3] [--model vit_b --checkpoint URI]

DIR: pictures with people's masks, as for `stable-sam evaluate`; `--limit` of them, evenly spread. Every object gets a
detector's box and is refined in the whole picture and with tiles. Prints mIoU by the object's share of the picture and
by the cells of the whole picture's embedding that its box spans (for points: its true box), beside the box as a mask;
gains with 95 % intervals by bootstrap over objects. Then a picture with 1, 8, 50 and 300 small boxes, scattered over it
and side by side: encoder passes and CPU time in the whole picture, in tiles, and in a tile for each prompt, without a
second pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam import predict as predict_module
from stable_sam import refiner as refiner_module
from stable_sam import second_pass as second_pass_module
from stable_sam.calibration.labels import asked_prompts, truth_iou
from stable_sam.config import RefinerConfig
from stable_sam.data.images import decode_image
from stable_sam.evaluation.prompts import PromptKind, fill_box
from stable_sam.evaluation.truth import TruthImage, TruthSet, read_truth
from stable_sam.records import Prompt
from stable_sam.refiner import Refiner
from stable_sam.rle import rle_iou
from stable_sam.tiles import CELL

SHARES = (0.0, 0.001, 0.005, 0.02, 0.1, 1.01)
CELLS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 1e9)
BOXES = (1, 8, 50, 300)
CELLS_OF_BOXES = 0.6, 2.0
"""Longer sides of the boxes on the picture for the costs, in cells of the whole picture's embedding."""
Floats = NDArray[np.float64]
Row = dict[str, float]


def main() -> None:
    """Refine, compare, print."""
    options = _options()
    torch.set_num_threads(options.threads)
    given = {"model": options.model, "checkpoint_uri": options.checkpoint, "device": options.device}
    tiles = {"tile_below_cells": options.below_cells, "tile_scale": options.scale, "max_tiles": options.max_tiles}
    chosen = {name: value for name, value in tiles.items() if value is not None}
    config = RefinerConfig.from_dict({**given, **chosen, "jitter_count": 0})
    in_tiles, whole = Refiner(config), Refiner(config.model_copy(update={"tiles": "off"}))
    sets = read_truth(options.data, limit=options.limit)
    print(f"{config.tile_rule}, at most {config.max_tiles} tiles\n")
    _masks(sets, whole, in_tiles, PromptKind.parse(options.prompts))
    if options.boxes:
        once = config.model_copy(update={"second_pass": "off", "jitter_count": options.jitter})
        _costs(sets[0].images[0], once, options.boxes)


def _masks(sets: Sequence[TruthSet], whole: Refiner, in_tiles: Refiner, kind: PromptKind) -> None:
    rows: list[Row] = []
    passes = {"whole": 0, "tiles": 0}
    pictures = 0
    for part in sets:
        for image in part.images:
            pixels = _pixels(image)
            asked = list(asked_prompts(part.name, image, [kind], 0))
            if not asked:
                continue
            pictures += 1
            prompts = [prompt for _, _, prompt in asked]
            found = {}
            for name, refiner in (("whole", whole), ("tiles", in_tiles)):
                with _encoder_passes() as count:
                    found[name] = refiner.refine_image(pixels, prompts)
                passes[name] += count()
            for number, (item, _, prompt) in enumerate(asked):
                there, near = found["whole"][number], found["tiles"][number]
                box = item.box_xyxy() if prompt.box_xyxy is None else np.array(prompt.box_xyxy)
                if there.status == near.status == "ok":
                    rows.append(
                        {
                            "share": float(coco_mask.area(item.rle)) / pixels[..., 0].size,
                            "cells": (box[2:] - box[:2]).max() * whole.input_side / CELL / max(image.size_hw),
                            "whole": truth_iou(there, item),
                            "tiles": truth_iou(near, item),
                            "filled": _filled(box, item.rle, image.size_hw),
                            "tile": near.tile_xywh is not None,
                            "wider": near.view == "wider",
                        }
                    )
    for by, edges in (("share", SHARES), ("cells", CELLS)):
        print(f"| {by} | prompts | in tiles | wider | whole picture | tiles | gain | box filled |")
        print("|---|---|---|---|---|---|---|---|")
        for low, high in [(0.0, 1e9), *pairwise(edges)]:
            some = [row for row in rows if low <= row[by] < high]
            if some:
                print(_line("all" if (low, high) == (0.0, 1e9) else f"{low:g} to {high:g}", some))
        print()
    print(
        f"Encoder passes of a picture: {passes['whole'] / pictures:.2f} in the whole picture, "
        f"{passes['tiles'] / pictures:.2f} with tiles, second pass included; {len(rows) / pictures:.1f} prompts.\n"
    )


def _line(name: str, rows: Sequence[Row]) -> str:
    def mean(column: str) -> float:
        return float(np.mean([row[column] for row in rows]))

    gains = np.array([row["tiles"] - row["whole"] for row in rows])
    draws = np.random.default_rng(0).integers(0, len(gains), (1000, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), (0.025, 0.975))
    return (
        f"| {name} | {len(rows)} | {mean('tile'):.0%} | {mean('wider'):.0%} | {mean('whole'):.3f} "
        f"| {mean('tiles'):.3f} | {gains.mean():+.3f} [{low:+.3f}, {high:+.3f}] | {mean('filled'):.3f} |"
    )


def _costs(image: TruthImage, config: RefinerConfig, most: int) -> None:
    pixels = _pixels(image)
    in_tiles, whole = Refiner(config), Refiner(config.model_copy(update={"tiles": "off"}))
    print(
        f"A picture of {pixels.shape[1]} x {pixels.shape[0]}, boxes of {CELLS_OF_BOXES[0]:g} to {CELLS_OF_BOXES[1]:g} "
        f"cells, K = {config.jitter_count}\n"
    )
    print("| boxes | where | passes: whole, tiles, one each | ratio | time: tiles to whole | one each to tiles |")
    print("|---|---|---|---|---|---|")
    in_tiles.refine_image(pixels, _prompts(np.array([[10.0, 10.0, 30.0, 30.0]])))  # what the first call takes once
    for count in (count for count in BOXES if count <= most):
        for where in (_scattered, _side_by_side):
            prompts = _prompts(where(count, image.size_hw, in_tiles.input_side))
            measured = []
            for refiner, calls in (
                (whole, [prompts]), (in_tiles, [prompts]), (in_tiles, [[prompt] for prompt in prompts])
            ):  # fmt: skip
                began = time.process_time()
                with _encoder_passes() as passes:
                    for some in calls:
                        refiner.refine_image(pixels, some)
                measured.append((passes(), time.process_time() - began))
            (a, in_whole), (b, packed), (c, apart) = measured
            print(
                f"| {count} | {where.__name__[1:].replace('_', ' ')} | {a}, {b}, {c} | {c / b:.1f} "
                f"| {packed / in_whole:.2f} | {apart / packed:.2f} |"
            )


def _scattered(count: int, image_hw: tuple[int, int], side: int) -> Floats:
    """Boxes (count, 4) anywhere in the picture."""
    draw = np.random.default_rng(count)
    sizes = _sizes(draw, count, image_hw, side)
    corners = draw.uniform(0, 1, (count, 2)) * (np.array(image_hw[::-1]) - sizes)
    return np.concatenate((corners, corners + sizes), axis=1)


def _side_by_side(count: int, image_hw: tuple[int, int], side: int) -> Floats:
    """Boxes (count, 4) in rows that begin in the picture's corner, each place as wide as the largest box."""
    draw = np.random.default_rng(count)
    sizes = _sizes(draw, count, image_hw, side)
    place = sizes.max()
    columns = min(int(np.ceil(np.sqrt(count))), int(image_hw[1] // place))
    row, column = np.divmod(np.arange(count), columns)
    corners = np.stack((column, row % int(image_hw[0] // place)), axis=1) * place
    return np.concatenate((corners, corners + sizes), axis=1)


def _sizes(draw: np.random.Generator, count: int, image_hw: tuple[int, int], side: int) -> Floats:
    """Widths and heights (count, 2): the longer one drawn by its logarithm, the other at least half of it."""
    longer = np.exp(draw.uniform(*np.log(CELLS_OF_BOXES), count)) * CELL * max(image_hw) / side
    sizes = np.stack((longer, longer * draw.uniform(0.5, 1, count)), axis=1)
    turned = draw.random(count) < 0.5
    sizes[turned] = sizes[turned, ::-1]
    return sizes


def _prompts(boxes: Floats) -> list[Prompt]:
    return [
        Prompt(prompt_id=str(number), image_id="i", image_uri="i", box_xyxy=(x0, y0, x1, y1))
        for number, (x0, y0, x1, y1) in enumerate(boxes.tolist())
    ]


@contextmanager
def _encoder_passes() -> Iterator[Callable[[], int]]:
    """How often the encoder has run since the block began."""
    runs: list[None] = []

    def counted(*args: object) -> object:
        runs.append(None)
        return embed(*args)  # type: ignore[arg-type]

    embed = predict_module.embed_resized
    with (
        patch.object(refiner_module, "embed_resized", counted),
        patch.object(second_pass_module, "embed_resized", counted),
    ):
        yield lambda: len(runs)


def _filled(box_xyxy: Floats, truth: dict[str, object], image_hw: tuple[int, int]) -> float:
    """IoU of a box, as a mask, with the true one."""
    filled = coco_mask.encode(np.asfortranarray(fill_box(box_xyxy, image_hw).view(np.uint8)))
    return rle_iou(filled, truth)


def _pixels(image: TruthImage) -> NDArray[np.uint8]:
    return decode_image(image.path.read_bytes(), name=str(image.path), max_pixels=10**9)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="pictures of each set")
    parser.add_argument("--prompts", default="detector-box")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", help="URI of the base's weights; the bundled ones for nano")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--below-cells", type=float)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--max-tiles", type=int)
    parser.add_argument("--boxes", type=int, default=BOXES[-1], help="most small boxes of a picture; 0: no costs")
    parser.add_argument("--jitter", type=int, default=0, help="K of the costs")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
