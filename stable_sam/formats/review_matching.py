"""Matches masks that came back without the prompts that they are for to the masks that were sent, by their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam.rle import EncodedMask, decode_mask, encode_mask, rle, rle_iou

LEAST_IOU = 0.1
"""Least IoU of a mask with the sent mask that it corrects; with less, it is a new object."""
SAME_IOU = 0.9
"""Least IoU of a mask with a sent mask from which it is taken for that mask in spite of the prompt that it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The masks of one image that are one mask that was sent."""

    positions: tuple[int, ...]
    """Positions of the masks; a mask that came back in parts has several."""
    mask: EncodedMask
    """The masks united."""
    exact: bool
    """Whether it is the sent mask, pixel by pixel."""


def match(masks: Sequence[EncodedMask], sent: Mapping[str, str]) -> dict[str, Match]:
    """Return by prompt_id which of `masks` are the masks that were sent, given as valid RLE counts of the same size.

    Each mask goes to one sent mask at most: first those that are equal, then those whose parts add up to a sent mask,
    then by the highest total IoU. A further mask that makes such a match more like the sent mask is a part of it, too.
    """
    from scipy.optimize import linear_sum_assignment  # planning imports this module and matches nothing

    if not masks or not sent:
        return {}
    found: dict[str, Match] = {}
    free = dict(enumerate(masks))
    for prompt_id, counts in sent.items():
        equal = next((position for position, mask in free.items() if mask.counts == counts), None)
        if equal is not None:
            found[prompt_id] = Match(positions=(equal,), mask=free.pop(equal), exact=True)
    ids = [prompt_id for prompt_id in sent if prompt_id not in found]
    for prompt_id in ids:
        parts = _parts(free, sent[prompt_id])
        whole = united([free[position] for position in parts])
        if whole is not None and whole.counts == sent[prompt_id]:
            found[prompt_id] = Match(positions=parts, mask=whole, exact=True)
            for position in parts:
                del free[position]
    ids = [prompt_id for prompt_id in ids if prompt_id not in found]
    positions = list(free)
    ious = iou_matrix([free[position] for position in positions], [sent[prompt_id] for prompt_id in ids])
    for row, column in zip(*linear_sum_assignment(ious, maximize=True), strict=True):
        if ious[row, column] >= LEAST_IOU:
            position = positions[row]
            found[ids[column]] = Match(positions=(position,), mask=free.pop(position), exact=False)
    for position, mask in free.items():
        better = {prompt_id: _with_part(old, position, mask, sent[prompt_id]) for prompt_id, old in found.items()}
        found |= {prompt_id: new for prompt_id, new in better.items() if new is not None}
    return found


def united(masks: Sequence[EncodedMask]) -> EncodedMask | None:
    """Return the union of masks of one size, None when there are none."""
    if len(masks) < 2:
        return masks[0] if masks else None
    size = masks[0].size_hw
    whole = coco_mask.merge([rle(size, mask.counts) for mask in masks])
    return encode_mask(decode_mask(size, whole["counts"].decode("ascii")))


def iou_matrix(masks: Sequence[EncodedMask], sent: Sequence[str]) -> NDArray[np.float64]:
    """Return the IoU (N, M) of N masks with M sent masks, which are given as valid RLE counts of the same size."""
    if not masks or not sent:
        return np.zeros((len(masks), len(sent)))
    size = masks[0].size_hw
    ours, theirs = ([rle(size, counts) for counts in group] for group in ([mask.counts for mask in masks], sent))
    return np.asarray(coco_mask.iou(ours, theirs, [0] * len(theirs)), np.float64)


def _parts(masks: Mapping[int, EncodedMask], counts: str) -> tuple[int, ...]:
    """Return the positions of the masks that together cover what all masks inside the sent mask cover.

    The largest are taken first, and none that adds nothing, because it may be a part of another mask.
    """
    inside = [position for position, share in _shares(masks, counts).items() if share == 1]
    parts: list[int] = []
    whole: EncodedMask | None = None
    for position in sorted(inside, key=lambda each: -masks[each].area):
        more = masks[position] if whole is None else united([whole, masks[position]])
        if whole is None or (more is not None and more.area > whole.area):
            parts.append(position)
            whole = more
    return tuple(sorted(parts))


def _shares(masks: Mapping[int, EncodedMask], counts: str) -> dict[int, float]:
    """Return by position which share of each mask lies inside the sent mask."""
    if not masks:
        return {}
    size = next(iter(masks.values())).size_hw
    # For a crowd, pycocotools divides the intersection by the area of the mask alone.
    shares = coco_mask.iou([rle(size, mask.counts) for mask in masks.values()], [rle(size, counts)], [1])
    return dict(zip(masks, np.asarray(shares)[:, 0].tolist(), strict=True))


def _with_part(old: Match, position: int, mask: EncodedMask, counts: str) -> Match | None:
    """Return the match with a further part, None unless that makes it more like the sent mask."""
    if old.exact or not _shares({position: mask}, counts)[position]:
        return None
    whole = united([old.mask, mask])
    assert whole is not None
    size = mask.size_hw
    before, now = (rle_iou(rle(size, each.counts), rle(size, counts)) for each in (old.mask, whole))
    if now <= before:
        return None
    return Match(positions=(*old.positions, position), mask=whole, exact=whole.counts == counts)
