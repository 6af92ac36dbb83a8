"""Reads reviewed YOLO-seg labels: lines have no ids, so each is taken for the sent mask that it is most like."""

from __future__ import annotations

from collections.abc import Iterator

from stable_sam.formats.coco.review import ring_of
from stable_sam.formats.polygons import fill
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import Finding, ReviewedImage, SentImage, encoded
from stable_sam.formats.yolo.write import label_path


def review_yolo(files: Files) -> Iterator[ReviewedImage]:
    """Yield every image whose label file came back; raises `AnnotationError` without the list of what was sent."""
    there = {name.removeprefix("labels/"): name for name in files.named(".txt")}
    for image in files.needed_sent().images.values():
        image.having("mask")
        own = label_path(image.stem).removeprefix("labels/")
        # Exports of older versions, and some tools, have all labels below `labels`.
        name = there.get(own) or there.get(f"{image.stem}.txt")
        if name is not None:
            where = files.where(name)
            findings = list(_lines(files.read(name), where, image))
            yield ReviewedImage(where=where, findings=findings, sent=image.revisions, listed=image, has_ids=False)


def _lines(data: bytes, where: str, image: SentImage) -> Iterator[Finding]:
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        place = f"{where}: line {number}"
        try:
            values = [float(value) for value in line.split()[1:]]
            corners = ring_of(values) * (image.size_hw[1], image.size_hw[0]) if values else None
        except ValueError as error:
            yield Finding(where=place, prompt_id=None, problem=str(error))
            continue
        mask = None if corners is None else encoded(fill([corners], image.size_hw))
        if mask is not None:
            yield Finding(where=place, prompt_id=None, mask=mask)
