"""Turns the prompts of tools that ignore EXIF, which are in pixels as the file stores them, to the upright image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from stable_sam.formats.columns.chunks import PromptChunk
from stable_sam.formats.reading import Sizes
from stable_sam.images.orientation import turned_box, turned_hw, turned_xy
from stable_sam.prompt_check import checked
from stable_sam.records import Prompt
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table


def upright(chunks: Iterator[PromptChunk], sizes: Sizes) -> Iterator[PromptChunk]:
    """Yield `chunks` with their prompts in pixels of the upright images, whatever `sizes.frame` they are in.

    In the frame `stored` the header of each image is read. Raises `StorageError`.
    """
    return chunks if sizes.frame == "upright" else (_TurnedChunk(chunk, sizes) for chunk in chunks)


@dataclass(frozen=True, slots=True)
class _TurnedChunk:
    chunk: PromptChunk
    sizes: Sizes

    def prompts(self) -> list[Prompt]:
        return [_turned(prompt, self.sizes) for prompt in self.chunk.prompts()]

    def batch(self) -> pa.RecordBatch:
        return rows_to_table(map(prompt_row, self.prompts()), PROMPTS_SCHEMA).combine_chunks().to_batches()[0]

    def where(self, row: int) -> str:
        return self.chunk.where(row)


def _turned(prompt: Prompt, sizes: Sizes) -> Prompt:
    """Turn one prompt. One whose image cannot be read stays as it is, because it will fail for that reason."""
    stored_hw, turn = sizes.stored(prompt.image_uri) if prompt.image_uri else (None, 1)
    if stored_hw is None or turn == 1:
        return prompt
    declared = prompt.image_size
    turned = replace(
        prompt,
        image_size=None if declared is None else turned_hw(declared, turn),
        box_xyxy=None if prompt.box_xyxy is None else turned_box(prompt.box_xyxy, turn, stored_hw),
        points_xy=tuple(turned_xy(point, turn, stored_hw) for point in prompt.points_xy),
    )
    if prompt.error is not None:
        return turned
    if declared is not None and declared != stored_hw:
        return replace(
            prompt,
            error=f"{prompt.image_uri}: expected the declared {declared[1]} x {declared[0]} pixels to be those of the "
            f"image as stored (source.frame: stored), which has {stored_hw[1]} x {stored_hw[0]} and EXIF orientation "
            f"{turn}",
        )
    # Only now it is known whether the box of an image without a declared size lies in the image.
    return checked(turned, turned_hw(stored_hw, turn))
