"""Chooses the tile, a window of the image, in which the model is prompted for a small object. Needs no model and no
pixels.

A model answers from an embedding whose cells are 16 pixels of its square input wide. A small object in a large image
spans one or two cells, too few for a mask. Its prompt is therefore asked in a tile that is encoded by itself.

Windows form a fixed pyramid. The windows of level 1 are squares whose side is `WIDEST` of the image's longer side, and
each further level halves that side. Windows are cut to the image where it is narrower, and are spread evenly from
border to border in steps of at most half a window. A prompt takes the deepest level whose windows are at least
`TileRule.scale` times as wide as the longer side of its object and are enlarged at most `MOST_ENLARGED` times for the
model. Of these windows it takes the one whose centre is nearest to the object's centre, and of two equally near ones
the left or upper one. The window then shows at least 1/4 - 1/(2 scale) of its side around the object, or as much as the
image has.

So a prompt's tile depends only on the prompt and on the size of its image, and prompts of similar size that lie
together share a tile. The exception are images whose prompts would take more than `TileRule.max_tiles` tiles: their
prompts go only as deep as this limit allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import ceil
from typing import TYPE_CHECKING

from stable_sam.bases import BASES, Fit
from stable_sam.config import RefinerConfig
from stable_sam.records import BoxXYXY, Prompt, View, Window

if TYPE_CHECKING:  # imported for types only: planning asks for windows and needs no OpenCV
    import numpy as np
    from numpy.typing import NDArray

    from stable_sam.images.frames import Frame

CELL = 16
"""Pixels of the model's input, along each axis, that become one cell of its embedding."""
WIDEST = 0.4
"""Side of the windows of level 1, as a part of the image's longer side: 12 windows cover an image of 4 : 3."""
MOST_ENLARGED = 2.5
"""Most pixels of the model's input, along each axis, that one original pixel may become. More would show nothing new,
and the narrower window would show less of the object's surroundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRule:
    """Decides for which objects a model is prompted in a tile, and in which tile."""

    input_side: int
    """Side of the model's square input, in pixels."""
    fit: Fit = "pad"
    """How the image fits into that square."""
    below_cells: float
    """An object is small when each of its sides spans fewer cells than this in the whole image's embedding."""
    scale: float
    """A tile is at least this many times as wide as the longer side of its object, and less than twice that unless
    `MOST_ENLARGED` makes it wider."""
    max_tiles: int
    """The most tiles of one image."""

    def level(self, box_xyxy: BoxXYXY, image_hw: tuple[int, int]) -> int:
        """Return the level of the window for an object with this box (original pixels); 0 is the whole image."""
        x0, y0, x1, y1 = box_xyxy
        sides_wh = x1 - x0, y1 - y0
        # A stretched image has other cells along its width than along its height.
        image_wh = image_hw[::-1] if self.fit == "stretch" else (max(image_hw),) * 2
        below = self.below_cells * CELL
        if any(side * self.input_side >= below * whole for side, whole in zip(sides_wh, image_wh, strict=True)):
            return 0
        least = max(self.scale * max(sides_wh), self.input_side / MOST_ENLARGED)
        return next(level for level in count() if _side(image_hw, level + 1) < least)

    def window(self, box_xyxy: BoxXYXY, image_hw: tuple[int, int], level: int) -> Window:
        """Return the window of `level`, at least 1, for an object with this box (original pixels)."""
        x0, y0, x1, y1 = box_xyxy
        side = ceil(_side(image_hw, level))
        x, width = _nearest((x0 + x1) / 2, side, image_hw[1])
        y, height = _nearest((y0 + y1) / 2, side, image_hw[0])
        return x, y, width, height


def tile_rule(config: RefinerConfig, input_side: int | None = None) -> TileRule | None:
    """Return the tile rule of a config, or None when tiles are off.

    input_side: side of the model's square input in pixels; None takes that of the config's base.
    """
    if config.tiles == "off":
        return None
    return TileRule(
        input_side=input_side or BASES[config.model].input_side,
        fit=BASES[config.model].fit,
        below_cells=config.tile_below_cells,
        scale=config.tile_scale,
        max_tiles=config.max_tiles,
    )


class TilePlan:
    """Plans in which view, a tile or the whole image, each prompt of an image is asked, and replans after the answers.

    Prompts with a small box are asked in their tile first, all others in the whole image. Points whose mask turns out
    to be small are asked again in the tile of that mask. A prompt whose mask reaches a border of its tile is asked
    again one level higher, at last in the whole image. All of this takes at most `TileRule.max_tiles` tiles.
    """

    def __init__(self, rule: TileRule | None, image_hw: tuple[int, int], prompts: Sequence[Prompt]) -> None:
        """Plan the views of an image of `image_hw`.

        rule: None asks every prompt in the whole image.
        prompts: all prompts of the image; those with an `error` are not asked.
        """
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
        """Return the tiles of small boxes, which are known before the model is prompted."""
        return [window for window in self._views(self._deepest()) if window is not None]

    def may_take_tiles(self) -> bool:
        """Tell whether a prompt may take a tile: its box is small, or it has no box and its mask may turn out small."""
        return self._rule is not None and (len(self._boxes) < len(self._waiting) or any(self._wanted.values()))

    def views(self) -> Iterator[tuple[Window | None, list[int]]]:
        """Yield each view (None for the whole image) with the indices of its prompts.

        Pass the answers of a view's prompts to `asks_again` before taking the next view.
        """
        while self._waiting:
            deepest = self._deepest()
            views = self._views(deepest)
            self._levels |= {index: min(self._levels[index], deepest) for index in self._waiting}
            self._tiles_left -= len(views.keys() - {None})
            self._waiting = []
            yield from views.items()

    def asks_again(self, index: int, frame: Frame, logits: NDArray[np.float32]) -> bool:
        """Tell whether a prompt is asked again in another view after its answer, the logits (h, w) in `frame`."""
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
        """Return the `view` of a prompt's row: None for an object that is not small."""
        if self._wanted[index] == 0:
            return None
        return "tile" if self._levels[index] == self._wanted[index] else "wider"

    def _learn(self, index: int, box_xyxy: BoxXYXY) -> None:
        """Note the size of a prompt's object, a box around `box_xyxy` and all points on the object."""
        prompt = self._prompts[index]
        on_object = [point for point, label in zip(prompt.points_xy, prompt.point_labels, strict=True) if label == 1]
        xs, ys = ([box_xyxy[axis], box_xyxy[axis + 2], *(point[axis] for point in on_object)] for axis in (0, 1))
        self._boxes[index] = box = min(xs), min(ys), max(xs), max(ys)
        self._wanted[index] = 0 if self._rule is None else self._rule.level(box, self._image_hw)

    def _deepest(self) -> int:
        """Return the deepest level at which the waiting prompts take no more tiles than are left."""
        level = max((self._levels[index] for index in self._waiting), default=0)
        while len(self._views(level).keys() - {None}) > self._tiles_left:
            level -= 1
        return level

    def _views(self, deepest: int) -> dict[Window | None, list[int]]:
        """Group the waiting prompts by their views, of which none is deeper than the level `deepest`."""
        views: dict[Window | None, list[int]] = {}
        for index in self._waiting:
            level = min(self._levels[index], deepest)
            window = self._rule.window(self._boxes[index], self._image_hw, level) if self._rule and level else None
            views.setdefault(window, []).append(index)
        return views


def prompt_in(window: Window | None, prompt: Prompt) -> Prompt:
    """Return a prompt as it is asked in a window, without the points outside it.

    Only background points can lie outside a tile, where they say nothing about the pixels inside.
    """
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
    """Side in original pixels of the windows of `level`, at least 1."""
    return float(WIDEST * max(image_hw) / 2 ** (level - 1))


def _nearest(centre: float, side: int, size: int) -> tuple[int, int]:
    """Return start and width, along an axis of `size` pixels, of the window of this side with the nearest centre."""
    width = min(side, size)
    steps = ceil(2 * (size - width) / width)
    if steps == 0:
        return 0, width
    step = (size - width) / steps
    number = min(max(ceil((centre - width / 2) / step - 0.5), 0), steps)
    return round(number * step), width
