"""Drawing of an `Explanation`: SAM beside Stable-SAM, their masks above and what they attend to below."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stable_sam.explain.explanation import ExplainedMask, Explanation
from stable_sam.explain.overlay import draw_overlay
from stable_sam.records import Prompt
from stable_sam.wording import counted

PANEL_SIDE = 480
"""Longest side of each of the six panels, in pixels."""
PANEL_WIDTH_MIN = 470
"""Smallest width of a panel in pixels, so that its titles have room."""
MARGIN = 16
TITLE_HEIGHT = 52
STRONGEST = 100
"""Number of features that are drawn, as in the paper's teaser; circles of the others would be dots."""
LARGEST_RADIUS = 0.06
"""Radius of the circle of the most attended feature of both methods, as a part of the panel's longest side."""
SMALLEST_RADIUS = 0.5
"""Smallest radius in pixels of a circle that is drawn; a smaller one cannot be seen."""
OUTLINED_RADIUS = 2.0
"""Radius in pixels above which circles get an outline, which would be larger than a smaller circle."""
ARROWS = 14
"""Largest number of arrows along the longest side; each shows the offset of one cell, and cells between have none."""
DIMMED = 0.5
"""Brightness of the image behind circles and arrows, as a part of its own."""
OWN_RGB = (80, 190, 255)
"""Colour of features that are read where SAM reads them, at p."""
SAMPLED_RGB = (255, 150, 30)
"""Colour of features that the plugin samples at p + dp."""
PAGE_RGB, TEXT_RGB, QUIET_RGB = (255, 255, 255), (28, 33, 39), (95, 107, 122)

Rgb = tuple[int, int, int]
Circles = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Centres (N, 2) in original pixels and weights (N,)."""


def draw(explanation: Explanation) -> NDArray[np.uint8]:
    """Draw an explanation as an RGB image (H, W, 3) with two rows of panels.

    The upper row shows the weak prompt, SAM's mask and Stable-SAM's mask, with their scores. The lower row shows the
    plugin's offsets as arrows from p to p + dp, more visible the larger alpha_1 is, and for each method the features
    that its mask token attends to most, as circles. A circle's radius is proportional to the attention, at one scale
    for both methods. A feature that Stable-SAM attends to with weight w is alpha_1 x*_{p+dp} + alpha_2 x_p, so it is
    drawn as a circle of weight alpha_1 w at p + dp and one of alpha_2 w at p. A plugin without effect therefore gives
    the same panel as SAM.
    """
    panels = _Panels(explanation)
    sam, stable_sam = explanation.sam, explanation.stable_sam
    alpha_1, alpha_2 = explanation.alpha
    own, moved = explanation.positions_xy(), explanation.positions_xy(explanation.offsets)
    sam_circles = [(OWN_RGB, _strongest(own, sam.attention))]
    stable_sam_circles = [
        (OWN_RGB, _strongest(own, stable_sam.attention, alpha_2)),
        (SAMPLED_RGB, _strongest(moved, stable_sam.attention, alpha_1)),
    ]
    largest = max(weights.max() for _, (_, weights) in sam_circles + stable_sam_circles)
    radius = LARGEST_RADIUS * PANEL_SIDE / max(float(largest), 1e-12)
    grid = [
        [
            ("Weak prompt", _describe(explanation.prompt), panels.overlay(None)),
            ("SAM", _scores(sam), panels.overlay(sam.mask)),
            ("Stable-SAM", _scores(stable_sam), panels.overlay(stable_sam.mask)),
        ],
        [
            (
                "Offsets of the plugin, p to p + dp",
                f"alpha_1 {alpha_1:.2f} sampled at p + dp, alpha_2 {alpha_2:.2f} at p",
                panels.arrows(own, moved, alpha_1),
            ),
            ("SAM attends to", _share(sam), panels.circles(sam.mask, sam_circles, radius)),
            (
                "Stable-SAM attends to",
                f"{_share(stable_sam)}; orange at p + dp, blue at p",
                panels.circles(stable_sam.mask, stable_sam_circles, radius),
            ),
        ],
    ]
    return _page(grid)


class _Panels:
    """Draws the panels of one explanation on its image, resized to the panel's size."""

    def __init__(self, explanation: Explanation) -> None:
        height, width = explanation.pixels.shape[:2]
        self.scale = PANEL_SIDE / max(height, width)
        self.size_wh = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        self.image = np.asarray(cv2.resize(explanation.pixels, self.size_wh, interpolation=method), dtype=np.uint8)
        self.prompt = explanation.prompt
        self.dimmed = (self.overlay(None) * DIMMED).astype(np.uint8)

    def overlay(self, mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Draw the prompt, and `mask` (H, W) unless it is None, on the image."""
        box, s = self.prompt.box_xyxy, self.scale
        return draw_overlay(
            self.image,
            None if mask is None else self._resized(mask),
            box_xyxy=None if box is None else (box[0] * s, box[1] * s, box[2] * s, box[3] * s),
            points_xy=[(x * s, y * s) for x, y in self.prompt.points_xy],
            point_labels=self.prompt.point_labels,
        )

    def arrows(self, starts_xy: NDArray[np.float64], ends_xy: NDArray[np.float64], alpha_1: float) -> NDArray[np.uint8]:
        """Draw every n-th offset as an arrow on the dimmed image, more visible the larger alpha_1 is.

        Starts and ends (h, w, 2) are in pixels of the view.
        """
        step = -(-max(starts_xy.shape[:2]) // ARROWS)
        first = step // 2
        drawn = self.dimmed.copy()
        for start, end in zip(
            starts_xy[first::step, first::step].reshape(-1, 2) * self.scale,
            ends_xy[first::step, first::step].reshape(-1, 2) * self.scale,
            strict=True,
        ):
            if (start < self.size_wh).all():
                a, b = start.round().astype(int).tolist(), end.round().astype(int).tolist()
                cv2.arrowedLine(drawn, a, b, SAMPLED_RGB, 2, cv2.LINE_AA, tipLength=0.3)
        return _blend(self.dimmed, drawn, 0.4 + 0.6 * alpha_1)

    def circles(self, mask: NDArray[np.bool_], groups: list[tuple[Rgb, Circles]], radius: float) -> NDArray[np.uint8]:
        """Draw groups of circles on the dimmed image with the mask's outline, small circles on top.

        A circle of weight 1 has a radius of `radius` pixels of the panel.
        """
        drawn = self.dimmed.copy()
        outlines, _ = cv2.findContours(self._resized(mask).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, (255, 255, 255), 1, cv2.LINE_AA)
        circles = [
            ((xy * self.scale).tolist(), weight * radius, rgb)
            for rgb, (centres, weights) in groups
            for xy, weight in zip(centres, weights, strict=True)
            if (xy * self.scale < self.size_wh).all() and weight * radius >= SMALLEST_RADIUS
        ]
        circles.sort(key=lambda circle: -circle[1])
        filled = drawn.copy()
        for centre, size, rgb in circles:
            _circle(filled, centre, size, rgb, cv2.FILLED)
        drawn = _blend(drawn, filled, 0.5)
        for centre, size, rgb in circles:
            if size > OUTLINED_RADIUS:
                _circle(drawn, centre, size, rgb, 1)
        return drawn

    def _resized(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        covered = np.ascontiguousarray(mask).view(np.uint8) * np.uint8(255)
        return np.asarray(cv2.resize(covered, self.size_wh, interpolation=cv2.INTER_LINEAR)) > 127


def _circle(canvas: NDArray[np.uint8], centre_xy: list[float], radius: float, rgb: Rgb, thickness: int) -> None:
    """Draw a circle with sub-pixel centre and radius, so that it does not snap to the pixel grid."""
    shift = 4
    x, y = (round(value * 2**shift) for value in centre_xy)
    cv2.circle(canvas, (x, y), round(radius * 2**shift), rgb, thickness, cv2.LINE_AA, shift)


def _blend(below: NDArray[np.uint8], above: NDArray[np.uint8], opacity: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.addWeighted(above, opacity, below, 1 - opacity, 0), dtype=np.uint8)


def _strongest(positions_xy: NDArray[np.float64], attention: NDArray[np.float32], factor: float = 1.0) -> Circles:
    order = np.argsort(attention, axis=None)[::-1][:STRONGEST]
    return positions_xy.reshape(-1, 2)[order], attention.ravel()[order].astype(np.float64) * factor


def _describe(prompt: Prompt) -> str:
    on, off = prompt.point_labels.count(1), prompt.point_labels.count(0)
    parts = (
        prompt.box_xyxy is not None and "box (dashed)",
        on and f"{counted(on, 'point')} on the object (green)",
        off and f"{off} on the background (red)",
    )
    return ", ".join(part for part in parts if part)


def _scores(explained: ExplainedMask) -> str:
    stability = explained.refined.prompt_stability
    text = f"predicted IoU {explained.refined.predicted_iou:.2f}"
    return text if stability is None else f"{text}, prompt stability {stability:.2f}"


def _share(explained: ExplainedMask) -> str:
    attention = explained.attention
    share = np.sort(attention, axis=None)[::-1][:STRONGEST].sum()
    return f"{min(STRONGEST, attention.size)} of {attention.size} features, {share:.0%} of its attention"


def _page(grid: list[list[tuple[str, str, NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
    """Lay out rows of panels, each (title, second line, RGB pixels), on one page."""
    height, width = grid[0][0][2].shape[:2]
    cell_w, cell_h = max(width, PANEL_WIDTH_MIN), height + TITLE_HEIGHT
    columns = len(grid[0])
    size_wh = columns * (cell_w + MARGIN) + MARGIN, len(grid) * (cell_h + MARGIN) + MARGIN
    page = Image.new("RGB", size_wh, PAGE_RGB)
    pen = ImageDraw.Draw(page)
    for row, cells in enumerate(grid):
        for column, (title, line, panel) in enumerate(cells):
            x, y = MARGIN + column * (cell_w + MARGIN), MARGIN + row * (cell_h + MARGIN)
            pen.text((x, y), title, TEXT_RGB, font=ImageFont.load_default(22))
            pen.text((x, y + 28), line, QUIET_RGB, font=ImageFont.load_default(15))
            page.paste(Image.fromarray(panel), (x, y + TITLE_HEIGHT))
    return np.asarray(page)
