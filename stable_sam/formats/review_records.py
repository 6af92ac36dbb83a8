"""What reviewed files say about one image, and what all of them together say about each prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.source_annotation import MAX_INT64, image_size
from stable_sam.rle import EncodedMask, decode_mask, encode_mask

MAX_PIXELS = 2**28
"""Largest image in pixels. No larger image is ever decoded, and a mask of this size fits into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One object in a reviewed file."""

    where: str
    """File and record, for messages."""
    prompt_id: str | None
    """The prompt of the object; None when the file names none, as for an object that was not sent."""
    mask: EncodedMask | None = None
    """The mask; None with a problem, or when it is empty, which counts as deleted."""
    problem: str | None = None
    """Why the mask cannot be read; None when it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedImage:
    """An image in a reviewed file, with the objects that the file has there."""

    where: str
    """File and record, for messages."""
    findings: Sequence[Finding]
    sent: Mapping[str, int] | None
    """The revision that was sent, by prompt_id; None when that is not known, so that no prompt counts as deleted."""
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


def collect(images: Iterable[ReviewedImage]) -> tuple[list[Answer], list[str]]:
    """Return one answer for each prompt, and one line for each object or prompt that cannot be imported.

    A prompt that was sent and is no longer in its image counts as deleted. When two files say different things about a
    prompt, or the mask in one of them cannot be read, the prompt gets no answer.
    """
    answers: dict[str, Answer] = {}
    contradicted: dict[str, str] = {}
    unreadable: set[str] = set()
    problems: list[str] = []
    for image in images:
        sent = image.sent or {}
        mentioned = set()
        for finding in image.findings:
            if finding.prompt_id is None:
                problems.append(f"{finding.where}: {finding.problem or 'a new object without a prompt_id'}")
                continue
            if finding.problem is not None:
                problems.append(f"{finding.where}: prompt {finding.prompt_id}: {finding.problem}")
                unreadable.add(finding.prompt_id)
            elif finding.mask is None:
                continue
            else:
                _take(answers, contradicted, _answer(image, finding.prompt_id, finding.mask, finding.where))
            mentioned.add(finding.prompt_id)
        for prompt_id in sent:
            if prompt_id not in mentioned:
                _take(answers, contradicted, _answer(image, prompt_id, None, image.where))
    problems += [f"prompt {prompt_id}: {places}" for prompt_id, places in contradicted.items()]
    not_taken = unreadable | contradicted.keys()
    return [answer for answer in answers.values() if answer.prompt_id not in not_taken], problems


def reviewed_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) in pixels from `image`; None unless they are the size of an image up to `MAX_PIXELS`."""
    size = image_size(image)
    return None if size is None or size[0] * size[1] > MAX_PIXELS else size


def encoded(mask: NDArray[np.bool_]) -> EncodedMask | None:
    """Return `mask` (H, W) as run lengths, None when it is empty."""
    return encode_mask(np.asfortranarray(mask)) if mask.any() else None


def united(findings: Iterable[tuple[Finding, NDArray[np.bool_] | None]]) -> list[Finding]:
    """Return the shapes of one image with the shapes of one prompt united, because an object may have several parts.

    Each shape comes with its mask (H, W), or None when it has none. A prompt with a shape that cannot be read gets no
    mask.
    """
    # Masks are kept as run lengths, because the pixels of all shapes at once would fill the memory.
    masks: dict[str, EncodedMask | None] = {}
    where: dict[str, str] = {}
    others: list[Finding] = []
    for finding, mask in findings:
        if finding.prompt_id is None or mask is None:
            others.append(finding)
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
        if prompt_id not in broken and mask is not None
    ]
    return others + whole


def revisions(sent: Any) -> dict[str, int] | None:
    """Return `sent` when it is an object of prompt_id and revision, as an export writes it; else None."""
    return sent if isinstance(sent, dict) and all(map(is_revision, sent.values())) else None


def is_revision(value: Any) -> bool:
    """Whether `value` can be the revision of a row."""
    return type(value) is int and 0 <= value <= MAX_INT64


def _answer(image: ReviewedImage, prompt_id: str, mask: EncodedMask | None, where: str) -> Answer:
    revision = (image.sent or {}).get(prompt_id)
    # JSON may hold half a surrogate pair. No table holds such text, and a query with it would fail.
    asked = prompt_id.encode(errors="backslashreplace").decode()
    return Answer(prompt_id=asked, mask=mask, revision=revision, checked=image.checked, where=where)


def _take(answers: dict[str, Answer], contradicted: dict[str, str], answer: Answer) -> None:
    before = answers.setdefault(answer.prompt_id, answer)
    if before.mask != answer.mask:
        one, other = ("deleted" if each.mask is None else "a mask" for each in (before, answer))
        kinds = "two different masks" if one == other else f"{one} in one and {other} in the other"
        contradicted[answer.prompt_id] = f"{kinds}: {before.where}, {answer.where}; neither was imported"
    elif answer.checked and not before.checked:
        answers[answer.prompt_id] = replace(before, checked=True)
