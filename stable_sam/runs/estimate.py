"""Estimates how long a planned run will take from the times of the table's newest runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stable_sam.config import RunConfig
from stable_sam.table.log import RunInfo

_RUNS = 7
"""Number of runs that are averaged, a week of nights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The images and prompts that actors refined in the newest runs with the same config, and the time that it took."""

    runs: int
    images: int
    prompts: int
    seconds: float
    """Seconds summed over all actors."""

    def estimate(self, images: int, prompts: int, prompt_cost: float) -> float:
        """Estimate the seconds that one actor needs, without its start-up.

        prompt_cost: `RunConfig.prompt_cost`, which divides the measured time between images and prompts.
        """
        return self.seconds * (images + prompt_cost * prompts) / (self.images + prompt_cost * self.prompts)


def measured(runs: Iterable[RunInfo], config: RunConfig) -> Speed | None:
    """Sum up the newest of `runs` (newest first) that were made with an equal config; None when there are none."""
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
    """Write a duration in seconds, minutes or hours, whichever is easy to read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
