"""Time parts of `gpu.py`'s path alone: ways to give relative positions to the fused attention and to decode JPEGs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.io import ImageReadMode, decode_jpeg

from stable_sam.images.decode import decode_image
from stable_sam.modeling.fast import encoder

HEADS = {"vit_b": (12, 64), "vit_l": (16, 64), "vit_h": (16, 80)}
"""Heads and channels of a head."""
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
SECONDS = 2.0
"""Of each way to decode."""


@torch.inference_mode()
def attention_forms(models: list[str], device: str) -> list[dict[str, Any]]:
    """Milliseconds of the attention of a global layer at 1024 pixels, by form, kernel and arithmetic; on a GPU."""
    entries: list[dict[str, Any]] = []
    if not device.startswith("cuda"):
        return entries
    for model in [name for name in models if name in HEADS]:
        heads, channels = HEADS[model]
        for dtype in (torch.bfloat16, torch.float32):
            q, k, v = (torch.randn(1, heads, 4096, channels, device=device, dtype=dtype) for _ in range(3))
            table = torch.randn(64, 64, channels, device=device, dtype=dtype) * 0.02
            given = (q, k, v, (table, table), channels**-0.5)
            for form in (encoder.read_in_parts, encoder.read_by_channels):
                entry: dict[str, Any] = {"model": model, "dtype": str(dtype).removeprefix("torch.")}
                entry["form"] = "mask" if form is encoder.read_in_parts else "channels (ours)"
                with mock.patch.object(encoder, "SCORES_AT_A_TIME", 2**40):  # the whole mask
                    entry["default, ms"] = _milliseconds(lambda form=form, given=given: form(*given))
                    for name, kernel in KERNELS.items():
                        with sdpa_kernel(kernel):
                            entry[f"{name}, ms"] = _milliseconds(lambda form=form, given=given: form(*given))
                entries.append(entry)
    return entries


def _milliseconds(call: Callable[[], object], rounds: int = 10) -> float | None:
    """None where the kernel does not take it."""
    try:
        call()
    except RuntimeError:
        return None
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / rounds


def decode_speeds(files: list[Path], cores: int, device: str) -> list[dict[str, Any]]:
    """Images in a second of ways to decode these JPEG files, on all cores or on the GPU."""
    bytes_of = [path.read_bytes() for path in files]
    height, width = decode_image(bytes_of[0], name="", max_pixels=2**30).shape[:2]
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow (the pipeline)": lambda one: decode_image(one, name="", max_pixels=2**30),
        "Pillow, reduced to 1024 and more": _reduced,
        "torchvision (libjpeg)": lambda one: decode_jpeg(_as_tensor(one), mode=ImageReadMode.RGB),
    }
    entries: list[dict[str, Any]] = []
    with ThreadPoolExecutor(cores) as pool:
        for name, way in ways.items():
            rate = _rate(lambda count, way=way: list(pool.map(way, [bytes_of[n % 4] for n in range(count)])), cores)
            entries.append({"way": name, "megapixels": height * width / 1e6, "threads": cores, "images/s": rate})
    if device.startswith("cuda"):
        tensors = [_as_tensor(one) for one in bytes_of]

        def on_gpu(count: int) -> None:
            decode_jpeg([tensors[n % 4] for n in range(count)], mode=ImageReadMode.RGB, device=device)
            torch.cuda.synchronize()

        try:
            rate = _rate(on_gpu, 16)
        except (RuntimeError, ValueError) as error:
            print(f"nvJPEG: {error}")
        else:
            entry = {"way": "torchvision (nvJPEG), 16 together", "megapixels": height * width / 1e6, "threads": 1}
            entries.append(entry | {"images/s": rate})
    return entries


def _reduced(one: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(one))
    image.draft("RGB", (1024, 1024))
    return np.asarray(image)


def _as_tensor(one: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(one, np.uint8).copy())


def _rate(some: Callable[[int], object], count: int) -> float:
    some(count)
    done, started = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - started < SECONDS:
        some(count)
        done += count
    return done / (time.perf_counter() - started)
