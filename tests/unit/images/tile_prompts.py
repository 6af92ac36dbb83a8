"""Prompts for tests of tiles."""

from __future__ import annotations

from typing import Any

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.records import Prompt

CONFIG = RunConfig(
    refiner=RefinerConfig(model="tiny", jitter_count=3, stability_offset=0.002, second_pass_dsp_weight=0.3)
)


HW = (300, 400)


def boxed(name: str, *box: float, **more: Any) -> Prompt:
    x0, y0, x1, y1 = box
    return Prompt(prompt_id=name, image_id="i", image_uri="/i", box_xyxy=(x0, y0, x1, y1), **more)


def pointed(name: str, points: list[tuple[float, float]], labels: list[int]) -> Prompt:
    return Prompt(
        prompt_id=name, image_id="i", image_uri="/i", points_xy=tuple(points), point_labels=tuple(labels)
    )  # fmt: skip
