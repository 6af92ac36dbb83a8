"""Counts the tiles that a planned run will take, as far as its prompts show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import duckdb

from stable_sam.images.tiles import TilePlan, TileRule
from stable_sam.prompt_check import checked
from stable_sam.records import Prompt
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_from_row
from stable_sam.wording import counted

_BATCH = 10_000
"""Rows that are converted to Python objects at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCount:
    """The tiles that a planned run will take. Masks that reach a border of their tile may add more, up to `bound`."""

    tiles: int
    """Number of tiles for the boxes on images whose size the source declares."""
    images: int
    """Number of images with such tiles."""
    bound: int
    """The most tiles that the run can take: `max_tiles` for every image that may take one."""
    images_without_size: int
    """Number of images of undeclared size. Whether their boxes are small is known when the image is decoded."""
    prompts_without_box: int
    """Number of prompts with points alone. Whether their objects are small is known after their first mask."""

    def line(self) -> str:
        """Describe the count in one line."""
        unknown = [
            f"{counted(count, noun)} {what}"
            for count, noun, what in (
                (self.images_without_size, "image", "of undeclared size"),
                (self.prompts_without_box, "prompt", "with points alone"),
            )
            if count
        ]
        parts = [
            f"Tiles: {self.tiles} for small boxes on {counted(self.images, 'image')}",
            f"at most {self.bound} in all",
        ]
        if unknown:
            parts.append(f"not known for {' and '.join(unknown)}")
        return "; ".join(parts) + "."


def count_tiles(connection: duckdb.DuckDBPyConnection, rule: TileRule) -> TileCount:
    """Count the tiles of the prompts in the table `planned`, which `stable_sam.runs.compare.compare` makes."""
    tiles = images = bound = without_size = without_box = 0
    for prompts in _by_image(connection):
        without_box += sum(prompt.box_xyxy is None for prompt in prompts)
        [image_hw, *others] = {prompt.image_size for prompt in prompts}
        if image_hw is None or others:
            without_size += 1
            bound += rule.max_tiles
            continue
        plan = TilePlan(rule, image_hw, [checked(prompt, image_hw) for prompt in prompts])
        count = len(plan.first_tiles())
        tiles += count
        images += count > 0
        bound += rule.max_tiles * plan.may_take_tiles()
    return TileCount(
        tiles=tiles, images=images, bound=bound, images_without_size=without_size, prompts_without_box=without_box
    )


def _by_image(connection: duckdb.DuckDBPyConnection) -> Iterator[list[Prompt]]:
    """Yield the usable prompts of each planned image."""
    columns = ", ".join(PROMPTS_SCHEMA.names)
    planned = connection.sql(f"SELECT {columns} FROM planned WHERE error IS NULL ORDER BY image_uri, image_id")

    def rows() -> Iterator[dict[str, Any]]:
        for batch in planned.to_arrow_reader(_BATCH):
            yield from batch.to_pylist()

    for _, group in groupby(rows(), key=lambda row: (row["image_uri"], row["image_id"])):
        yield [prompt_from_row(row) for row in group]
