"""Reads reviewed YOLO-seg labels: lines have no ids, so each is taken for the sent mask that it is most like."""

from __future__ import annotations

from collections.abc import Iterator

from stable_sam.formats.coco.review import ring_of
from stable_sam.formats.export_records import without_ending
from stable_sam.formats.polygons import fill
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import Finding, ReviewedImage, SentImage, encoded
from stable_sam.formats.yolo.read import LISTS
from stable_sam.formats.yolo.write import label_path


def review_yolo(files: Files) -> Iterator[ReviewedImage]:
    """Yield every image whose label file came back; raises `AnnotationError` without the list of what was sent."""
    sent = files.needed_sent()
    for each in sent.images.values():
        each.having("mask")
    own = {label_path(each.stem).removeprefix("labels/"): each for each in sent.images.values()}
    for name in files.named(".txt"):
        # Exports of older versions, and some tools, have all labels below `labels`, or without the images' folders.
        plain = name.removeprefix("labels/")
        image = own.get(plain) or sent.find(plain)
        where = files.where(name)
        if image is not None:
            findings = list(_lines(files.read(name), where, image))
            yield ReviewedImage(where=where, findings=findings, sent=image.revisions, listed=image, has_ids=False)
        elif without_ending(plain.rpartition("/")[2]) not in LISTS:
            told = "expected the labels of one image in the list of what was sent, got those of none or of several"
            yield ReviewedImage(where=where, findings=[Finding(where=where, prompt_id=None, problem=told)], sent=None)


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
