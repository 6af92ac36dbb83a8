"""What a file says of one image, and what all its files say together of each prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stable_sam.formats.source_annotation import MAX_INT64, image_size
from stable_sam.rle import EncodedMask, decode_mask, encode_mask

MAX_PIXELS = 2**28
"""Of an image: more than any picture that is ever decoded has, and a mask of it fits into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One object of a file."""

    where: str
    prompt_id: str | None
    """None: the file does not say, so it is no object that was sent."""
    mask: EncodedMask | None = None
    """None without a problem: nothing is left of it, as if it had been deleted."""
    problem: str | None = None
    """Why the mask cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedImage:
    """An image that came back."""

    where: str
    findings: Sequence[Finding]
    sent: Mapping[str, int] | None
    """Revision of each prompt that was sent; None when that is not known, and then nothing counts as deleted."""
    checked: bool = False
    """The file says that somebody looked at all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a file says of one prompt."""

    prompt_id: str
    mask: EncodedMask | None
    """None: the object was deleted."""
    revision: int | None
    """Of the row that was sent out; None where the file does not say."""
    checked: bool
    """The file says that somebody looked, so that an unchanged mask is a confirmed one."""
    where: str
    """File and record, for messages."""


def collect(images: Iterable[ReviewedImage]) -> tuple[list[Answer], list[str]]:
    """An answer for each prompt, and a line for each object that cannot be taken.

    A prompt that was sent and is not in its image any more was deleted. Two files that say different things of a prompt
    contradict each other, and neither is taken; nor is what one says when the other's mask cannot be read.
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
                problems.append(f"{finding.where}: {finding.problem or 'a new object, without the id of a prompt'}")
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
    """(height, width) that a file states of an image; None unless masks of that size can be held."""
    size = image_size(image)
    return None if size is None or size[0] * size[1] > MAX_PIXELS else size


def encoded(mask: NDArray[np.bool_]) -> EncodedMask | None:
    """None of an empty mask."""
    return encode_mask(np.asfortranarray(mask)) if mask.any() else None


def united(findings: Iterable[tuple[Finding, NDArray[np.bool_] | None]]) -> list[Finding]:
    """Shapes of one image with their masks, those of one prompt put together: it may have several parts."""
    masks: dict[str, EncodedMask | None] = {}  # pixels of all shapes at once would be too much
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
    # Of a prompt with a shape that cannot be read, the rest is not the mask.
    broken = {finding.prompt_id for finding in others}
    whole = [
        Finding(where=where[prompt_id], prompt_id=prompt_id, mask=mask)
        for prompt_id, mask in masks.items()
        if prompt_id not in broken and mask is not None
    ]
    return others + whole


def revisions(sent: Any) -> dict[str, int] | None:
    """`sent` as a file holds it, prompt_id -> revision; None when it is something else."""
    return sent if isinstance(sent, dict) and all(map(is_revision, sent.values())) else None


def is_revision(value: Any) -> bool:
    """Whether this can be the revision of a row."""
    return type(value) is int and 0 <= value <= MAX_INT64


def _answer(image: ReviewedImage, prompt_id: str, mask: EncodedMask | None, where: str) -> Answer:
    revision = (image.sent or {}).get(prompt_id)
    # Half a surrogate pair, which JSON can smuggle in, is in no table, and no table can be asked for it.
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
