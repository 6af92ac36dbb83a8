"""A refiner without a model whose images do harm by their name: importable, so that a child process can load it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stable_sam.config import RunConfig
from stable_sam.errors import WeightsError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask

MODEL = ModelIdentity(model_id="tiny", weights_sha256="ab", dtype="float32")


class AcceleratorError(RuntimeError):
    """As torch calls it when a GPU is lost."""


class PlantedRefiner:
    identity = MODEL

    def refine_image(self, image: NDArray[np.uint8], prompts: Sequence[Prompt]) -> list[RefinedMask]:
        """`area` tells the process that made the mask; an attribute names a file that the harm leaves behind."""
        first = prompts[0]
        marker = Path(first.attributes) if first.attributes else None
        if marker is None or not marker.exists():
            if marker is not None:
                marker.touch()
            harm(first.image_id.partition("-")[0])
        return [RefinedMask(prompt_id=p.prompt_id, status="ok", area=os.getpid(), route="accept") for p in prompts]


def harm(kind: str) -> None:
    """What the first part of an image's name says."""
    match kind:
        case "abort":
            ctypes.CDLL(None).abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "exit":
            os._exit(3)
        case "hang":
            ctypes.PyDLL(None).sleep(1000)  # in C, with Python's lock: no thread of this process runs any more
        case "eat":
            eaten = []
            while True:
                eaten.append(np.ones(2**21))
        case "raise":
            raise MemoryError("out of memory")
        case "gpu":
            raise AcceleratorError("an illegal memory access")
        case "slow":
            time.sleep(0.3)


def load(config: RunConfig, threads: int) -> PlantedRefiner:
    if config.refiner.checkpoint_uri == "die":
        os._exit(4)
    if config.refiner.checkpoint_uri is not None:
        raise WeightsError(f"{config.refiner.checkpoint_uri}: no such weights")
    return PlantedRefiner()
