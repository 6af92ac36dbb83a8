"""Measure what tiles cost in encoder passes, time and memory; `benchmarks.tiles` prints the figures.

Small boxes, scattered over an image or side by side, are refined in the whole image, in tiles, and in one tile for each
prompt. For the input of another model the tiles are counted, and one encoder pass with random weights gives the time.
An image of 48 megapixels with 2,000 boxes is refined in a process of its own for its peak memory. Seconds are CPU time.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.stage_cases import jpeg, photograph
from benchmarks.timing import timed
from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig
from stable_sam.images.tiles import CELL, TilePlan, tile_rule
from stable_sam.modeling.bases import build_base
from stable_sam.records import Prompt
from stable_sam.refining import predict as predict_module
from stable_sam.refining import refiner as refiner_module
from stable_sam.refining import second_pass as second_pass_module
from stable_sam.refining.refiner import Refiner

BOXES = (1, 8, 50, 300)
MOST_APART = 50
"""Of more boxes nobody waits for a tile for each."""
CELLS_OF_BOXES = 0.6, 2.0
"""Longer sides of the boxes, in cells of the whole picture's embedding."""
SMALL_HW, CAMERA_HW, AERIAL_HW = (480, 640), (3000, 4000), (6000, 8000)
AERIAL_BOXES = 2_000
AERIAL_PIXELS = 40.0, 160.0
"""Longer sides of the boxes on the picture of 48 megapixels."""
Floats = NDArray[np.float64]


@dataclass(slots=True)
class EncoderClock:
    """How often the encoder ran, and its seconds of CPU."""

    passes: int = 0
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the passes of this block."""

        def counted(*args: object) -> object:
            (_, seconds), embedded = timed(lambda: embed(*args))  # type: ignore[arg-type]
            self.passes += 1
            self.seconds += seconds
            return embedded

        embed = predict_module.embed_resized
        with (
            patch.object(refiner_module, "embed_resized", counted),
            patch.object(second_pass_module, "embed_resized", counted),
        ):
            yield


def print_costs(config: RefinerConfig) -> None:
    """All three tables, for the model of `config` and its second pass."""
    _print_sharing(config)
    _print_by_rule([config.model, "vit_b"])
    _print_aerial(config)


def _print_sharing(config: RefinerConfig) -> None:
    pixels = photograph(SMALL_HW)
    in_tiles, whole = Refiner(config), Refiner(config.model_copy(update={"tiles": "off"}))
    print(f"{config.model}, a picture of {SMALL_HW[1]} x {SMALL_HW[0]}, boxes of {_cells()} cells\n")
    print("| boxes | where | passes: whole, tiles, one each | one each to tiles | seconds: whole, tiles, one each "
          f"| tiles to whole | one each to tiles |\n|{'---|' * 7}")  # fmt: skip
    in_tiles.refine_image(pixels, _prompts(np.array([[10.0, 10.0, 30.0, 30.0]])))  # what the first call takes once
    for count in BOXES:
        for where in (_scattered, _side_by_side):
            prompts = _prompts(where(_sizes(count, SMALL_HW, in_tiles.input_side), SMALL_HW))
            whole_took, packed = _took(whole, pixels, [prompts]), _took(in_tiles, pixels, [prompts])
            line = f"| {count} | {_name(where)} | {whole_took[0]}, {packed[0]}"
            if count > MOST_APART:
                print(f"{line}, | | {whole_took[1]:.1f}, {packed[1]:.1f}, | {packed[1] / whole_took[1]:.2f} | |")
                continue
            apart = _took(in_tiles, pixels, [[prompt] for prompt in prompts])
            print(
                f"{line}, {apart[0]} | {apart[0] / packed[0]:.1f} "
                f"| {whole_took[1]:.1f}, {packed[1]:.1f}, {apart[1]:.1f} "
                f"| {packed[1] / whole_took[1]:.2f} | {apart[1] / packed[1]:.2f} |", flush=True,
            )  # fmt: skip
    print()


def _took(refiner: Refiner, pixels: NDArray[np.uint8], calls: Sequence[Sequence[Prompt]]) -> tuple[int, float]:
    """Encoder passes, and seconds in all."""
    clock, began = EncoderClock(), time.process_time()
    with clock.running():
        for prompts in calls:
            refiner.refine_image(pixels, prompts)
    return clock.passes, time.process_time() - began


def _print_by_rule(models: list[str]) -> None:
    print(f"By the rule alone, a picture of 12 megapixels, boxes of {_cells()} cells; seconds of the encoder\n")
    columns = "boxes | where | tiles | prompts in wider ones | tiles without a bound | seconds: tiles, one each"
    print(f"| model | one pass | {columns} |")
    print(f"|{'---|' * 8}")
    for model in models:
        side = BASES[model].input_side
        seconds = _one_pass(model, side)
        for count in BOXES:
            for where in (_scattered, _side_by_side):
                prompts = _prompts(where(_sizes(count, CAMERA_HW, side), CAMERA_HW))
                tiles, wider = _planned(prompts, CAMERA_HW, side)
                free, _ = _planned(prompts, CAMERA_HW, side, max_tiles=10**9)
                print(
                    f"| {model} | {seconds:.2f} | {count} | {_name(where)} | {tiles} | {wider} | {free} "
                    f"| {tiles * seconds:.1f}, {count * seconds:.1f} |", flush=True
                )  # fmt: skip
    print()


def _one_pass(model: str, side: int) -> float:
    """Seconds of an encoder with random weights."""
    with torch.inference_mode():
        encoder = build_base(model).image_encoder.eval()
        (_, seconds), _ = timed(lambda: encoder(torch.zeros(1, 3, side, side)))
    return seconds


def _planned(prompts: Sequence[Prompt], hw: tuple[int, int], side: int, **bound: int) -> tuple[int, int]:
    """Tiles of small boxes, and how many of these are asked in wider ones than they want."""
    plan = TilePlan(tile_rule(RefinerConfig.from_dict(bound), side), hw, prompts)
    tiles = len(dict(plan.views()).keys() - {None})
    return tiles, sum(plan.view(index) == "wider" for index in range(len(prompts)))


def _print_aerial(config: RefinerConfig) -> None:
    print(
        f"{config.model}, a JPEG of 48 megapixels, {AERIAL_BOXES} boxes of {AERIAL_PIXELS[0]:g} to "
        f"{AERIAL_PIXELS[1]:g} pixels\n"
    )
    print("| passes | seconds of the encoder | seconds in all | highest memory, MiB: loaded, then | windows |")
    print(f"|{'---|' * 5}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "aerial.jpg")
        path.write_bytes(jpeg(AERIAL_HW))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            print(pool.submit(_aerial, path, config, torch.get_num_threads()).result(), flush=True)
    free, _ = _planned(_aerial_prompts(), AERIAL_HW, BASES[config.model].input_side, max_tiles=10**9)
    print(f"\nWithout a bound they would take {free} tiles; `max_tiles` is {config.max_tiles}.")


def _aerial(path: Path, config: RefinerConfig, threads: int) -> str:
    """A line of the table."""
    torch.set_num_threads(threads)
    refiner, prompts = Refiner(config), _aerial_prompts()
    loaded, clock, began = _highest_memory(), EncoderClock(), time.process_time()
    with clock.running():
        rows = refiner.refine_file(path.read_bytes(), prompts)
    seconds = time.process_time() - began
    assert all(row.status == "ok" for row in rows)
    widths = Counter((row.view, "whole" if row.tile_xywh is None else row.tile_xywh[2]) for row in rows)
    windows = ", ".join(f"{count} {view or 'not small'}: {width}" for (view, width), count in widths.most_common())
    return f"| {clock.passes} | {clock.seconds:.1f} | {seconds:.1f} | {loaded}, {_highest_memory()} | {windows} |"


def _aerial_prompts() -> list[Prompt]:
    return _prompts(_scattered(_drawn_sizes(AERIAL_BOXES, AERIAL_PIXELS), AERIAL_HW))


def _highest_memory() -> int:
    """MiB of this process since it was started: getrusage's would count its parent's, too."""
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) // 1024


def _sizes(count: int, image_hw: tuple[int, int], side: int) -> Floats:
    """Widths and heights (count, 2) of boxes of `CELLS_OF_BOXES`."""
    cell = CELL * max(image_hw) / side
    return _drawn_sizes(count, (CELLS_OF_BOXES[0] * cell, CELLS_OF_BOXES[1] * cell))


def _drawn_sizes(count: int, longer: tuple[float, float]) -> Floats:
    """Widths and heights (count, 2): the longer one drawn by its logarithm, the other at least half of it."""
    draw = np.random.default_rng(count)
    drawn = np.exp(draw.uniform(*np.log(longer), count))
    sizes = np.stack((drawn, drawn * draw.uniform(0.5, 1, count)), axis=1)
    turned = draw.random(count) < 0.5
    sizes[turned] = sizes[turned, ::-1]
    return sizes


def _scattered(sizes: Floats, image_hw: tuple[int, int]) -> Floats:
    """Boxes (count, 4) anywhere in the picture."""
    corners = np.random.default_rng(len(sizes)).uniform(0, 1, sizes.shape) * (np.array(image_hw[::-1]) - sizes)
    return np.concatenate((corners, corners + sizes), axis=1)


def _side_by_side(sizes: Floats, image_hw: tuple[int, int]) -> Floats:
    """Boxes (count, 4) in rows that begin in the picture's corner, each place as wide as the largest box."""
    place = sizes.max()
    columns = min(int(np.ceil(np.sqrt(len(sizes)))), int(image_hw[1] // place))
    row, column = np.divmod(np.arange(len(sizes)), columns)
    corners = np.stack((column, row % int(image_hw[0] // place)), axis=1) * place
    return np.concatenate((corners, corners + sizes), axis=1)


def _prompts(boxes: Floats) -> list[Prompt]:
    return [
        Prompt(prompt_id=str(number), image_id="i", image_uri="i", box_xyxy=(x0, y0, x1, y1))
        for number, (x0, y0, x1, y1) in enumerate(boxes.tolist())
    ]


def _cells() -> str:
    return " to ".join(f"{value:g}" for value in CELLS_OF_BOXES)


def _name(where: object) -> str:
    return where.__name__[1:].replace("_", " ")  # type: ignore[attr-defined, no-any-return]
