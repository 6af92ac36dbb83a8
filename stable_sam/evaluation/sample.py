"""Draw a sample of the objects in which the sets keep their weights, because twenty prompts an object take long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stable_sam.evaluation.prompts import prompt_rng
from stable_sam.evaluation.true_masks import TruthSet


def sample_objects(sets: Sequence[TruthSet], max_objects: int, seed: int) -> list[TruthSet]:
    """Draw `max_objects` objects from all sets without replacement, each set in proportion to its size.

    At least one object is drawn from each set, so many small sets may give a few more than `max_objects`. The sample
    depends only on the seed and on the names and sizes of the sets. Images without a drawn object are left out; in the
    other images the objects that were not drawn stay as neighbours.
    """
    total = sum(part.objects for part in sets)
    if total <= max_objects:
        return list(sets)
    quotas = _quotas([part.objects for part in sets], max_objects)
    return [_sample(part, quota, seed) for part, quota in zip(sets, quotas, strict=True)]


def _quotas(sizes: Sequence[int], wanted: int) -> list[int]:
    """Whole numbers in proportion to `sizes` by largest remainders, at least 1 for every size but 0."""
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
