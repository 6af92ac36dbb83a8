"""The loop that both trainings run: steps by number, averaged weights, a log, checkpoints, resume after a kill."""

from __future__ import annotations

import csv
import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stable_sam.errors import StorageError, WeightsError
from stable_sam.training.dataset import Batch, TrainingBatches, TrainingImage
from stable_sam.training.settings import Stage, TrainingSettings

log = logging.getLogger(__name__)

REPORT_STEPS = 20
BATCHES_AHEAD = 4

Loss = Callable[[Batch, Stage, int], tuple[Tensor, dict[str, float]]]
"""(batch, stage, step) -> loss and the figures to log; a figure may be absent from some steps."""


class TrainingLoop:
    """State of a run that outlives a kill: weights, averaged weights, optimiser, step."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        settings: TrainingSettings,
        out_dir: Path,
        export: Callable[[nn.Module, int], Path],
    ) -> None:
        """`groups`: AdamW parameter groups, each with its part of the learning rate as "part".

        Raises `StorageError` when `out_dir` cannot be made, `WeightsError` when its checkpoint is of another run.
        """
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{out_dir}: expected a folder to write to: {error.strerror}") from None
        self.module, self.settings, self.out_dir, self._export, self.step = module, settings, out_dir, export, 0
        for group in groups:
            group["peak"] = settings.learning_rate * group.pop("part")
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        self.average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average)
        self._recent: list[dict[str, float]] = []
        self._resume()

    def run(self, sets: dict[str, list[TrainingImage]], points: int, loss: Loss) -> Path:
        """Do the steps that are left; `points` are drawn for each object. Returns the exported weights."""
        started = time.monotonic()
        device = next(self.module.parameters()).device
        for batch, stage in _batches(sets, self.settings, self.step, points):
            row = self._train_step(batch.to(device), stage, loss)
            self._report(row, time.monotonic() - started)
        return self._export(self.average.module, self.step)

    def _train_step(self, batch: Batch, stage: Stage, loss: Loss) -> dict[str, float]:
        rate = rate_factor(self.step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        value, row = loss(batch, stage, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.average.update_parameters(self.module)
        self.step += 1
        return {"size": stage.size, "rate": rate, "loss": value.item(), **row}

    def _report(self, row: dict[str, float], seconds: float) -> None:
        self._recent.append(row)
        if self.step % REPORT_STEPS == 0:
            figures = mean_figures(self._recent)
            append_csv(self.out_dir / "log.csv", {"step": self.step, "seconds": round(seconds, 1), **figures})
            text = " ".join(f"{name}={value}" for name, value in figures.items())
            log.info("step %d/%d %s", self.step, self.settings.total_steps, text)
            self._recent = []
        if self.step % self.settings.checkpoint_steps == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        state = {
            "step": self.step,
            "model": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.out_dir / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.out_dir / "checkpoint.pt")
        self._export(self.average.module, self.step)

    def _resume(self) -> None:
        file = self.out_dir / "checkpoint.pt"
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=next(self.module.parameters()).device, weights_only=True)
            self.module.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{file}: not a checkpoint of this run, remove it to start anew: {reason}") from None
        log.info("resumed at step %d of %d", self.step, self.settings.total_steps)


def rate_factor(step: int, settings: TrainingSettings) -> float:
    """Part of the peak learning rate: linear warm-up, flat, linear cool-down to 0."""
    warm = (step + 1) / max(1, settings.warmup_steps)
    left = (settings.total_steps - step) / (settings.total_steps * settings.cooldown)
    return min(1.0, warm, left)


def mean_figures(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows that have it, in order of first appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    means = {}
    for key in keys:
        values = [row[key] for row in rows if key in row]
        means[key] = round(sum(values) / len(values), 4)
    return means


def append_csv(file: Path, row: dict[str, float]) -> None:
    """Append one row to a CSV file whose header is that of its first row; a figure missing in `row` stays empty."""
    header = list(row)
    if file.exists():
        with file.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream))
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, header, extrasaction="ignore")
        if stream.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def _batches(
    sets: dict[str, list[TrainingImage]], settings: TrainingSettings, first: int, points: int
) -> Iterator[tuple[Batch, Stage]]:
    start = 0
    for number, stage in enumerate(settings.stages):
        dataset = TrainingBatches(
            sets, settings.set_weights, size=stage.size, batch_images=stage.batch_images, objects=settings.objects,
            points=points, seed=settings.seed + number, paste=settings.paste,
        )  # fmt: skip
        steps = range(max(first, start), start + stage.steps)
        start += stage.steps
        for batch in _ahead(dataset, steps):
            yield batch, stage


def _ahead(batches: TrainingBatches, steps: Iterable[int]) -> Iterator[Batch]:
    """The batches of `steps` in order, made by a thread while the model learns."""
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(max_workers=1) as maker:
        for step in steps:
            waiting.append(maker.submit(batches.__getitem__, step))
            if len(waiting) == BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
