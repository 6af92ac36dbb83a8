"""Draw the figure of docs/performance.md: cars seen from the air, their tiles, and one tile enlarged.

    python -m benchmarks.tiles_picture    # writes docs/tiles.jpg

The scene is drawn by this script, so that every car's true mask is known; a car's prompt is a detector's box.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.prompts import PromptKind
from stable_sam.explain.overlay import BOX_RGB, draw_overlay
from stable_sam.records import Prompt, RefinedMask, Window
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask

PICTURE = Path(__file__).parents[1] / "docs" / "tiles.jpg"
HW = 1600, 2400
FINER = 2
"""The scene is drawn so many times larger, and then made smaller: edges are as soft as a camera's."""
SHIFT = 4
CAR_LW = 44.0, 19.0
PAINTS = ((232, 232, 228), (190, 194, 198), (58, 62, 70), (150, 34, 32), (36, 66, 122), (214, 178, 60), (86, 104, 92))
PAGE_WIDTH, MARGIN = 1200, 16
WINDOW_RGB, CHOSEN_RGB, TEXT_RGB = (255, 255, 255), (225, 85, 10), (28, 33, 39)
ROADS = ((-60.0, 1330.0), (2460.0, 1060.0), 92.0), ((1290.0, -60.0), (1490.0, 1660.0), 78.0)
"""Start, end and width."""
CROSSING = 1430, 1160
Xy = tuple[float, float]
Rgb = tuple[int, int, int]
Pixels = NDArray[np.uint8]


@dataclass(slots=True)
class Scene:
    """A picture (H, W, 3) that is being drawn, and the outlines of its cars."""

    canvas: Pixels
    cars: list[NDArray[np.float64]] = field(default_factory=list)

    def fill(self, corners_xy: NDArray[np.float64], rgb: Rgb, opacity: float = 1.0) -> None:
        """A polygon (N, 2) in pixels of the finished picture."""
        size_wh = HW[1] * FINER, HW[0] * FINER
        left, top = np.clip(np.floor(corners_xy.min(axis=0) * FINER).astype(int), 0, size_wh)
        right, bottom = np.clip(np.ceil(corners_xy.max(axis=0) * FINER).astype(int) + 1, 0, size_wh)
        if left < right and top < bottom:
            part = self.canvas[top:bottom, left:right]
            drawn = part.copy()
            cv2.fillPoly(drawn, [_fixed(corners_xy * FINER - (left, top))], rgb, cv2.LINE_AA, SHIFT)
            cv2.addWeighted(drawn, opacity, part, 1 - opacity, 0, dst=part)

    def box(self, centre: Xy, length: float, width: float, turned: float, rgb: Rgb, round_: float = 0,
            opacity: float = 1.0, moved: Xy = (0, 0)) -> NDArray[np.float64]:  # fmt: skip
        """A rectangle turned by an angle, its corners rounded; `moved` along and across itself. Returns its outline."""
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False) + np.pi / 32
        ring = np.stack((np.cos(angles), np.sin(angles)), axis=1)
        half = np.array([length, width]) / 2 - round_
        outline = (np.sign(ring) * half + ring * round_ + moved) @ _rotation(turned).T + centre
        self.fill(outline, rgb, opacity)
        return np.asarray(outline)

    def shadow(self, centre: Xy, length: float, width: float, turned: float, far: float) -> None:
        """What lies in the shade of a thing of this height."""
        self.box((centre[0] + far, centre[1] + far * 0.7), length, width, turned, (18, 22, 28), 3, 0.5)

    def car(self, centre: Xy, turned: float, rgb: Rgb, size: float) -> None:
        """A car, seen from above."""
        length, width = CAR_LW[0] * size, CAR_LW[1] * size
        dark, bright = _shade(rgb, 0.25), _shade(rgb, 1.12)
        self.shadow(centre, length, width, turned, 3.5)
        self.cars.append(self.box(centre, length, width, turned, rgb, width * 0.3))
        self.box(centre, length * 0.62, width * 0.84, turned, dark, width * 0.2, moved=(-length * 0.04, 0))
        self.box(centre, length * 0.34, width * 0.76, turned, bright, width * 0.12, moved=(-length * 0.05, 0))


def draw_scene() -> tuple[Pixels, list[NDArray[np.bool_]]]:
    """The picture (H, W, 3) and the masks (H, W) of its cars."""
    draw = np.random.default_rng(7)
    scene = Scene(_ground(draw))
    for road in ROADS:
        _road(scene, *road)
    for road in ROADS:
        _traffic(scene, draw, *road)
    _car_park(scene, draw, (560, 560), -0.107, rows=3, places=14)
    _car_park(scene, draw, (1930, 420), 0.02, rows=2, places=10)
    for x, y, length, width, turned, rgb in (
        (240, 1020, 300, 170, -0.107, (150, 88, 70)), (640, 1020, 250, 150, -0.107, (128, 122, 116)),
        (1060, 985, 190, 150, -0.107, (158, 96, 76)), (1740, 780, 260, 170, 0.1, (120, 118, 120)),
        (2120, 800, 240, 150, 0.1, (150, 88, 70)), (1010, 1480, 260, 140, -0.1, (136, 80, 64)),
        (380, 1500, 300, 130, -0.1, (126, 124, 122)),
    ):  # fmt: skip
        scene.shadow((x, y), length, width, turned, 26)
        scene.box((x, y), length, width, turned, rgb)
        scene.box((x, y), length, width / 2, turned, _shade(rgb, 1.18), moved=(0, -width / 4))
    for x, y in _tree_places(draw):
        _tree(scene, draw, x, y)
    finer = scene.canvas.astype(np.float32) + draw.normal(0, 7, (*scene.canvas.shape[:2], 1)).astype(np.float32)
    pixels = cv2.resize(np.clip(finer, 0, 255).astype(np.uint8), HW[::-1], interpolation=cv2.INTER_AREA)
    masks = []
    for outline in scene.cars:
        mask = np.zeros((HW[0] * FINER, HW[1] * FINER), np.uint8)
        cv2.fillPoly(mask, [_fixed(outline * FINER)], 255, cv2.LINE_AA, SHIFT)
        masks.append(cv2.resize(mask, HW[::-1], interpolation=cv2.INTER_AREA) > 127)
    return np.asarray(pixels, np.uint8), masks


def _ground(draw: np.random.Generator) -> Pixels:
    size = HW[1] * FINER, HW[0] * FINER
    waves = sum(
        cv2.resize(draw.normal(0, 1, (cells, cells * 3 // 2)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        * weight
        for cells, weight in ((6, 1.0), (30, 0.6), (160, 0.5), (600, 0.5))
    )
    grass, dry = np.array([84, 104, 62], np.float32), np.array([138, 128, 86], np.float32)
    mixed = 1 / (1 + np.exp(-waves))[..., None]
    return np.clip(grass + (dry - grass) * mixed * 0.8, 0, 255).astype(np.uint8)


def _road(scene: Scene, start: Xy, end: Xy, wide: float) -> None:
    along = np.subtract(end, start)
    length, turned = float(np.hypot(*along)), float(np.arctan2(along[1], along[0]))
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    scene.box(middle, length, wide + 14, turned, (140, 134, 120))
    scene.box(middle, length, wide, turned, (96, 97, 100))
    for part in np.arange(20, length, 60):
        x, y = start + along * part / length
        scene.box((x, y), 26, 3, turned, (214, 212, 200), opacity=0.8)


def _traffic(scene: Scene, draw: np.random.Generator, start: Xy, end: Xy, wide: float) -> None:
    along = np.subtract(end, start)
    length, turned = float(np.hypot(*along)), float(np.arctan2(along[1], along[0]))
    for lane, heading in ((-0.25, np.pi), (0.25, 0.0)):
        for part in np.arange(140, length - 100, 210):
            x, y = start + along * (part + draw.uniform(-50, 50)) / length + _rotation(turned) @ (0, lane * wide)
            paint, size = PAINTS[draw.integers(len(PAINTS))], draw.uniform(0.95, 1.1)
            if draw.random() < 0.7 and np.hypot(x - CROSSING[0], y - CROSSING[1]) > 130:
                scene.car((x, y), turned + heading, paint, size)


def _car_park(scene: Scene, draw: np.random.Generator, centre: Xy, turned: float, rows: int, places: int) -> None:
    place, deep, aisle = 32.0, 62.0, 60.0
    length, width = places * place + 90, rows * (deep + aisle) + 40
    scene.box(centre, length + 12, width + 12, turned, (150, 146, 136))
    scene.box(centre, length, width, turned, (104, 104, 106))
    for row in range(rows):
        across = (row + 0.5) * (deep + aisle) - rows * (deep + aisle) / 2
        for number in range(places + 1):
            along = (number - places / 2) * place
            scene.box(centre, 2.5, deep, turned, (216, 214, 206), opacity=0.85, moved=(along, across))
            if number < places and draw.random() < 0.66:
                middle = np.array([along + place / 2 + draw.uniform(-2, 2), across + draw.uniform(-4, 4)])
                x, y = _rotation(turned) @ middle + centre
                heading = turned + np.pi / 2 * draw.choice([-1, 1]) + draw.uniform(-0.06, 0.06)
                scene.car((x, y), heading, PAINTS[draw.integers(len(PAINTS))], draw.uniform(0.92, 1.1))


def _tree_places(draw: np.random.Generator) -> list[Xy]:
    areas = ((60, 60, 1180, 250, 34), (60, 780, 130, 960, 4), (1560, 620, 2360, 680, 16), (1560, 930, 2340, 980, 12),
             (120, 1390, 900, 1410, 12), (1620, 1270, 2340, 1560, 46), (60, 300, 210, 760, 12))  # fmt: skip
    return [
        (draw.uniform(x0, x1), draw.uniform(y0, y1)) for x0, y0, x1, y1, count in areas for _ in range(count)
    ]  # fmt: skip


def _tree(scene: Scene, draw: np.random.Generator, x: float, y: float) -> None:
    wide = draw.uniform(34, 64)
    scene.box((x + 11, y + 8), wide, wide, 0, (16, 24, 20), wide / 2, 0.45)
    scene.box((x, y), wide, wide, 0, (40, 62, 34), wide / 2)
    for _ in range(16):
        angle, far = draw.uniform(0, 2 * np.pi), wide * 0.36 * draw.random() ** 0.5
        leaf = wide * draw.uniform(0.16, 0.34)
        tone = _shade((62, 92, 46), draw.uniform(0.75, 1.35))
        scene.box((x + far * np.cos(angle), y + far * np.sin(angle)), leaf, leaf, 0, tone, leaf / 2, 0.75)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _fixed(corners_xy: NDArray[np.float64]) -> NDArray[np.int32]:
    """As OpenCV takes fractions of pixels."""
    return np.round(corners_xy * 2**SHIFT).astype(np.int32)


def _shade(rgb: Rgb, factor: float) -> Rgb:
    r, g, b = (min(255, int(value * factor)) for value in rgb)
    return r, g, b


def main() -> None:
    """Draw, refine in both ways, and put the pictures on one page."""
    pixels, masks = draw_scene()
    kind = PromptKind.parse("detector-box")
    prompts = []
    for number, mask in enumerate(masks):
        drawn = kind.draw(mask, np.random.default_rng(number), 1, None)
        assert drawn is not None
        x0, y0, x1, y1 = drawn[0].tolist()
        prompts.append(Prompt(prompt_id=str(number), image_id="i", image_uri="i", box_xyxy=(x0, y0, x1, y1)))
    answers = {
        tiles: Refiner(RefinerConfig(tiles=tiles, jitter_count=0, second_pass="off")).refine_image(pixels, prompts)
        for tiles in ("off", "auto")
    }
    found = {tiles: [_mask(row) for row in rows] for tiles, rows in answers.items()}
    ious = {tiles: [_iou(*pair) for pair in zip(some, masks, strict=True)] for tiles, some in found.items()}
    windows = Counter(row.tile_xywh for row in answers["auto"] if row.tile_xywh)
    [(chosen, _)] = windows.most_common(1)
    inside = [number for number, mask in enumerate(masks) if not _outside(chosen, mask).any()]
    for tiles, some in ious.items():
        print(f"tiles {tiles}: mIoU of {len(some)} cars {np.mean(some):.3f}")

    side = (PAGE_WIDTH - 3 * MARGIN) // 2
    panels = [
        (
            f"{title}: mIoU {np.mean([ious[tiles][number] for number in inside]):.2f}",
            _enlarged(pixels, chosen, side, [(found[tiles][number], prompts[number]) for number in inside]),
        )
        for title, tiles in (("In the whole picture", "off"), ("In tiles", "auto"))
    ]
    title = f"{len(masks)} cars of half a cell of the whole picture, {len(windows)} tiles"
    _page(title, _overview(pixels, prompts, list(windows), chosen), panels).save(PICTURE, quality=84, optimize=True)


def _overview(pixels: Pixels, prompts: list[Prompt], windows: list[Window], chosen: Window) -> Pixels:
    """The whole picture with all boxes and tiles."""
    width = PAGE_WIDTH - 2 * MARGIN
    scale = width / HW[1]
    small = cv2.resize(pixels, (width, round(HW[0] * scale)), interpolation=cv2.INTER_AREA)
    grid = small.copy()
    for x, y, w, h in windows:
        cv2.rectangle(grid, *_corners((x, y, x + w, y + h), scale), WINDOW_RGB, 2)
    small = cv2.addWeighted(grid, 0.6, small, 0.4, 0)
    for prompt in prompts:
        assert prompt.box_xyxy is not None
        cv2.rectangle(small, *_corners(prompt.box_xyxy, scale), BOX_RGB, 2)
    x, y, w, h = chosen
    cv2.rectangle(small, *_corners((x, y, x + w, y + h), scale), CHOSEN_RGB, 5)
    return np.asarray(small, np.uint8)


def _enlarged(pixels: Pixels, window: Window, side: int, asked: list[tuple[NDArray[np.bool_], Prompt]]) -> Pixels:
    """The pixels of a tile with masks and prompts."""
    x, y, w, h = window
    finer = 2 * side  # lines are then a pixel and a half wide
    drawn = cv2.resize(pixels[y : y + h, x : x + w], (finer, finer), interpolation=cv2.INTER_CUBIC)
    for mask, prompt in asked:
        part = mask[y : y + h, x : x + w].astype(np.uint8) * np.uint8(255)
        assert prompt.box_xyxy is not None
        x0, y0, x1, y1 = (
            (value - start) * finer / w for value, start in zip(prompt.box_xyxy, (x, y, x, y), strict=True)
        )
        enlarged = cv2.resize(part, (finer, finer), interpolation=cv2.INTER_CUBIC) > 127
        drawn = draw_overlay(drawn, enlarged, box_xyxy=(x0, y0, x1, y1))
    return np.asarray(cv2.resize(drawn, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _page(title: str, overview: Pixels, panels: list[tuple[str, Pixels]]) -> Image.Image:
    """The title, the whole picture, and below it the panels side by side, each with a title above."""
    line, font = 58, ImageFont.load_default(38)
    height = 2 * line + len(overview) + len(panels[0][1]) + 2 * MARGIN
    page = Image.new("RGB", (PAGE_WIDTH, height), (255, 255, 255))
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 6), title, TEXT_RGB, font=font)
    page.paste(Image.fromarray(overview), (MARGIN, line))
    top = line + len(overview) + MARGIN
    for number, (name, panel) in enumerate(panels):
        left = MARGIN + number * (panel.shape[1] + MARGIN)
        pen.text((left, top - 4), name, CHOSEN_RGB if number else TEXT_RGB, font=font)
        page.paste(Image.fromarray(panel), (left, top + line - 10))
    return page


def _corners(box_xyxy: tuple[float, float, float, float], scale: float) -> tuple[tuple[int, int], tuple[int, int]]:
    x0, y0, x1, y1 = (round(value * scale) for value in box_xyxy)
    return (x0, y0), (x1, y1)


def _outside(window: Window, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    x, y, w, h = window
    rest = mask.copy()
    rest[y : y + h, x : x + w] = False
    return rest


def _mask(row: RefinedMask) -> NDArray[np.bool_]:
    assert row.mask_size is not None
    assert row.mask_counts is not None
    return decode_mask(row.mask_size, row.mask_counts)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


if __name__ == "__main__":
    main()
