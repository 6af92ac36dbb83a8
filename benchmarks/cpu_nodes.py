"""Measure, for each image, the work that helpers take off the node with the GPU, and the bytes that are sent for it.

    python benchmarks/cpu_nodes.py [--side 1024] [--repeat 5] [--prompts 1 10]

The command prints the CPU time (not wall-clock) of one thread, the median of a few repetitions, on JPEGs of 1.4 and 12
megapixels, as JSON and as a Markdown table. The model is left out; its answers are random.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from stable_sam.config import RunConfig
from stable_sam.images.decode import decode_image
from stable_sam.records import Prompt
from stable_sam.refining.image_job import ImageJob, finish_job, prepare_job
from stable_sam.refining.stability import prompt_stability
from stable_sam.refining.steps import InferredImage, InferredPrompts, PreparedImage

SIZES = {"1.4 MP": (1024, 1365), "12 MP": (3000, 4000)}


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    measured = [
        measure(name, hw, count, options.side, options.repeat)
        for name, hw in SIZES.items()
        for count in options.prompts
    ]
    print(json.dumps(measured, indent=1))
    for line in table(measured):
        print(line)


def measure(name: str, hw: tuple[int, int], count: int, side: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of CPU and bytes of one image with so many prompts."""
    config, job = RunConfig(), image(hw, count)

    def took(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeat):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        return round(1000 * statistics.median(times), 1)

    prepared = prepare_job(config.refiner, side, job)
    assert isinstance(prepared, PreparedImage), prepared
    inferred = answered(prepared)
    sent, received = pickle.dumps(prepared, 5), pickle.dumps(inferred, 5)
    near = [inferred.inferred[0].logits[0]] * config.refiner.jitter_count
    decode = took(lambda: decode_image(job.data, name=name, max_pixels=10**9))
    prepare = took(lambda: prepare_job(config.refiner, side, job))
    finish = took(lambda: finish_job(config, inferred))
    stability = count * took(lambda: prompt_stability(prepared.frame.to_input(one) > 0 for one in near))
    # Through Ray and through the pipe of the model's process: four copies in all on the model's node.
    moves = took(lambda: pickle.loads(pickle.dumps(pickle.loads(sent), 5)))
    moves += took(lambda: pickle.dumps(pickle.loads(pickle.dumps(inferred, 5)), 5))
    return {
        "image": name,
        "prompts": count,
        "file_kb": len(job.data) // 1000,
        "prepared_kb": len(sent) // 1000,
        "inferred_kb": len(received) // 1000,
        "decode_ms": decode,
        "prepare_ms": prepare,
        "finish_ms": finish,
        "stability_ms": round(stability, 1),
        "moves_ms": round(moves, 1),
        "gpu_node_without_ms": round(prepare + finish, 1),
        "gpu_node_with_ms": round(moves, 1),
    }


def image(hw: tuple[int, int], prompts: int) -> ImageJob:
    """A JPEG with about the detail of a photograph."""
    height, width = hw
    noise = np.random.default_rng(0)
    pixels = Image.fromarray(noise.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    pixels.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    boxes = tuple(
        Prompt(prompt_id=str(n), image_id="i", image_uri="/i", box_xyxy=(0.2 * width, 0.2 * height, width - n, height))
        for n in range(prompts)
    )
    return ImageJob(image_id="i", image_uri="/i", prompts=boxes, data=file.getvalue())


def answered(prepared: PreparedImage) -> InferredImage:
    """What a model might say: one round object for each prompt."""
    count, cells = len(prepared.prompts), prepared.frame.side // 4
    y, x = np.mgrid[:cells, :cells]
    logits = (0.3 * cells - np.hypot(y - cells / 2.5, x - cells / 2.5)).astype(np.float32)
    return InferredImage(
        image_uri=prepared.image_uri,
        prompts=prepared.prompts,
        inferred=(
            InferredPrompts(
                frame=prepared.frame,
                indices=tuple(range(count)),
                logits=np.repeat(logits[None], count, axis=0),
                iou=np.full(count, 0.9, np.float32),
                dsp_weight=np.zeros(count, np.float32),
                prompt_stability=(0.9,) * count,
                second_pass=(None,) * count,
                view=(None,) * count,
            ),
        ),
    )


def table(measured: list[dict[str, Any]]) -> list[str]:
    """Markdown, one column for each measurement."""
    rows = [["", *(f"{m['image']}, {m['prompts']} prompt{'s' * (m['prompts'] > 1)}" for m in measured)]]
    rows += [[name, *(f"{m[name]:g}" for m in measured)] for name in measured[0] if name not in ("image", "prompts")]
    rows.insert(1, ["---"] * len(rows[0]))
    return [f"| {' | '.join(row)} |" for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of the model's input: 384 of nano, 1024 of others")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 10])
    return parser.parse_args()


if __name__ == "__main__":
    main()
