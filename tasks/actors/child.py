"""The process that an image may kill: takes image jobs from its pipe and answers with masks, until it is killed.

It holds the model, or none where it only prepares and finishes images for a model elsewhere. Started by
`tasks.actors.child_process`; knows neither stores nor shards.
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
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import (
    ImageJob,
    ImageRefiner,
    Job,
    StagedRefiner,
    finish_job,
    infer_job,
    prepare_job,
    refine_job,
)
from stable_sam.refining.steps import InferredImage, PreparedImage
from stable_sam.timing import SPANS_OF_AN_IMAGE, StageClock

_PR_SET_PDEATHSIG = 1

LoadRefiner = Callable[[RunConfig, int], ImageRefiner]
"""The run's configuration and a number of threads to a loaded model; raises `StableSamError`."""
Answer = list[RefinedMask] | PreparedImage | InferredImage
"""Masks, or what goes on to the next stage elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What a child is told when it starts."""

    load: bytes | int
    """Pickled `LoadRefiner`; or no model, only the side of its square input in pixels."""
    config: RunConfig
    threads: int
    """Of the arithmetic."""
    images_at_once: int
    """Images decoded, refined and encoded at the same time, by threads that take turns at the model."""
    keep_spans: bool = False
    """Whether answers tell of single pieces of work besides the seconds of the stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a child says of itself when it is ready."""

    identity: ModelIdentity | None
    """Of its model."""
    input_side: int | None
    """Side of the model's input in pixels, when images may be prepared and finished elsewhere."""


def load_refiner(config: RunConfig, threads: int) -> ImageRefiner:
    """The `Refiner` that the configuration names, warm: what a first pass takes once is no image's."""
    from stable_sam.refining.refiner import Refiner

    _use_threads(threads)
    refiner = Refiner(config.refiner, config.routing)
    prompt = Prompt(prompt_id="warm", image_id="warm", image_uri="", box_xyxy=(8.0, 8.0, 24.0, 24.0))
    refiner.refine_image(np.zeros((32, 32, 3), np.uint8), [prompt])
    return refiner


def serve(pipe: int, parent: int) -> None:
    """Load the model, say `Hello`, then answer (number, job) with (number, `Answer`, `Times`) until the pipe is
    closed.

    What is wrong with the model is said instead. A job that raises, as on a lost GPU, is answered with one line instead
    of masks.
    """
    _die_with(parent)
    connection = Connection(pipe)
    settings: ChildSettings = connection.recv()
    Image.init()  # loads the decoders
    refiner: ImageRefiner | None = None
    try:
        if isinstance(settings.load, bytes):
            load: LoadRefiner = pickle.loads(settings.load)
            refiner = load(settings.config, settings.threads)
        else:
            _use_threads(settings.threads)
    except StableSamError as error:
        connection.send(error)
        return
    except Exception as error:
        connection.send(StableSamError(f"the model cannot be loaded: {type(error).__name__}: {one_line(error)[:300]}"))
        return
    connection.send(
        Hello(
            identity=None if refiner is None else refiner.identity,
            input_side=refiner.input_side if isinstance(refiner, StagedRefiner) else None,
        )
    )
    answering = threading.Lock()

    def answer(number: int, job: Job) -> None:
        with StageClock(spans=SPANS_OF_AN_IMAGE if settings.keep_spans else 0, about=job.image_uri) as clock:
            try:
                answer: Answer | str = _answer(refiner, settings, job)
            except Exception as error:
                answer = f"{type(error).__name__}: {one_line(error)[:300]}"
        with answering:
            connection.send((number, answer, clock.times()))

    with ThreadPoolExecutor(settings.images_at_once) as pool:
        while True:
            try:
                number, job = connection.recv()
            except EOFError:
                return
            pool.submit(answer, number, job)


def _answer(refiner: ImageRefiner | None, settings: ChildSettings, job: Job) -> Answer:
    match job:
        case ImageJob() if isinstance(settings.load, int):
            return prepare_job(settings.config.refiner, settings.load, job)
        case ImageJob() if refiner is not None:
            return refine_job(refiner, settings.config.refiner, job)
        case PreparedImage() if isinstance(refiner, StagedRefiner):
            return infer_job(refiner, job)
        case InferredImage():
            return finish_job(settings.config, job)
    raise TypeError(f"a job that this process cannot do: {type(job).__name__}")


def _use_threads(count: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def _die_with(parent: int) -> None:
    """An actor that is killed must not leave its model on the GPU. On Linux only; elsewhere the closed pipe tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
