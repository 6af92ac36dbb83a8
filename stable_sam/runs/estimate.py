"""How long a planned night will take, from what the newest runs of the table took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stable_sam.config import RunConfig
from stable_sam.table.log import RunInfo

_RUNS = 7
"""Runs that are averaged: a week of nights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one actor did in the newest runs with the same settings."""

    runs: int
    images: int
    prompts: int
    seconds: float

    def estimate(self, images: int, prompts: int, prompt_cost: float) -> float:
        """Seconds of one actor, without start-up. prompt_cost: as `RunConfig.prompt_cost`, shares them out."""
        return self.seconds * (images + prompt_cost * prompts) / (self.images + prompt_cost * self.prompts)


def measured(runs: Iterable[RunInfo], config: RunConfig) -> Speed | None:
    """The speed of the newest of `runs` (newest first) that were made with these settings; None when there are none."""
    alike = [run for run in runs if run.actor_seconds and run.images and run.config_hash == config.content_hash()][
        :_RUNS
    ]
    if not alike:
        return None
    return Speed(
        runs=len(alike),
        images=sum(run.images for run in alike),
        prompts=sum(run.rows - run.changes.get("withdrawn", 0) for run in alike),
        seconds=sum(run.actor_seconds or 0.0 for run in alike),
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read easily."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
