"""The child process, which an image may kill: it takes image jobs from a pipe and answers with masks.

The child holds the model, or no model where it only prepares and finishes images for a model in another process. It is
started by `tasks.actors.child_process`, and knows neither stores nor shards.
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
"""A function of the run's config and a number of threads that loads the model; it raises `StableSamError`."""
Answer = list[RefinedMask] | PreparedImage | InferredImage
"""Masks, or an image for the next step in another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What a child process is told when it starts."""

    load: bytes | int
    """A pickled `LoadRefiner`; or, for a child without a model, the side in pixels of the model's square input."""
    config: RunConfig
    threads: int
    """Number of threads of the arithmetic."""
    images_at_once: int
    """Number of images in the child at the same time, each in a thread; the threads take turns at the model."""
    keep_spans: bool = False
    """Whether answers hold the spans of single pieces of work besides the seconds of the stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a child process says when it is ready."""

    identity: ModelIdentity | None
    """Identity of the child's model; None when it has no model."""
    input_side: int | None
    """Side in pixels of the model's square input, when its images may be prepared and finished in other processes."""


def load_refiner(config: RunConfig, threads: int) -> ImageRefiner:
    """Load the `Refiner` of `config` and refine once, because the first pass takes longer than all others."""
    from stable_sam.refining.refiner import Refiner

    _use_threads(threads)
    refiner = Refiner(config.refiner, config.routing)
    prompt = Prompt(prompt_id="warm", image_id="warm", image_uri="", box_xyxy=(8.0, 8.0, 24.0, 24.0))
    refiner.refine_image(np.zeros((32, 32, 3), np.uint8), [prompt])
    return refiner


def serve(pipe: int, parent: int) -> None:
    """Load the model, send `Hello`, and answer jobs until the pipe is closed.

    pipe: file descriptor of the child's end. parent: process id of the parent. A job (number, job) is answered with
    (number, `Answer`, `Times`). When the model cannot be loaded, a `StableSamError` is sent in the place of `Hello`. A
    job that raises, as on a lost GPU, is answered with a line of text in the place of the `Answer`.
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


def signal_when_parent_ends(number: signal.Signals) -> None:
    """Have the system send a signal to this process when its parent ends; does nothing on systems other than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


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
    raise TypeError(f"expected a job that this process can do, got {type(job).__name__}")


def _use_threads(count: int) -> None:
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def _die_with(parent: int) -> None:
    """End this process with its parent: an actor that is killed must not leave its model on the GPU.

    On systems other than Linux the process ends when it finds its pipe closed.
    """
    signal_when_parent_ends(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
