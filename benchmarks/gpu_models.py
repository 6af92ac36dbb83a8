"""Random models, images as large as a camera's, and a lock that measures waiting and holding, for `gpu.py`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import nn

from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig
from stable_sam.identity import ModelIdentity
from stable_sam.modeling.bases import build_base
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin


def build(name: str, device: str, *, plugin: bool = True, dtype: str = "float32") -> LoadedModel:
    """`nano` and `tiny` as they come; other bases with random weights, positions included, and a random plugin."""
    if name in ("nano", "tiny"):
        return load_model(RefinerConfig.from_dict({"model": name, "device": device, "dtype": dtype}))
    torch.manual_seed(0)
    sam = build_base(name)
    for key, parameter in sam.image_encoder.named_parameters():
        if "pos" in key:
            nn.init.normal_(parameter, std=0.02)  # zeros before training
    host = attach_plugin(sam, StableSamPlugin(sam.prompt_encoder.embed_dim)) if plugin else None
    sam.requires_grad_(False).eval().to(device)
    model_id = f"{name}+plugin" if plugin else name
    identity = ModelIdentity(model_id=model_id, weights_sha256="random", dtype=dtype)
    return LoadedModel(base=BASES[name], sam=sam, host=host, identity=identity, device=torch.device(device))


def photographs(folder: Path, megapixels: list[float]) -> dict[float, list[Path]]:
    """JPEG files of each size, 4:3, of the photographs that come with scikit-image; enlarged, with a sensor's noise."""
    noise = np.random.default_rng(0)
    files: dict[float, list[Path]] = {}
    for size in megapixels:
        height = round((size * 1e6 * 3 / 4) ** 0.5)
        for name in ("astronaut", "chelsea", "coffee", "rocket"):
            picture = Image.fromarray(getattr(data, name)()).resize((height * 4 // 3, height), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture).astype(np.int16) + noise.integers(-4, 5, (*picture.size[::-1], 1), np.int16)
            path = folder / f"{name}-{size:g}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
            files.setdefault(size, []).append(path)
    return files


class BusyLock:
    """A lock, and how long passes under it took: on a GPU by its own clock, from their first to their last kernel."""

    def __init__(self, device: torch.device) -> None:
        self._lock = threading.Lock()
        self._cuda = device.type == "cuda"
        self._since = 0.0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._since = time.perf_counter()
        if self._cuda:
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            self._events[-1][1].record()
        self._seconds += time.perf_counter() - self._since
        self._lock.release()

    def seconds(self) -> float:
        """Of all passes together."""
        if not self._cuda:
            return self._seconds
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self._events) / 1000
