"""The loop that every training runs: steps by number, averaged weights, a log, checkpoints, resume after a kill."""

from __future__ import annotations

import csv
import logging
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from stable_sam.errors import StorageError, WeightsError, one_line
from stable_sam.storage.parallel import ahead
from stable_sam.training.progress import progress_bar
from stable_sam.training.training_config import TrainingSettings

log = logging.getLogger(__name__)

REPORT_STEPS = 20
BATCHES_AHEAD = 4

Figures = dict[str, float]
Export = Callable[[nn.Module, int, Figures], Path]
"""(averaged module, step, figures of the log's last row, without times) -> the file it was written to."""


class OnDevice(Protocol):
    """A batch: all that the loop asks of one."""

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""


AnyBatch = TypeVar("AnyBatch", bound=OnDevice)


class TrainingLoop:
    """State of a run that outlives a kill: weights, averaged weights, optimiser, step, log."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        settings: TrainingSettings,
        out_dir: Path,
        export: Export,
        *,
        steps: int,
        run: str = "",
    ) -> None:
        """`groups`: AdamW parameter groups, each with its part of the learning rate as "part". `run`: what a checkpoint
        must have been made for, beside the module's shape, to go on from it.

        Raises `StorageError` when `out_dir` cannot be made, `WeightsError` when its checkpoint is of another run.
        """
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{out_dir}: expected a folder to write to: {error.strerror}") from None
        self.module, self.settings, self.out_dir, self._export = module, settings, out_dir, export
        self.steps, self.run_name, self.step, self.seconds = steps, run, 0, 0.0
        for group in groups:
            group["peak"] = settings.learning_rate * group.pop("part")
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        self.average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average)
        self.rows: list[Figures] = []
        """The log so far: its file is written from here, so that a resumed run has no row twice."""
        self._recent: list[Figures] = []
        self._resume()

    def run(
        self, make_batch: Callable[[int], AnyBatch], loss: Callable[[AnyBatch, int], tuple[Tensor, Figures]]
    ) -> Path:
        """Do the steps that are left and return the exported weights.

        make_batch: step -> its batch, called in a thread. loss: (batch, step) -> the loss and the figures to log; a
        figure may be absent from some steps. On a GPU the loss is computed in bfloat16 autocast.
        """
        started = time.monotonic() - self.seconds
        device = next(self.module.parameters()).device
        with progress_bar("training", self.steps, self.step) as advance:
            for batch in ahead(make_batch, range(self.step, self.steps), BATCHES_AHEAD, threads=1):
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    value, figures = loss(batch.to(device), self.step)
                rate = self._learn(value)
                self._recent.append({"rate": rate, "loss": value.item(), **figures})
                self.seconds = time.monotonic() - started
                self._report()
                advance()
        return self._export_average()

    def _learn(self, value: Tensor) -> float:
        rate = rate_factor(self.step, self.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.average.update_parameters(self.module)
        self.step += 1
        return rate

    def _report(self) -> None:
        ended = self.step == self.steps
        if self.step % REPORT_STEPS == 0 or ended:
            figures = mean_figures(self._recent)
            self.rows.append({"step": self.step, "seconds": round(self.seconds, 1), **figures})
            write_csv(self.out_dir / "log.csv", self.rows)
            text = " ".join(f"{name}={value}" for name, value in figures.items())
            left = self.seconds / self.step * (self.steps - self.step)
            log.info("step %d/%d, %.0f s, %.0f s left: %s", self.step, self.steps, self.seconds, left, text)
            self._recent = []
        if self.step % self.settings.checkpoint_steps == 0 or ended:
            self._checkpoint()

    def last_figures(self) -> Figures:
        """The figures of the log's last row, without times."""
        last = self.rows[-1] if self.rows else {}
        return {name: value for name, value in last.items() if name not in ("step", "seconds")}

    def _export_average(self) -> Path:
        return self._export(self.average.module, self.step, self.last_figures())

    def _checkpoint(self) -> None:
        state = {
            "run": self.run_name,
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "recent": self._recent,
            "model": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.out_dir / "checkpoint.partial"
        try:
            torch.save(state, partial)
            os.replace(partial, self.out_dir / "checkpoint.pt")
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the one or the other
            raise StorageError(f"{partial}: cannot write: {one_line(error)[:200]}") from None
        self._export_average()

    def _resume(self) -> None:
        file = self.out_dir / "checkpoint.pt"
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=next(self.module.parameters()).device, weights_only=True)
            if state.get("run", self.run_name) != self.run_name:
                raise ValueError(f"it is of {state['run']}, this run is of {self.run_name}")
            self.module.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state.get("seconds", 0.0)
            self.rows, self._recent = state.get("rows", []), state.get("recent", [])
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
            reason = one_line(error)[:200]
            raise WeightsError(f"{file}: not a checkpoint of this run, remove it to start anew: {reason}") from None
        log.info("resumed at step %d of %d", self.step, self.steps)


def rate_factor(step: int, steps: int, settings: TrainingSettings) -> float:
    """Part of the peak learning rate in `step` of `steps`: linear warm-up, flat, linear cool-down to 0."""
    warm = (step + 1) / max(1, min(settings.warmup_steps, steps // 4))
    left = (steps - step) / (steps * settings.cooldown)
    return min(1.0, warm, left)


def mean_figures(rows: list[Figures]) -> Figures:
    """Mean of each figure over the rows that have it, in order of first appearance."""
    means = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        means[key] = round(sum(values) / len(values), 4)
    return means


def write_csv(file: Path, rows: list[Figures]) -> None:
    """Write all rows, whole or not at all; a figure that a row does not have stays empty."""
    partial = file.with_suffix(".partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(file)
    except OSError as error:
        raise StorageError(f"{file}: cannot write: {error.strerror}") from None
