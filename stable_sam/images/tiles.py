"""A closer look at small objects: the windows of an image in which its prompts are asked. Knows no model and no pixels.

A model answers from an embedding whose cells are 16 pixels of its square input wide. A small object in a large image
spans one or two of them, too few for a mask. It is therefore asked in a tile: a window of the image that is encoded by
itself.

Windows lie on a fixed pyramid. Those of level 1 are squares of `WIDEST` of the image's longer side, those of each
further level of half as much, cut to the image where it is narrower and spread evenly from border to border in steps of
at most half a window. A prompt takes the deepest level whose windows are at least `TileRule.scale` times as wide as the
longer side of its object and are enlarged at most `MOST_ENLARGED` times for the model. Of these windows it takes the
one whose centre is nearest to the object's, the left or upper one of two. The object then lies inside with at least 1/4
- 1/(2 scale) of a window's side around it, or as much as the image has.

So a prompt's tile depends on the size of the image and on the prompt alone, and prompts of like size that lie together
share one. Images whose prompts would take more than `TileRule.max_tiles` tiles are the exception: their prompts go no
deeper than a level that keeps to the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import ceil
from typing import TYPE_CHECKING

from stable_sam.config import RefinerConfig
from stable_sam.records import BoxXYXY, Prompt, View, Window

if TYPE_CHECKING:  # as types alone: planning asks for windows and needs no OpenCV
    import numpy as np
    from numpy.typing import NDArray

    from stable_sam.images.frames import Frame

CELL = 16
"""Pixels of the model's input, along each axis, that become one cell of its embedding."""
WIDEST = 0.4
"""Side of the windows of level 1, as a part of the image's longer side: 12 of them cover an image of 4 : 3."""
MOST_ENLARGED = 2.5
"""Pixels of the model's input, along each axis, that one of the image may become: more show nothing new, and a narrower
window less of what is around the object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRule:
    """Which objects a model is asked for in tiles, and in which."""

    input_side: int
    """Side of the model's square input, in pixels."""
    below_cells: float
    """An object is small whose longer side spans fewer cells of the whole image's embedding."""
    scale: float
    """A tile is at least so many times as wide as the longer side of its object; less than twice as many times, unless
    `MOST_ENLARGED` makes it wider."""
    max_tiles: int
    """Tiles that one image may take."""

    def level(self, box_xyxy: BoxXYXY, image_hw: tuple[int, int]) -> int:
        """The level at which an object with this box is asked; 0: in the whole image."""
        x0, y0, x1, y1 = box_xyxy
        size, longest = max(x1 - x0, y1 - y0), max(image_hw)
        if size * self.input_side >= self.below_cells * CELL * longest:
            return 0
        least = max(self.scale * size, self.input_side / MOST_ENLARGED)
        return next(level for level in count() if _side(image_hw, level + 1) < least)

    def window(self, box_xyxy: BoxXYXY, image_hw: tuple[int, int], level: int) -> Window:
        """The window of a level from 1 on for an object with this box."""
        x0, y0, x1, y1 = box_xyxy
        side = ceil(_side(image_hw, level))
        x, width = _nearest((x0 + x1) / 2, side, image_hw[1])
        y, height = _nearest((y0 + y1) / 2, side, image_hw[0])
        return x, y, width, height


INPUT_SIDES = {"nano": 384, "tiny": 64, "vit_b": 1024, "vit_l": 1024, "vit_h": 1024}
"""Side of each model's square input, for whoever plans without its weights."""


def tile_rule(config: RefinerConfig, input_side: int | None = None) -> TileRule | None:
    """The rule of a configuration for a model whose square input has this side (None: the usual one); None: there are
    no tiles."""
    if config.tiles == "off":
        return None
    return TileRule(
        input_side=input_side or INPUT_SIDES[config.model],
        below_cells=config.tile_below_cells,
        scale=config.tile_scale,
        max_tiles=config.max_tiles,
    )


class TilePlan:
    """Which prompts of one image are asked in which view, one view after the other, and what the answers change.

    Small boxes go to their tiles at once, everything else to the whole image. Points whose answer there is small are
    asked again in the tile of that answer, and a mask that reaches a border of its tile in one of the level above,
    which at last is the whole image. All that takes at most `TileRule.max_tiles` tiles together.
    """

    def __init__(self, rule: TileRule | None, image_hw: tuple[int, int], prompts: Sequence[Prompt]) -> None:
        """rule: None: everything is asked in the whole image. prompts: all of the image's, those that cannot be used
        with an `error`."""
        self._rule = rule
        self._image_hw = image_hw
        self._prompts = prompts
        self._waiting = [index for index, prompt in enumerate(prompts) if prompt.error is None]
        self._boxes: dict[int, BoxXYXY] = {}
        self._wanted = dict.fromkeys(self._waiting, 0)
        for index in self._waiting:
            if (box := prompts[index].box_xyxy) is not None:
                self._learn(index, box)
        self._levels = dict(self._wanted)
        self._tiles_left = 0 if rule is None else rule.max_tiles

    def first_tiles(self) -> list[Window]:
        """The tiles of small boxes, which are known before anything is asked."""
        return [window for window in self._views(self._deepest()) if window is not None]

    def may_take_tiles(self) -> bool:
        """Whether any prompt is small, or may turn out to be: what points alone mean is known after their answer."""
        return self._rule is not None and (len(self._boxes) < len(self._waiting) or any(self._wanted.values()))

    def views(self) -> Iterator[tuple[Window | None, list[int]]]:
        """Each view (None: the whole image) with the places of its prompts; `asks_again` has to see all their answers
        before the next view is taken."""
        while self._waiting:
            deepest = self._deepest()
            views = self._views(deepest)
            self._levels |= {index: min(self._levels[index], deepest) for index in self._waiting}
            self._tiles_left -= len(views.keys() - {None})
            self._waiting = []
            yield from views.items()

    def asks_again(self, index: int, frame: Frame, logits: NDArray[np.float32]) -> bool:
        """Whether the prompt is asked in another view after this answer, logits (h, w) of the view of `frame`."""
        if frame.window_xywh is not None:
            if not frame.leaves_window(logits):
                return False
            self._levels[index] -= 1
        else:
            if self._rule is None or index in self._boxes or (mask_xyxy := frame.object_xyxy(logits)) is None:
                return False
            self._learn(index, mask_xyxy)
            if self._wanted[index] == 0:
                return False
            self._levels[index] = self._wanted[index]
        self._waiting.append(index)
        return True

    def view(self, index: int) -> View | None:
        """What the row says of the view that made its mask."""
        if self._wanted[index] == 0:
            return None
        return "tile" if self._levels[index] == self._wanted[index] else "wider"

    def _learn(self, index: int, box_xyxy: BoxXYXY) -> None:
        """How large the object of a prompt is: its box with all points on the object."""
        prompt = self._prompts[index]
        on_object = [point for point, label in zip(prompt.points_xy, prompt.point_labels, strict=True) if label == 1]
        xs, ys = ([box_xyxy[axis], box_xyxy[axis + 2], *(point[axis] for point in on_object)] for axis in (0, 1))
        self._boxes[index] = box = min(xs), min(ys), max(xs), max(ys)
        self._wanted[index] = 0 if self._rule is None else self._rule.level(box, self._image_hw)

    def _deepest(self) -> int:
        """The deepest level at which the prompts that wait take no more tiles than are left."""
        level = max((self._levels[index] for index in self._waiting), default=0)
        while len(self._views(level).keys() - {None}) > self._tiles_left:
            level -= 1
        return level

    def _views(self, deepest: int) -> dict[Window | None, list[int]]:
        """The prompts that wait by their views, none of them deeper than at this level."""
        views: dict[Window | None, list[int]] = {}
        for index in self._waiting:
            level = min(self._levels[index], deepest)
            window = self._rule.window(self._boxes[index], self._image_hw, level) if self._rule and level else None
            views.setdefault(window, []).append(index)
        return views


def prompt_in(window: Window | None, prompt: Prompt) -> Prompt:
    """A prompt as it is asked in a view. A background point outside of a tile says nothing about the pixels inside and
    is left out; points on the object are always inside."""
    if window is None or not prompt.points_xy:
        return prompt
    x, y, width, height = window
    inside = [
        ((px, py), label)
        for (px, py), label in zip(prompt.points_xy, prompt.point_labels, strict=True)
        if x <= px <= x + width and y <= py <= y + height
    ]
    return replace(
        prompt,
        points_xy=tuple(point for point, _ in inside),
        point_labels=tuple(label for _, label in inside),
    )


def _side(image_hw: tuple[int, int], level: int) -> float:
    """Of the windows of a level from 1 on."""
    return float(WIDEST * max(image_hw) / 2 ** (level - 1))


def _nearest(centre: float, side: int, size: int) -> tuple[int, int]:
    """Along an axis of `size` pixels: start and width of the window of this side whose centre is nearest."""
    width = min(side, size)
    steps = ceil(2 * (size - width) / width)
    if steps == 0:
        return 0, width
    step = (size - width) / steps
    number = min(max(ceil((centre - width / 2) / step - 0.5), 0), steps)
    return round(number * step), width
