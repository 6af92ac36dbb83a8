"""The process that holds a model: takes image jobs from its pipe and answers with masks, until it is killed.

Started by `tasks.refiner_process`; knows neither stores nor shards.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

from stable_sam.config import RunConfig
from stable_sam.errors import StableSamError, one_line
from stable_sam.image_job import ImageJob, ImageRefiner, refine_job
from stable_sam.records import Prompt

_PR_SET_PDEATHSIG = 1

LoadRefiner = Callable[[RunConfig, int], ImageRefiner]
"""The run's configuration and a number of threads to a loaded model; raises `StableSamError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What a child is told when it starts."""

    load: bytes
    """Pickled `LoadRefiner`."""
    config: RunConfig
    threads: int
    """Of the arithmetic."""
    images_at_once: int
    """Images decoded, refined and encoded at the same time, by threads that take turns at the model."""


def load_refiner(config: RunConfig, threads: int) -> ImageRefiner:
    """The `Refiner` that the configuration names, warm: what a first pass takes once is no image's."""
    import cv2
    import torch

    from stable_sam.refiner import Refiner

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    refiner = Refiner(config.refiner, config.routing)
    prompt = Prompt(prompt_id="warm", image_id="warm", image_uri="", box_xyxy=(8.0, 8.0, 24.0, 24.0))
    refiner.refine_image(np.zeros((32, 32, 3), np.uint8), [prompt])
    return refiner


def serve(pipe: int, parent: int) -> None:
    """Load the model, say which it is, then answer (number, job) with (number, masks) until the pipe is closed.

    What is wrong with the model is said instead of its identity. A job that raises, as on a lost GPU, is answered with
    one line instead of masks.
    """
    _die_with(parent)
    connection = Connection(pipe)
    settings: ChildSettings = connection.recv()
    Image.init()  # loads the decoders
    try:
        load: LoadRefiner = pickle.loads(settings.load)
        refiner = load(settings.config, settings.threads)
    except StableSamError as error:
        connection.send(error)
        return
    except Exception as error:
        connection.send(StableSamError(f"the model cannot be loaded: {type(error).__name__}: {one_line(error)[:300]}"))
        return
    connection.send(refiner.identity)
    answering = threading.Lock()

    def answer(number: int, job: ImageJob) -> None:
        try:
            answer: object = refine_job(refiner, settings.config.refiner, job)
        except Exception as error:
            answer = f"{type(error).__name__}: {one_line(error)[:300]}"
        with answering:
            connection.send((number, answer))

    with ThreadPoolExecutor(settings.images_at_once) as pool:
        while True:
            try:
                number, job = connection.recv()
            except EOFError:
                return
            pool.submit(answer, number, job)


def _die_with(parent: int) -> None:
    """An actor that is killed must not leave its model on the GPU. On Linux only; elsewhere the closed pipe tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
