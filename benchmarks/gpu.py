"""Measure how many images a GPU refines in a second, from JPEG files to run lengths, and the gain of each step.

    python benchmarks/gpu.py --out gpu.json --markdown gpu.md                  # vit_b and vit_h, six minutes
    python benchmarks/gpu.py --models nano --minutes 2
    python benchmarks/gpu.py --device cpu --models tiny --row-seconds 0.1      # that it runs

Each step is a row, compared with the first row, `segment_anything`'s own modules in float32. As in an actor, several
threads take an image each from its file to its masks, and take turns at the GPU; the first images of each row are not
counted. The time is divided among the rows; rows for which no time is left are left out, and the program always ends in
time, with all finished rows in its files. `vit_*` have random weights and a random plugin, which have the same speed.
Their masks are noise with borders everywhere, so parity is measured on the logits, or with `nano`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from gpu_kernels import attention_forms, decode_speeds
from gpu_models import BusyLock, build, photographs
from gpu_report import Report
from model_path import some_boxes
from PIL import Image

import stable_sam.refining.predict
from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.modeling.fast.compiled import CompiledPasses
from stable_sam.modeling.load import LoadedModel
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import ImageJob, refine_job
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask
from tasks.actors.sizing import MAX_IMAGES_AT_ONCE

WORKLOADS = ((10, 8), (1, 0))
"""(prompts an image, K)"""
COMPILING_S = 60.0
"""A compiled step is begun only when so much time is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One way to run the model."""

    name: str
    reference: bool = False
    dtype: str = "float32"
    tf32: bool = False
    compiled: bool = False
    graphs: bool = False


STEPS = (
    Step(name="segment_anything, float32", reference=True),
    Step(name="ours, float32"),
    Step(name="+ bfloat16 encoder", dtype="bfloat16"),
    Step(name="+ TF32 in the decoder", dtype="bfloat16", tf32=True),
    Step(name="bfloat16 + torch.compile", dtype="bfloat16", compiled=True),
    Step(name="bfloat16 + torch.compile + CUDA graphs", dtype="bfloat16", compiled=True, graphs=True),
)


def main() -> None:
    """Measure for the time given, print tables and write JSON and Markdown."""
    options = _options()
    options.deadline = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1 if options.device != "cpu" else options.cores)
    cv2.setNumThreads(1)
    report = Report(options, STEPS[0].name)
    with tempfile.TemporaryDirectory() as folder:
        guard = threading.Timer(options.deadline - time.monotonic(), _end, (report, folder))
        guard.daemon = True
        guard.start()
        files = photographs(Path(folder), options.megapixels)
        if not options.no_kernels:
            report.add("decoding", *decode_speeds(files[max(files)], options.cores, options.device))
            report.add("attention", *attention_forms(options.models, options.device))
        models = {name: build(name, options.device) for name in options.models}
        compiled_models: dict[tuple[str, str], LoadedModel] = {}
        cells = [
            (name, step, workload, size)
            for compiled in (False, True)
            for name in options.models
            for step in STEPS
            if step.compiled == compiled and not (compiled and options.no_compile)
            for workload in WORKLOADS
            for size in sorted(files)
        ]
        for number, (name, step, workload, size) in enumerate(cells):
            left = options.deadline - time.monotonic() - 2.0
            if left < (COMPILING_S if step.compiled else 1.0):
                report.add("left_out", f"{name}, {step.name}, {workload}, {size:g} megapixels: no time left")
                continue
            if step.compiled:
                own = CompiledPasses(graphs=step.graphs and models[name].device.type == "cuda")
                compiled_models.setdefault((name, step.name), replace(models[name], compiled=own))
            model = compiled_models.get((name, step.name), models[name])
            row = measure(
                model, step, workload, files[size], min(options.row_seconds, left / (len(cells) - number)), options
            )
            report.add("rows", {"model": name, "step": step.name, "megapixels": size} | row)
    with report.lock:
        guard.cancel()
        report.compare()
        report.add("rows")
        print(report.text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_b", "vit_h"], choices=list(BASES))
    parser.add_argument("--minutes", type=float, default=6.0, help="the program ends after these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="CPU threads beside the GPU")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.4, 12.0])
    parser.add_argument(
        "--no-kernels", action="store_true", help="without the tables of attention and of JPEG decoding"
    )
    parser.add_argument("--no-compile", action="store_true", help="without the steps that take a minute to begin")
    parser.add_argument("--row-seconds", type=float, default=8.0, help="at most, for the images of a row")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    options.at_once = min(MAX_IMAGES_AT_ONCE, options.cores + 1)
    return options


def measure(
    model: LoadedModel,
    step: Step,
    workload: tuple[int, int],
    files: list[Path],
    seconds: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One row: images for about that many seconds, after those that warm it up."""
    count, jitter = workload
    prompts = {path: some_boxes(_size(path), count) for path in files}
    cuda = options.device.startswith("cuda")
    with running(model, step, jitter) as refiner, ThreadPoolExecutor(options.at_once) as pool:
        started = time.monotonic()
        parity = _parity(model, step, refiner, files[0], prompts[files[0]])
        warm = time.monotonic()
        _refine(refiner, pool, [files[n % len(files)] for n in range(2 * options.at_once)], prompts)
        rate = 2 * options.at_once / (time.monotonic() - warm)
        left = seconds - (time.monotonic() - started)
        images = max(options.at_once, int(rate * left))
        lock = BusyLock(model.device)
        refiner.model = replace(refiner.model, lock=lock)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        clock, cpu = time.perf_counter(), time.process_time()
        _refine(refiner, pool, [files[n % len(files)] for n in range(images)], prompts)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        return {
            "prompts": count,
            "K": jitter,
            "images/s": images / clock,
            "prompts/s": images * count / clock,
            "against the first": None,
            "CPU ms an image": 1000 * cpu / images,
            "GPU busy": lock.seconds() / clock,
            "peak GB": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
            **parity,
            "images": images,
            "warm-up s": warm - started,
        }


@contextmanager
def running(model: LoadedModel, step: Step, jitter: int) -> Iterator[Refiner]:
    """A refiner that runs `model` as `step` says, with K = `jitter`."""
    identity = replace(model.identity, dtype=step.dtype)
    compiled = model.compiled if step.compiled else None
    config = RefinerConfig(
        model=model.identity.model_id.partition("+")[0], checkpoint_uri=None, device=str(model.device),
        dtype=step.dtype, prompt_chunk_size=64, jitter_count=jitter, second_pass="off",  # type: ignore[arg-type]
    )  # fmt: skip
    loaded = replace(model, identity=identity, compiled=compiled)
    with mock.patch("stable_sam.refining.refiner.load_model", return_value=loaded):
        refiner = Refiner(config, RoutingConfig(calibration_uri=None))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if step.tf32 else "highest")
    kind = type(model.sam)
    try:
        with ExitStack() as reference:
            if step.reference:
                reference.enter_context(mock.patch.object(kind, "fast_features", kind.features))
                reference.enter_context(
                    mock.patch.object(stable_sam.refining.predict, "can_decode", return_value=False)
                )
            yield refiner
    finally:
        torch.set_float32_matmul_precision(before)


def _refine(
    refiner: Refiner, pool: ThreadPoolExecutor, paths: list[Path], prompts: dict[Path, list[Prompt]]
) -> list[list[RefinedMask]]:
    def one(path: Path) -> list[RefinedMask]:
        job = ImageJob(image_id="i", image_uri=path.name, prompts=tuple(prompts[path]), data=path.read_bytes())
        masks = refine_job(refiner, refiner.config, job)
        wrong = [mask.error for mask in masks if mask.status != "ok"]
        if wrong:
            raise RuntimeError(f"expected masks, got {wrong[0]}")
        return masks

    return list(pool.map(one, paths))


def _parity(model: LoadedModel, step: Step, refiner: Refiner, path: Path, prompts: list[Prompt]) -> dict[str, Any]:
    """The step's masks, scores and logits of one image against those of segment_anything's modules in float32."""
    pixels = np.asarray(Image.open(path))
    sides = []
    for side in (STEPS[0], step):
        with running(model, side, refiner.config.jitter_count) as own:
            judged = own if side is not step else refiner
            masks = judged.refine_image(pixels, prompts)
            arrays = PromptArrays(boxes_xyxy=np.array([prompt.box_xyxy for prompt in prompts]))
            sides.append((masks, predict(judged.model, embed_image(judged.model, pixels), arrays, 64).logits))
    (expected, reference), (masks, logits) = sides
    ious = [
        _iou(*(decode_mask(pixels.shape[:2], str(mask.mask_counts)) for mask in pair))
        for pair in zip(expected, masks, strict=True)
    ]
    scores = [abs((a.predicted_iou or 0) - (b.predicted_iou or 0)) for a, b in zip(expected, masks, strict=True)]
    return {
        "median IoU": float(np.median(ious)),
        "least IoU": float(min(ious)),
        "max IoU-score difference": max(scores),
        "logits, relative": float(np.abs(logits - reference).max() / np.abs(reference).max()),
    }


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.height, image.width


def _end(report: Report, folder: str) -> None:
    """Nothing stops a compiler, so the process ends here."""
    report.lock.acquire()  # for good
    report.compare()
    report.add("left_out", "what was being measured when the time was over")
    print(report.text(), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
