"""Measure every stage of an image's way through an actor on one thread: the usual code against ours.

    python -m benchmarks.stages --out stages.json --markdown stages.md
    python -m benchmarks.stages --stages decode write --rounds 21
    python -m benchmarks.stages --s3                       # fetch from an S3 emulator (moto), too

Both sides of a stage get the same input and take turns within every round, in an order that changes; a ratio is the
median of the rounds' ratios. Milliseconds are CPU time, which other work on the machine stretches less than wall-clock
time. `stage_cases.py` and `stage_row_cases.py` hold the two sides of each stage; a column of the table says how far our
result is from the usual one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import stage_cases, stage_row_cases
from benchmarks.model_path import load_refiner
from benchmarks.stage_cases import Case
from benchmarks.timing import add_outputs, cell, interleaved, spread, write
from stable_sam.bases import BASES
from stable_sam.refining.refiner import Refiner

STAGES = "fetch", "decode", "resize", "encode", "prompts", "jitter", "upsample", "rle", "score", "write", "commit"
AT_LEAST_S = 0.02
"""That a side takes in a round: short calls are repeated."""


def main() -> None:
    """Measure, print a table and write JSON and Markdown."""
    options = _options()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bucket_uri = stack.enter_context(stage_row_cases.s3_emulator(folder)) if options.s3 else None
        refiner = load_refiner(options.model, "float32", options)
        makers: dict[str, Callable[[], Iterator[Case]]] = {
            "fetch": partial(stage_row_cases.fetch_cases, folder, bucket_uri),
            "decode": partial(stage_cases.decode_cases, (384, 1024)),
            "resize": partial(stage_cases.resize_cases, (384, 1024)),
            "encode": partial(stage_cases.encode_cases, refiner),
            "prompts": partial(stage_cases.prompt_cases, refiner),
            "jitter": partial(stage_cases.jitter_cases, refiner),
            "upsample": partial(stage_cases.upsample_cases, refiner),
            "rle": partial(stage_cases.rle_cases, refiner.input_side),
            "score": partial(stage_cases.score_cases, refiner.input_side),
            "write": stage_row_cases.write_cases,
            "commit": partial(stage_row_cases.commit_cases, folder),
        }
        cases = [_measured(case, options.rounds) for stage in options.stages for case in makers[stage]()]
    result = _facts(refiner, options) | {"cases": cases}
    write(result, _markdown(result) + "\n", options)


def _measured(case: Case, rounds: int) -> dict[str, Any]:
    sides = {"ours": case.ours} if case.usual is None else {"usual": case.usual, "ours": case.ours}
    times = {
        side: np.array(seconds) for side, seconds in interleaved(sides, rounds=rounds, at_least_s=AT_LEAST_S).items()
    }  # (rounds, 2)
    usual, ours = times.get("usual"), times["ours"]
    return {
        "stage": case.stage,
        "what": case.what,
        "usual_ms": None if usual is None else spread(1000 * usual[:, 1]),
        "ours_ms": spread(1000 * ours[:, 1]),
        "usual_to_ours": None if usual is None else spread(usual[:, 1] / ours[:, 1]),
        "usual_to_ours_clock": None if usual is None else spread(usual[:, 0] / ours[:, 0]),
        "ours_clock_ms": spread(1000 * ours[:, 0]),
        "difference": case.difference,
    }


def _facts(refiner: Refiner, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": refiner.identity.model_id,
        "input_size": refiner.input_side,
        "rounds": options.rounds,
        "load_average": os.getloadavg()[0],
    }


def _markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']} at {result['input_size']} px, one thread: medians of {result['rounds']} rounds, in "
        f"brackets the middle half; milliseconds and ratios of CPU time; load {result['load_average']:.1f}.",
        "",
        "| stage | | usual, ms | ours, ms | usual / ours | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {case['stage']} | {case['what']} | {cell(case['usual_ms'], 2)} | {cell(case['ours_ms'], 2)} "
        f"| {cell(case['usual_to_ours'], 2)} | {case['difference']} |"
        for case in result["cases"]
    ]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--model", choices=list(BASES), default="nano", help="of the model's stages")
    parser.add_argument("--plugin", action="store_true", help="a random plugin; nano has its own always")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--s3", action="store_true", help="fetch from an S3 emulator, too")
    parser.set_defaults(device="cpu")
    add_outputs(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
