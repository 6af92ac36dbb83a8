"""What reviewed files say about one image, and what all of them together say about each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import AnnotationError
from stable_sam.formats.export_records import without_ending
from stable_sam.formats.review_matching import LEAST_IOU, SAME_IOU, iou_matrix, match
from stable_sam.formats.source_annotation import MAX_INT64, image_size
from stable_sam.rle import EncodedMask, checked_counts, decode_mask, encode_mask
from stable_sam.wording import counted

MAX_PIXELS = 2**28
"""Largest image in pixels. No larger image is ever decoded, and a mask of this size fits into memory."""
_NAMED = 5
"""Most prompts that one message names."""
_ToldBy = Literal["id", "mask", "likeness", "nothing"]
"""What tells the prompt of an object: its own id, a mask that is exactly the sent one, or a mask that is like it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentImage:
    """One image of an export, as the list of what was sent has it."""

    name: str
    """Name of the image in the export, as `ExportImage.name`."""
    size_hw: tuple[int, int]
    """Height and width in pixels."""
    objects: tuple[Mapping[str, Any], ...]
    """For each object its prompt_id, its revision, its mask's RLE counts, and the values that identify it in the
    format's files. Lists of older exports have no masks."""
    image_uri: str = ""
    """URI of the image; empty when the list does not have it."""
    where: str = ""
    """The list's URI and the image, for messages."""

    @property
    def stem(self) -> str:
        """`name` without the ending of the file."""
        return without_ending(self.name)

    @property
    def revisions(self) -> dict[str, int]:
        """The revision that was sent, by prompt_id."""
        return {entry["prompt_id"]: entry["revision"] for entry in self.objects}

    @property
    def counts(self) -> dict[str, str]:
        """The RLE counts of the masks by prompt_id as the list has them, unchecked."""
        return {entry["prompt_id"]: str(entry["mask"]) for entry in self.objects if "mask" in entry}

    def masks(self, prompt_ids: Iterable[str]) -> dict[str, str]:
        """Return the RLE counts of these prompts' masks, without those that the list does not have.

        Raises `AnnotationError` for counts that are not those of a mask of this image.
        """
        counts = self.counts
        try:
            return {one: checked_counts(counts[one], self.size_hw) for one in prompt_ids if one in counts}
        except ValueError as error:
            raise AnnotationError(f"{self.where}: mask: {error}") from None

    def having(self, *names: str) -> tuple[Mapping[str, Any], ...]:
        """Return the objects; raises `AnnotationError` unless each has a text or whole number under all of `names`."""
        for entry in self.objects:
            for name in names:
                if not isinstance(entry.get(name), str | int):
                    raise AnnotationError(
                        f"{self.where}: expected {name} of each object, got {entry!r:.80}: is this the list of an "
                        "export in this format?"
                    )
        return self.objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One object in a reviewed file."""

    where: str
    """File and record, for messages."""
    prompt_id: str | None
    """The prompt that the file names for the object; None when it names none, as for an object that was not sent."""
    mask: EncodedMask | None = None
    """The mask; None with a problem, or when it is empty, which counts as deleted."""
    problem: str | None = None
    """Why the mask cannot be read; None when it can."""
    lost_id: bool = False
    """Whether `prompt_id` was told by the mask, because the file names no prompt or another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedImage:
    """An image in a reviewed file, with the objects that the file has there."""

    where: str
    """File and record, for messages."""
    findings: Sequence[Finding]
    sent: Mapping[str, int] | None
    """The revision that was sent, by prompt_id; None when that is not known, so that no prompt counts as deleted."""
    listed: SentImage | None = None
    """The image in the list of what was sent, whose masks tell the prompts of objects without one; None without it."""
    has_ids: bool = True
    """Whether the format holds a prompt_id for each object, so that an object without one has lost it."""
    checked: bool = False
    """Whether the file says that somebody looked at the whole image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the reviewed files say about one prompt."""

    prompt_id: str
    mask: EncodedMask | None
    """The mask; None when the object was deleted."""
    revision: int | None
    """Revision of the row that was sent; None when it is not known."""
    checked: bool
    """Whether the file says that somebody looked, so that an unchanged mask counts as confirmed."""
    where: str
    """File and record, for messages."""
    lost_id: bool = False
    """Whether the prompt was told by the mask, because the file does not name it."""


def collect(images: Iterable[ReviewedImage]) -> tuple[list[Answer], list[str]]:
    """Return one answer for each prompt, and one line for each object or prompt that cannot be imported.

    An object without a prompt that was sent with its image gets the prompt of the sent mask that it is most like. A
    prompt that was sent and is no longer in its image counts as deleted only where every object of the image has its
    prompt, by its own id or by exactly its mask. When two files say different things about a prompt, or the mask in one
    of them cannot be read, the prompt gets no answer.
    """
    answers: dict[str, Answer] = {}
    contradicted: dict[str, str] = {}
    unreadable: set[str] = set()
    problems: list[str] = []
    told: Counter[_ToldBy] = Counter()
    absent: list[tuple[ReviewedImage, list[str], bool]] = []
    for image in images:
        findings, told_by = _identified(image)
        told.update(told_by)
        mentioned, erased = set(), set()
        for finding in findings:
            if finding.prompt_id is None:
                problems.append(f"{finding.where}: {finding.problem}")
                continue
            if finding.problem is not None:
                problems.append(f"{finding.where}: prompt {finding.prompt_id}: {finding.problem}")
                unreadable.add(finding.prompt_id)
            elif finding.mask is None:
                erased.add(finding.prompt_id)
                continue
            else:
                _take(answers, contradicted, _answer(image, finding, finding.mask))
            mentioned.add(finding.prompt_id)
        missing = [prompt_id for prompt_id in image.sent or {} if prompt_id not in mentioned]
        clear = "nothing" not in told_by and not (image.has_ids and "likeness" in told_by)
        absent.append((image, [one for one in missing if clear or one in erased], True))
        absent.append((image, [one for one in missing if not clear and one not in erased], False))
    # A tool that loses every id and draws every mask anew also leaves out what it cannot draw, such as single pixels.
    redrawn = told["likeness"] > 1 and not told["id"] and not told["mask"]
    for image, missing, clear in absent:
        # An image without objects says nothing where another file has them: datumaro also writes a list of the images.
        says = bool(image.findings) or image.checked
        prompt_ids = [prompt_id for prompt_id in missing if says or prompt_id not in answers]
        if prompt_ids and (redrawn or not clear):
            problems.append(f"{image.where}: {_not_rejected(prompt_ids, clear)}")
            continue
        for prompt_id in prompt_ids:
            deleted = Finding(where=image.where, prompt_id=prompt_id)
            _take(answers, contradicted, _answer(image, deleted, None))
    problems += [f"prompt {prompt_id}: {places}" for prompt_id, places in contradicted.items()]
    not_taken = unreadable | contradicted.keys()
    return [answer for answer in answers.values() if answer.prompt_id not in not_taken], problems


def _identified(image: ReviewedImage) -> tuple[list[Finding], list[_ToldBy]]:
    """Return the objects with their prompts, and what told the prompt of each.

    An object that is none of those that were sent has no prompt and says so in `problem`.
    """
    sent, findings = image.sent, list(image.findings)
    if sent is None:
        return [each if each.prompt_id else _unknown(each, image, {}) for each in findings], []
    doubted = _doubted(image)
    own = [place for place, each in enumerate(findings) if each.prompt_id in sent and place not in doubted]
    taken = {findings[place].prompt_id for place in own}
    masks = {} if image.listed is None else image.listed.masks(one for one in sent if one not in taken)
    loose = {
        place: each.mask
        for place, each in enumerate(findings)
        if (place in doubted or each.prompt_id not in sent)
        and each.mask is not None
        and image.listed is not None
        and each.mask.size_hw == image.listed.size_hw
    }
    places = list(loose)
    matches = match(list(loose.values()), masks)
    told_by: list[_ToldBy] = ["id"] * len(own)
    result: dict[int, Finding] = {place: findings[place] for place in own}
    used: set[int] = set()
    for prompt_id, found in matches.items():
        first, *_ = parts = [places[position] for position in found.positions]
        used.update(parts)
        lost = image.has_ids and findings[first].prompt_id != prompt_id
        where = findings[first].where
        result[first] = Finding(where=where, prompt_id=prompt_id, mask=found.mask, lost_id=lost)
        told_by.append("mask" if found.exact else "likeness" if lost or not image.has_ids else "id")
    missing = {one: counts for one, counts in masks.items() if one not in matches}
    for place, each in enumerate(findings):
        if place not in used and place in doubted:
            result[place] = each
            told_by.append("id")
        elif place not in used and place not in result:
            result[place] = _unknown(each, image, missing)
            told_by.append("nothing")
    return [result[place] for place in sorted(result)], told_by


def _doubted(image: ReviewedImage) -> set[int]:
    """Return the places of the objects that name one prompt and have the mask that was sent for another prompt."""
    if image.listed is None or image.sent is None or not image.has_ids:
        return set()
    counts = image.listed.counts
    changed = {
        place: each
        for place, each in enumerate(image.findings)
        if each.prompt_id in image.sent
        and each.mask is not None
        and each.mask.counts != counts.get(each.prompt_id or "")
        and each.mask.size_hw == image.listed.size_hw
    }
    masks = image.listed.masks(image.sent) if changed else {}
    columns = {prompt_id: column for column, prompt_id in enumerate(masks)}
    ious = iou_matrix([each.mask for each in changed.values() if each.mask is not None], list(masks.values()))
    return {
        place
        for (place, each), row in zip(changed.items(), ious, strict=True)
        if each.prompt_id in columns and row.max() >= SAME_IOU and row[columns[each.prompt_id]] < row.max()
    }


def _unknown(finding: Finding, image: ReviewedImage, missing: Mapping[str, str]) -> Finding:
    """Return the object without a prompt, with the reason why it has none."""
    named = "without a prompt_id" if finding.prompt_id is None else f"of prompt {finding.prompt_id}"
    if finding.problem is not None:
        problem = finding.problem if finding.prompt_id is None else f"prompt {finding.prompt_id}: {finding.problem}"
    elif not image.has_ids:
        problem = (
            f"expected one line for each mask that was sent, with an IoU of at least {LEAST_IOU:g}, got a further "
            "line, whose prompt is not known"
        )
    elif image.sent is None:
        problem = f"an object {named}, in an image that is in no list of what was sent: name the export with --sent"
    elif missing:
        problem = f"an object {named}, which is like none of the sent masks that are missing (IoU below {LEAST_IOU:g})"
    else:
        problem = f"a new object {named}" if finding.prompt_id is None else f"an object {named}, which was not sent"
    return Finding(where=finding.where, prompt_id=None, problem=problem)


def _not_rejected(prompt_ids: Sequence[str], clear: bool) -> str:
    named = ", ".join(prompt_ids[:_NAMED]) + (", ..." if len(prompt_ids) > _NAMED else "")
    why = (
        "the tool kept no prompt_id and drew every mask anew, and may have left masks out (with "
        "--unchanged-iou 0.9, masks that it drew anew are taken for unchanged)"
        if clear
        else "they may be among the image's objects whose prompts are not known"
    )
    masks = counted(len(prompt_ids), "mask")
    return f"{masks} without an answer, which cannot be told to be deleted (prompts {named}): {why}"


def reviewed_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) in pixels from `image`; None unless they are the size of an image up to `MAX_PIXELS`."""
    size = image_size(image)
    return None if size is None or size[0] * size[1] > MAX_PIXELS else size


def encoded(mask: NDArray[np.bool_]) -> EncodedMask | None:
    """Return `mask` (H, W) as run lengths, None when it is empty."""
    return encode_mask(np.asfortranarray(mask)) if mask.any() else None


def united(
    findings: Iterable[tuple[Finding, NDArray[np.bool_] | None]], sent: Mapping[str, int] | None
) -> list[Finding]:
    """Return the shapes of one image with the shapes of one prompt united, because an object may have several parts.

    Each shape comes with its mask (H, W), or None when it has none. A prompt with a shape that cannot be read gets no
    mask. Shapes of a prompt that was not sent are left apart, because a tool may write one default for all of them.
    """
    # Masks are kept as run lengths, because the pixels of all shapes at once would fill the memory.
    masks: dict[str, EncodedMask | None] = {}
    where: dict[str, str] = {}
    others: list[Finding] = []
    for finding, mask in findings:
        if mask is None:
            others.append(finding)
        elif finding.prompt_id is None or (sent is not None and finding.prompt_id not in sent):
            others.append(replace(finding, mask=encoded(mask)))
        elif finding.prompt_id in masks:
            first = masks[finding.prompt_id]
            masks[finding.prompt_id] = encoded(
                mask if first is None else mask | decode_mask(first.size_hw, first.counts)
            )
        else:
            masks[finding.prompt_id], where[finding.prompt_id] = encoded(mask), finding.where
    # When one shape of a prompt cannot be read, the others alone are not its mask.
    broken = {finding.prompt_id for finding in others}
    whole = [
        Finding(where=where[prompt_id], prompt_id=prompt_id, mask=mask)
        for prompt_id, mask in masks.items()
        if prompt_id not in broken
    ]
    return others + whole


def revisions(sent: Any) -> dict[str, int] | None:
    """Return `sent` when it is an object of prompt_id and revision, as an export writes it; else None."""
    return sent if isinstance(sent, dict) and all(map(is_revision, sent.values())) else None


def is_revision(value: Any) -> bool:
    """Whether `value` can be the revision of a row."""
    return type(value) is int and 0 <= value <= MAX_INT64


def _answer(image: ReviewedImage, finding: Finding, mask: EncodedMask | None) -> Answer:
    assert finding.prompt_id is not None
    return Answer(
        # JSON may hold half a surrogate pair. No table holds such text, and a query with it would fail.
        prompt_id=finding.prompt_id.encode(errors="backslashreplace").decode(),
        mask=mask,
        revision=(image.sent or {}).get(finding.prompt_id),
        checked=image.checked,
        where=finding.where,
        lost_id=finding.lost_id,
    )


def _take(answers: dict[str, Answer], contradicted: dict[str, str], answer: Answer) -> None:
    before = answers.setdefault(answer.prompt_id, answer)
    if before.mask != answer.mask:
        one, other = ("deleted" if each.mask is None else "a mask" for each in (before, answer))
        kinds = "two different masks" if one == other else f"{one} in one and {other} in the other"
        contradicted[answer.prompt_id] = f"{kinds}: {before.where}, {answer.where}; neither was imported"
    elif answer.checked and not before.checked:
        answers[answer.prompt_id] = replace(before, checked=True)
