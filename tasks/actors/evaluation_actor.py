"""The actor that scores images for an evaluation: a plain class, which `tasks.actors.fleet` makes remote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stable_sam.errors import StableSamError
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.true_masks import TruthImage, TruthSet
from tasks.actors.shard_actor import ShardFailure, reason
from tasks.actors.sizing import ActorPlan

if TYPE_CHECKING:
    from stable_sam.evaluation.methods import ModelFacts
    from stable_sam.evaluation.scoring import Scorer

SHARE_IMAGES = 8
"""Most images of a share: a minute of a CPU with 20 prompts, 3 methods and 9 kinds of prompts, and some MB of
records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationShare:
    """Some images of one set, with their true masks as run lengths."""

    number: int
    """Number of the share; shares are numbered in the order of their images."""
    set_name: str
    images: tuple[TruthImage, ...]

    @property
    def shard_id(self) -> str:
        """Return the name of the share in messages."""
        return f"{self.set_name}, images {self.images[0].name} to {self.images[-1].name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredShare:
    """The records of a share's images, and the model that they were made with."""

    number: int
    """Number of the share."""
    tables: tuple[Any, ...]
    """The records of each image, in the order of the images."""
    facts: ModelFacts


def split_sets(sets: Sequence[TruthSet]) -> Iterator[EvaluationShare]:
    """Yield all images of `sets` in shares of at most SHARE_IMAGES."""
    parts = [
        (part.name, part.images[start : start + SHARE_IMAGES])
        for part in sets
        for start in range(0, len(part.images), SHARE_IMAGES)
    ]
    for number, (name, images) in enumerate(parts):
        yield EvaluationShare(number=number, set_name=name, images=images)


class EvaluationActor:
    """Scores shares of images with a model that it loads once. Its methods return errors, as those of `ShardActor`."""

    def __init__(self, settings: EvaluationConfig, plan: ActorPlan) -> None:
        self._settings = settings
        self._threads = plan.threads

    def load(self) -> StableSamError | bool:
        """Load the model; returns True, or an error when it cannot be loaded."""
        try:
            return self.scorer is not None
        except StableSamError as error:
            return error
        except Exception as error:
            return StableSamError(f"the model cannot be loaded: {reason(error)}")

    def work(self, share: EvaluationShare) -> ScoredShare | ShardFailure | StableSamError:
        """Score the images of a share; returns the `StableSamError` of the first image that cannot be scored."""
        try:
            tables = tuple(self.scorer.score(share.set_name, image) for image in share.images)
        except StableSamError as error:
            return error
        except Exception as error:
            return ShardFailure(shard_id=share.shard_id, error=reason(error), actor_is_lost=True)
        return ScoredShare(number=share.number, tables=tables, facts=self.scorer.facts)

    @cached_property
    def scorer(self) -> Scorer:
        """Return the scorer with the loaded model."""
        import torch

        from stable_sam.evaluation.scoring import Scorer

        torch.set_num_threads(self._threads)
        return Scorer(self._settings)
