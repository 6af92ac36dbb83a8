"""Search the worst natural box of an object: the box with the worst mask, of those that a careful person might draw.

A natural box lies in the image and has an IoU of at least `NATURAL` with the true box. The search asks a method for the
masks of `BOXES` natural boxes in all. It starts from the true box and from boxes drawn at random, the same for every
method. Each of their four sides is moved on its own, as far as the box stays natural, because the worst masks are found
there. The search then varies the worst boxes found so far, `ROUNDS` times. A longer search might find a worse box.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stable_sam.evaluation.prompts import Boxes, box_iou
from stable_sam.prompt_noise import clip_boxes

NATURAL = 0.7
"""Smallest IoU with the true box of a box that a careful person might draw."""
START = 24
"""Number of boxes that the search starts from, the true box included."""
ROUNDS = 2
PARENTS, CHILDREN = 2, 6
"""Every round varies the PARENTS worst boxes found so far, each CHILDREN times."""
BOXES = START + ROUNDS * PARENTS * CHILDREN
"""Number of boxes that are tried for each object and method, 48. For 40 objects of the validation sets, the mIoU of
`nano` without plugin is 0.638 with the true boxes, 0.426 with the worst of these 48, and 0.430 with the worst of 300
boxes drawn without a search."""
VARIATION = 0.2
"""Standard deviation by which the move of each side is varied; the first moves are uniform between -1 and 1."""
BISECTIONS = 20
"""Number of steps in which the farthest natural box is found; each halves the error."""


def search_worst_box(
    true_xyxy: Boxes,
    image_hw: tuple[int, int],
    rng: np.random.Generator,
    mask_iou: Callable[[Boxes], NDArray[np.float64]],
) -> tuple[Boxes, NDArray[np.float64]]:
    """Search the worst natural box of an object.

    true_xyxy: (4,), the object's tight box in pixels of the image. mask_iou: returns for boxes (B, 4) the IoU (B,) of
    their masks with the true mask; it is called `1 + ROUNDS` times. Returns all boxes that were tried, (BOXES, 4) XYXY,
    and the IoU of their masks, (BOXES,). The first START boxes depend only on `true_xyxy`, `image_hw` and `rng`, and
    the first of them is the true box.
    """
    moves = np.vstack((np.zeros(4), rng.uniform(-1, 1, size=(START - 1, 4))))
    boxes = farthest_boxes(true_xyxy, moves, image_hw)
    ious = mask_iou(boxes)
    for _ in range(ROUNDS):
        parents = np.repeat(np.argsort(ious, kind="stable")[:PARENTS], CHILDREN)
        varied = moves[parents] + rng.normal(0, VARIATION, size=(len(parents), 4))
        new_boxes = farthest_boxes(true_xyxy, varied, image_hw)
        moves, boxes = np.vstack((moves, varied)), np.vstack((boxes, new_boxes))
        ious = np.append(ious, mask_iou(new_boxes))
    return boxes, ious


def farthest_boxes(true_xyxy: Boxes, moves: NDArray[np.float64], image_hw: tuple[int, int]) -> Boxes:
    """Return the natural boxes (B, 4) that are farthest from the true box (4,) in the directions `moves` (B, 4).

    moves: how far the left, top, right and bottom side move, in widths and heights of the true box. Only their
    proportions count, and where all are 0 the box is the true one.
    """
    longest = np.abs(moves).max(axis=1, keepdims=True)
    directions = np.divide(moves, longest, out=np.zeros_like(moves), where=longest > 0)
    size = np.tile(true_xyxy[2:] - true_xyxy[:2], 2)

    def moved(far: NDArray[np.float64]) -> Boxes:
        return clip_boxes(true_xyxy + far[:, None] * directions * size, image_hw)

    # The farther the sides move, the smaller is the IoU. At 1 / NATURAL no box is natural any more, unless the border
    # of the image stops a side.
    low, high = np.zeros(len(moves)), np.full(len(moves), 1 / NATURAL)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        natural = box_iou(moved(middle), true_xyxy) >= NATURAL
        low, high = np.where(natural, middle, low), np.where(natural, high, middle)
    return moved(low)
