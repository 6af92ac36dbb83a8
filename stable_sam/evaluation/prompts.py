"""The kinds of prompts of the paper's tables, drawn from a ground-truth mask."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import ConfigError
from stable_sam.evaluation.metrics import Mask, tight_window
from stable_sam.prompt_noise import noisy_box, random_points

NOISE_SCALE = 0.4
"""Scale of "noisy-box": the paper does not state its own; this is HQ-SAM's default for noised boxes."""
_EXPECTED = "gt-box, noisy-box, noisy-box-<scale> or <n>-point(s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptKind:
    """`gt-box`, `noisy-box` (scale 0.4), `noisy-box-0.2`, `1-point`, `3-points` ..."""

    name: str
    box_noise: float | None = None
    """Scale of the noise of a box; 0 for the ground-truth box, None for points."""
    points: int = 0

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a name; raises `ConfigError` for one that is no kind of prompt."""
        if name == "gt-box":
            return cls(name=name, box_noise=0.0)
        if match := re.fullmatch(r"noisy-box(?:-(\d?\.\d+|1|1\.0))?", name):
            scale = float(match[1]) if match[1] else NOISE_SCALE
            if 0 < scale <= 1:
                return cls(name=name, box_noise=scale)
        if (match := re.fullmatch(r"([1-9]\d?)-points?", name)) is not None:
            return cls(name=name, points=int(match[1]))
        raise ConfigError(f"prompts: expected {_EXPECTED}, got {name!r}")

    @property
    def is_random(self) -> bool:
        """False when the mask alone gives the prompt, so that drawing it again is of no use."""
        return self.box_noise != 0.0

    def draw(self, mask: Mask, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Draw `count` prompts, or the only one, of a non-empty mask (H, W): boxes (B, 4) XYXY or points (B, N, 2)."""
        if self.box_noise is None:
            return random_points(mask, count * self.points, rng).reshape(count, self.points, 2)
        box = tight_box(mask)
        if not self.is_random:
            return box[None]
        return noisy_box(box, self.box_noise, (mask.shape[0], mask.shape[1]), rng, count)


def tight_box(mask: Mask) -> NDArray[np.float64]:
    """(4,) XYXY around a non-empty mask (H, W), outer edges of its pixels."""
    window = tight_window(mask)
    if window is None:
        raise ValueError("an empty mask has no box")
    rows, columns = window
    return np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float64)


def prompt_rng(seed: int, *key: str) -> np.random.Generator:
    """A generator that depends on the seed and the names of what is drawn alone, not on the order of the work."""
    digest = hashlib.sha256("\x1f".join(key).encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "little")))
