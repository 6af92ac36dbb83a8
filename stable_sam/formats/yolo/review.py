"""Reads reviewed YOLO-seg labels: lines have no ids, so lines and sent masks are matched by the highest total IoU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from stable_sam.errors import AnnotationError
from stable_sam.formats.coco.review import ring_of
from stable_sam.formats.polygons import fill
from stable_sam.formats.review_files import Files, SentImage
from stable_sam.formats.review_records import Finding, ReviewedImage, encoded
from stable_sam.rle import EncodedMask, checked_counts, rle

LEAST_IOU = 0.1
"""Least IoU of a line's mask with the sent mask that it corrects; with less, the line is a new object."""


def review_yolo(files: Files) -> Iterator[ReviewedImage]:
    """Yield every image whose label file came back; raises `AnnotationError` without the list of what was sent."""
    there = {name.removeprefix("labels/"): name for name in files.named(".txt")}
    for image in files.needed_sent().images.values():
        name = there.get(f"{image.name.rpartition('.')[0] or image.name}.txt")
        if name is not None:
            findings, complete = _file(files.read(name), files.where(name), image)
            yield ReviewedImage(where=files.where(name), findings=findings, sent=image.revisions if complete else {})


def _file(data: bytes, where: str, image: SentImage) -> tuple[list[Finding], bool]:
    """Return what the lines say, and whether each of them was matched to a prompt.

    When one was not, no prompt counts as deleted, because that line may be the prompt that seems to be missing.
    """
    masks: list[tuple[str, EncodedMask]] = []
    findings: list[Finding] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        place = f"{where}: line {number}"
        try:
            values = [float(value) for value in line.split()[1:]]
            corners = ring_of(values) * (image.size_hw[1], image.size_hw[0]) if values else None
        except ValueError as error:
            findings.append(Finding(where=place, prompt_id=None, problem=str(error)))
            continue
        mask = None if corners is None else encoded(fill([corners], image.size_hw))
        if mask is not None:
            masks.append((place, mask))
    ids = [entry["prompt_id"] for entry in image.objects]
    given = _assigned([mask for _, mask in masks], _sent_counts(image), image.size_hw)
    for position, (place, mask) in enumerate(masks):
        if position in given:
            findings.append(Finding(where=place, prompt_id=ids[given[position]], mask=mask))
        else:
            problem = (
                f"expected one line for each mask that was sent, with an IoU of at least {LEAST_IOU:g}, got a further "
                "line, whose prompt is not known"
            )
            findings.append(Finding(where=place, prompt_id=None, problem=problem))
    return findings, not any(finding.prompt_id is None for finding in findings)


def _sent_counts(image: SentImage) -> list[str]:
    try:
        return [checked_counts(str(entry["mask"]), image.size_hw) for entry in image.having("mask")]
    except ValueError as error:
        raise AnnotationError(f"{image.where}: mask: {error}") from None


def _assigned(masks: Sequence[EncodedMask], sent: Sequence[str], size_hw: tuple[int, int]) -> dict[int, int]:
    if not masks or not sent:
        return {}
    ours, theirs = ([rle(size_hw, counts) for counts in group] for group in ([mask.counts for mask in masks], sent))
    ious = np.asarray(coco_mask.iou(ours, theirs, [0] * len(theirs)))
    pairs = zip(*linear_sum_assignment(ious, maximize=True), strict=True)
    return {int(line): int(place) for line, place in pairs if ious[line, place] >= LEAST_IOU}
