"""A run's shards, or an evaluation's shares, through a fleet of actors.

What crosses is a shard's plan (a few hundred bytes) and a report of the same size; prompts, pixels and masks never do.
An evaluation's share takes its pictures' true masks along, run-length encoded, and its records back.

An image that ends the process of the model costs no actor (`tasks.actors.child_process`); a shard that keeps ending
whole actors or nodes is searched for the images that do it, whose prompts become failed rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stable_sam.config import RayConfig
from stable_sam.errors import StableSamError, StorageError
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.records import ShardReport
from stable_sam.runs.manifest import ShardPlan, read_shard
from tasks.actors.child import LoadRefiner, load_refiner
from tasks.actors.evaluation_actor import EvaluationActor, EvaluationShare, ScoredShare
from tasks.actors.fleet import SoleActor, fleet_of, pickled
from tasks.actors.shard_actor import ShardActor, ShardFailure, reason

POISON_REASON = "refining this image ended its actor, 2 times (killed, or its node out of memory)"


def run_shards(
    manifest_uri: str,
    shards: Sequence[ShardPlan],
    settings: RayConfig,
    *,
    device: str = "auto",
    load: LoadRefiner = load_refiner,
    actor_class: type[ShardActor] = ShardActor,
) -> Iterator[ShardReport | ShardFailure]:
    """Have every shard refined and committed; yields one outcome for each, as they come.

    device: where the actors' model runs, as in `RefinerConfig`; the manifest's own is not used. load: makes that model.
    Raises `StableSamError` for what would fail every shard: weights, configuration, credentials, actors that do not
    start.
    """
    if not shards:
        return
    arguments = (manifest_uri, device, pickled(load), settings)
    deadly: list[ShardPlan] = []
    # Calls run side by side: one shard is refined, another is fetched or written.
    with fleet_of(actor_class, arguments, len(shards), settings, concurrency=settings.in_flight_per_actor) as fleet:
        for shard, outcome in fleet.run(shards):
            if outcome is None:
                deadly.append(shard)
            else:
                yield outcome
        if deadly:
            with fleet.sole_actor() as actor:
                for shard in deadly:
                    yield _refine_around_killers(actor, shard)


def score_shares(
    evaluation: EvaluationConfig,
    shares: Sequence[EvaluationShare],
    settings: RayConfig,
    *,
    actor_class: type[EvaluationActor] = EvaluationActor,
) -> Iterator[ScoredShare]:
    """Have the pictures of every share scored; yields the shares as they come, each once.

    Raises `StableSamError` when one of them cannot be: figures of a part of the pictures would be other figures.
    """
    with fleet_of(actor_class, (evaluation,), len(shares), settings) as fleet:
        for share, outcome in fleet.run(shares):
            if outcome is None:
                raise StableSamError(
                    f"{share.shard_id}: a picture there ends the process that evaluates it, every time"
                )
            if isinstance(outcome, ShardFailure):
                raise StableSamError(f"{outcome.shard_id}: cannot be evaluated: {outcome.error}")
            yield outcome


def _refine_around_killers(actor: SoleActor, shard: ShardPlan) -> ShardReport | ShardFailure:
    """Find the images that end their actor by trying one after the other, then refine the shard without them.

    This is for what takes the actor or its node along, as a node without memory does. One by one costs each image one
    more pass and one new actor for each death; halving would cost new actors, which are dearer. An image is condemned
    by two deaths, since one may be the machine's fault. Where the search itself fails, no image is condemned and the
    shard waits for the next run.
    """
    poisoned: dict[str, str] = {}
    try:
        images = sorted({prompt.image_id for prompt in read_shard(shard.uri)})
    except StorageError as error:
        return ShardFailure(shard_id=shard.shard_id, error=reason(error))
    for image_id in images:
        survived = actor.call("probe", shard, image_id) or actor.call("probe", shard, image_id)
        if isinstance(survived, ShardFailure):
            return survived
        if not survived:
            poisoned[image_id] = POISON_REASON
    answer: ShardReport | ShardFailure | None = actor.call("work", shard, poisoned)
    if answer is None:
        problem = "ends its actor, though none of its other images does alone; try a smaller shard_images"
        return ShardFailure(shard_id=shard.shard_id, error=problem)
    return answer
