"""Measure what the clock of the stages costs `Refiner.refine_image`: CPU time with and without it, in turns.

    python benchmarks/stage_clock.py [--rounds 40] [--prompts 1 8] [--jitter 8]

nano refines an image of 640 x 480 pixels on one thread. On the side without the clock, its functions do nothing. Every
round runs each side once, in changing order; a ratio is the median of the rounds' ratios. Because other work on the
machine makes single rounds differ by more than the clock costs, the clock's own calls are timed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import numpy as np
import torch
from PIL import Image
from skimage import data

from stable_sam import timing as stage_clock
from stable_sam.config import RefinerConfig
from stable_sam.records import Prompt
from stable_sam.refining import predict, refiner, steps
from stable_sam.refining.refiner import Refiner
from stable_sam.timing import SPANS_OF_AN_IMAGE, StageClock, timed

SIDES = ("without", "with", "with spans")


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(1)
    model = Refiner(RefinerConfig(jitter_count=options.jitter))
    pixels = np.array(Image.fromarray(data.chelsea()).resize((640, 480)))
    for count in options.prompts:
        prompts = [
            Prompt(prompt_id=str(n), image_id="i", image_uri="/i", box_xyxy=(60.0 + 5 * n, 40.0, 400.0 + 5 * n, 420.0))
            for n in range(count)
        ]
        rounds = []
        for number in range(options.rounds + 1):
            took = {}
            for side in SIDES[:: 1 if number % 2 else -1]:
                with _side(side):
                    started = time.process_time()
                    model.refine_image(pixels, prompts)
                    took[side] = time.process_time() - started
            if number:
                rounds.append(took)
        calls = _calls(model, pixels, prompts)
        own = calls * _seconds_of_a_call()
        usual = statistics.median(took["without"] for took in rounds)
        ratios = {side: statistics.median(took[side] / took["without"] for took in rounds) for side in SIDES[1:]}
        print(
            f"{count} prompts, K = {options.jitter}: {1000 * usual:.1f} ms without; "
            + ", ".join(f"{side} {ratio:.4f} times" for side, ratio in ratios.items())
            + f"; {calls} calls of {1e6 * own / calls:.1f} us are {own / usual:.3%}"
        )


@contextlib.contextmanager
def _side(name: str) -> Iterator[None]:
    if name != "without":
        with StageClock(spans=SPANS_OF_AN_IMAGE if name == "with spans" else 0, about="/i"):
            yield
        return

    def nothing(stage: str, about: str = "") -> AbstractContextManager[None]:
        return nullcontext()

    with (
        mock.patch.object(refiner, "timed", nothing),
        mock.patch.object(steps, "timed", nothing),
        mock.patch.object(predict, "turn", lambda lock: lock),
    ):
        yield


def _calls(model: Refiner, pixels: np.ndarray, prompts: list[Prompt]) -> int:
    """How often an image makes the clock look at the time, in pairs."""
    count = 0

    class Counted(timed):
        def __enter__(self) -> Counted:
            nonlocal count
            count += 1
            return super().__enter__()

    with (
        mock.patch.object(refiner, "timed", Counted),
        mock.patch.object(steps, "timed", Counted),
        mock.patch.object(stage_clock, "timed", Counted),
    ):
        model.refine_image(pixels, prompts)
    return count


def _seconds_of_a_call(times: int = 20_000) -> float:
    with StageClock():
        started = time.process_time()
        for _ in range(times):
            with timed("rle"):
                pass
        return (time.process_time() - started) / times


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--jitter", type=int, default=8, help="K")
    return parser.parse_args()


if __name__ == "__main__":
    main()
