"""The training loop of all modules, with averaged weights, a log, checkpoints, and resuming after a kill."""

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
from stable_sam.training.training_config import TrainingConfig

log = logging.getLogger(__name__)

REPORT_STEPS = 20
BATCHES_AHEAD = 4

Figures = dict[str, float]
Export = Callable[[nn.Module, int, Figures], Path]
"""A function (averaged module, step, figures of the log's last row without times) -> file it wrote the weights to."""


class OnDevice(Protocol):
    """The only method of a batch that the loop needs."""

    def to(self, device: torch.device) -> Self:
        """Return this batch on `device`."""


AnyBatch = TypeVar("AnyBatch", bound=OnDevice)


class TrainingLoop:
    """Trains a module; a checkpoint keeps its weights, averaged weights, optimiser, step and log across a kill."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        config: TrainingConfig,
        out_dir: Path,
        export: Export,
        *,
        steps: int,
        subject: str = "",
    ) -> None:
        """`groups` are AdamW's parameter groups, each with its part of the learning rate as "part". `subject` describes
        what is trained: training resumes only from a checkpoint of the same subject.

        Raises `StorageError` when `out_dir` cannot be made, and `WeightsError` when its checkpoint is broken or of
        another training.
        """
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{out_dir}: expected a folder to write to: {error.strerror}") from None
        self.module, self.config, self.out_dir, self._export = module, config, out_dir, export
        self.steps, self.subject, self.step, self.seconds = steps, subject, 0, 0.0
        for group in groups:
            group["peak"] = config.learning_rate * group.pop("part")
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
        self.average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average)
        self.rows: list[Figures] = []
        """Rows of the log so far; its file is always written from them, so that resuming repeats no row."""
        self._recent: list[Figures] = []
        self._resume()

    def run(
        self, make_batch: Callable[[int], AnyBatch], loss: Callable[[AnyBatch, int], tuple[Tensor, Figures]]
    ) -> Path:
        """Do the remaining steps and return the file of the exported weights.

        make_batch: step -> batch, called in another thread. loss: (batch, step) -> (loss, figures to log); a step may
        lack some figures. On a GPU the loss is computed under bfloat16 autocast. Raises `StorageError` when a file
        cannot be written.
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
        rate = rate_factor(self.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
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
        if self.step % self.config.checkpoint_steps == 0 or ended:
            self._checkpoint()

    def last_figures(self) -> Figures:
        """Return the figures of the log's last row, without step and times."""
        last = self.rows[-1] if self.rows else {}
        return {name: value for name, value in last.items() if name not in ("step", "seconds")}

    def _export_average(self) -> Path:
        return self._export(self.average.module, self.step, self.last_figures())

    def _checkpoint(self) -> None:
        state = {
            "run": self.subject,
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
            if state.get("run", self.subject) != self.subject:
                raise ValueError(f"it is of {state['run']}, this training is of {self.subject}")
            self.module.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state.get("seconds", 0.0)
            self.rows, self._recent = state.get("rows", []), state.get("recent", [])
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
            reason = one_line(error)[:200]
            raise WeightsError(
                f"{file}: not a checkpoint of this training, remove it to start anew: {reason}"
            ) from None
        log.info("resumed at step %d of %d", self.step, self.steps)


def rate_factor(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the part of the peak learning rate in `step` of `steps`: linear warm-up, flat, linear cool-down to 0."""
    warm = (step + 1) / max(1, min(config.warmup_steps, steps // 4))
    left = (steps - step) / (steps * config.cooldown)
    return min(1.0, warm, left)


def mean_figures(rows: list[Figures]) -> Figures:
    """Return the mean of each figure over the rows that have it, in order of first appearance."""
    means = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        means[key] = round(sum(values) / len(values), 4)
    return means


def write_csv(file: Path, rows: list[Figures]) -> None:
    """Write all rows to a CSV file, whole or not at all; a figure that a row lacks stays empty.

    Raises `StorageError` when the file cannot be written.
    """
    partial = file.with_suffix(".partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(file)
    except OSError as error:
        raise StorageError(f"{file}: cannot write: {error.strerror}") from None
