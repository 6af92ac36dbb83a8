"""Where a run's time went: the seconds of its stages, as shares, by image and by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stable_sam.stage_clock import STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShares:
    """What a run's actors and helpers measured, of all its shards, whoever refined them."""

    seconds: Mapping[str, float]
    """Of threads, by stage of `STAGES`, each of them."""
    images: int
    prompts: int

    @property
    def total(self) -> float:
        """All stages."""
        return math.fsum(self.seconds.values())

    def cells(self) -> list[list[str]]:
        """A table for people: header, one line for each stage, and the total."""
        header = ["stage", "seconds", "share", "ms an image", "ms a prompt"]
        lines = [self._line(stage, self.seconds[stage]) for stage in STAGES]
        return [header, *lines, self._line("all", self.total)]

    def line(self) -> str:
        """The stages that took most, in words; empty when nothing was refined."""
        most = sorted((stage for stage in STAGES if self._share(stage) >= 0.005), key=self._share, reverse=True)
        return f"Time: {', '.join(f'{stage} {self._share(stage):.0%}' for stage in most)}." if most else ""

    def _share(self, stage: str) -> float:
        return self.seconds[stage] / self.total if self.total else 0.0

    def _line(self, name: str, seconds: float) -> list[str]:
        share = f"{seconds / self.total:.1%}" if self.total else "-"
        by = (f"{1000 * seconds / count:.1f}" if count else "-" for count in (self.images, self.prompts))
        return [name, f"{seconds:.2f}", share, *by]


def summed(shards: Sequence[Mapping[str, float] | None], commit_seconds: float = 0.0) -> dict[str, float] | None:
    """The seconds of every stage over all shards; None when not all of them said.

    commit_seconds: of committing them, which no shard's record can hold itself.
    """
    known = [shard for shard in shards if shard is not None]
    if len(known) < len(shards):
        return None
    total = {stage: math.fsum(shard.get(stage, 0.0) for shard in known) for stage in STAGES}
    return total | {"commit": total["commit"] + commit_seconds}
