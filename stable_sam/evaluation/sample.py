"""Fewer objects, drawn so that the sets keep their weights: twenty prompts an object are dear on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stable_sam.evaluation.prompts import prompt_rng
from stable_sam.evaluation.true_masks import TruthSet


def sample_objects(sets: Sequence[TruthSet], max_objects: int, seed: int) -> list[TruthSet]:
    """`max_objects` objects of all sets together, each set in proportion to its size, and at least one of each: sets so
    small that their share is none bring one object more.

    Drawn without replacement from the seed, the set's name and its size alone. Pictures without a drawn object are left
    out; in the others the objects not drawn stay as neighbours.
    """
    total = sum(part.objects for part in sets)
    if total <= max_objects:
        return list(sets)
    quotas = _quotas([part.objects for part in sets], max_objects)
    return [_sample(part, quota, seed) for part, quota in zip(sets, quotas, strict=True)]


def _quotas(sizes: Sequence[int], wanted: int) -> list[int]:
    """Whole numbers in proportion to `sizes`, at least 1 where there is anything, by largest remainders."""
    exact = [size * wanted / sum(sizes) for size in sizes]
    quotas = [max(int(share), min(size, 1)) for share, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda n: quotas[n] - exact[n])
    for n in by_remainder[: max(0, wanted - sum(quotas))]:
        quotas[n] += 1
    return quotas


def _sample(part: TruthSet, quota: int, seed: int) -> TruthSet:
    keys = [(number, item.annotation_id) for number, image in enumerate(part.images) for item in image.objects]
    drawn = prompt_rng(seed, "sample", part.name).choice(len(keys), size=quota, replace=False)
    asked: dict[int, set[str]] = {}
    for index in drawn.tolist():
        number, annotation_id = keys[index]
        asked.setdefault(number, set()).add(annotation_id)
    return replace(
        part, images=tuple(replace(part.images[number], asked=frozenset(asked[number])) for number in sorted(asked))
    )
