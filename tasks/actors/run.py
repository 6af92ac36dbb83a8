"""Send the shards of a run, or the shares of an evaluation, through a fleet of actors.

An actor gets the plan of a shard, a few hundred bytes, and returns a report of the same size: prompts, pixels and masks
do not pass through the driver. With `ray.helpers`, pixels and logits travel between an actor and its helpers. A share
of an evaluation takes its true masks along, run-length encoded, and returns records.

An image that ends the process of the model ends no actor (`tasks.actors.child_process`). A shard that keeps ending
whole actors or nodes is searched for the images that do so, whose prompts become failed rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from stable_sam.config import RayConfig
from stable_sam.errors import StableSamError, StorageError
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.records import ShardReport
from stable_sam.runs.manifest import ShardPlan, read_shard
from tasks.actors.child import LoadRefiner, load_refiner
from tasks.actors.evaluation_actor import EvaluationActor, EvaluationShare, ScoredShare
from tasks.actors.fleet import SoleActor, fleet_of, pickled
from tasks.actors.shard_actor import ShardActor, ShardFailure, reason

POISON_REASON = "refining this image ended its actor twice (the actor was killed, or its node was out of memory)"
"""Error of the failed rows of an image that ends its actor."""


def run_shards(
    manifest_uri: str,
    shards: Sequence[ShardPlan],
    config: RayConfig,
    *,
    device: str = "auto",
    load: LoadRefiner = load_refiner,
    actor_class: type[ShardActor] = ShardActor,
) -> Generator[ShardReport | ShardFailure, None, None]:
    """Have every shard refined and committed, and yield one outcome for each, in the order in which they finish.

    device: device of the actors' models, as `RefinerConfig.device`, in the place of the manifest's. load: loads the
    model. Raises `StableSamError` for what would fail every shard: weights, config, credentials, and actors that do not
    start.
    """
    if not shards:
        return
    arguments = (manifest_uri, device, pickled(load), config)
    deadly: list[ShardPlan] = []
    # Calls of one actor overlap: while one shard is refined, another is fetched or written.
    with fleet_of(actor_class, arguments, len(shards), config, concurrency=config.in_flight_per_actor) as fleet:
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
    config: RayConfig,
    *,
    actor_class: type[EvaluationActor] = EvaluationActor,
) -> Iterator[ScoredShare]:
    """Have the images of every share scored, and yield the scored shares in the order in which they finish.

    Raises `StableSamError` when a share cannot be scored, because figures without its images would not be comparable.
    """
    with fleet_of(actor_class, (evaluation,), len(shares), config) as fleet:
        for share, outcome in fleet.run(shares):
            if outcome is None:
                raise StableSamError(
                    f"{share.shard_id}: one of these images ends the process that scores it, every time"
                )
            if isinstance(outcome, ShardFailure):
                raise StableSamError(f"{outcome.shard_id}: these images cannot be scored: {outcome.error}")
            yield outcome


def _refine_around_killers(actor: SoleActor, shard: ShardPlan) -> ShardReport | ShardFailure:
    """Find the images that end their actor by trying them one after the other, and refine the shard without them.

    These are images that end the whole actor or its node, for instance because the node is out of memory. Trying them
    one by one costs one more pass for each image; halving the shard would cost more new actors, which is dearer. An
    image is given up after two deaths, because the machine may have caused one. Where the search itself fails, no image
    is given up and the shard is left to the next start of the run.
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
        problem = (
            "this shard ends its actor, although none of its other images does so alone; try a smaller shard_images"
        )
        return ShardFailure(shard_id=shard.shard_id, error=problem)
    return answer
