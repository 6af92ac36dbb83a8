"""The actor that scores pictures for an evaluation: a plain class, which `tasks.actors.fleet` makes remote."""

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

SHARE_PICTURES = 8
"""Pictures of a share: with 20 prompts, 3 methods and 9 kinds a minute of a CPU's work, and some MB of records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationShare:
    """Some pictures of one set, with their true masks as run lengths."""

    number: int
    """Place among the shares, which is the order of the pictures."""
    set_name: str
    images: tuple[TruthImage, ...]

    @property
    def shard_id(self) -> str:
        """What it is called in messages."""
        return f"{self.set_name}, pictures {self.images[0].name} to {self.images[-1].name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredShare:
    """The records of a share's pictures, in their order, and the model that they were made with."""

    number: int
    tables: tuple[Any, ...]
    facts: ModelFacts


def split_sets(sets: Sequence[TruthSet]) -> Iterator[EvaluationShare]:
    """All pictures in shares of at most SHARE_PICTURES."""
    parts = [
        (part.name, part.images[start : start + SHARE_PICTURES])
        for part in sets
        for start in range(0, len(part.images), SHARE_PICTURES)
    ]
    for number, (name, images) in enumerate(parts):
        yield EvaluationShare(number=number, set_name=name, images=images)


class EvaluationActor:
    """Scores shares in a process of its own; loads the model once. Errors are returned, as by `ShardActor`."""

    def __init__(self, settings: EvaluationConfig, plan: ActorPlan) -> None:
        self._settings = settings
        self._threads = plan.threads

    def load(self) -> StableSamError | bool:
        """Read the weights; returns True, or what is wrong with them."""
        try:
            return self.scorer is not None
        except StableSamError as error:
            return error
        except Exception as error:
            return StableSamError(f"the model cannot be loaded: {reason(error)}")

    def work(self, share: EvaluationShare) -> ScoredShare | ShardFailure | StableSamError:
        """Score the pictures of a share; what is wrong with one of them ends the evaluation."""
        try:
            tables = tuple(self.scorer.score(share.set_name, image) for image in share.images)
        except StableSamError as error:
            return error
        except Exception as error:
            return ShardFailure(shard_id=share.shard_id, error=reason(error), actor_is_lost=True)
        return ScoredShare(number=share.number, tables=tables, facts=self.scorer.facts)

    @cached_property
    def scorer(self) -> Scorer:
        """The loaded model."""
        import torch

        from stable_sam.evaluation.scoring import Scorer

        torch.set_num_threads(self._threads)
        return Scorer(self._settings)
