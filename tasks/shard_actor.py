"""The actor that refines shards: a plain class, which `tasks.actors` runs in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stable_sam.data.manifest import RunManifest, ShardPlan, read_manifest, read_shard
from stable_sam.errors import ConfigError, CredentialsError, StableSamError, WeightsError, one_line
from stable_sam.records import ShardReport

if TYPE_CHECKING:
    from stable_sam.refiner import Refiner


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailure:
    """A shard that could not be finished; the same run started again takes it up."""

    shard_id: str
    error: str
    """One line."""
    actor_is_lost: bool = False
    """True when the actor lives but fails for good, as after a lost GPU; it is replaced."""


class ShardActor:
    """Refines shards of one run in a process of its own; loads the model once.

    A plain class: `tasks.actors.run_shards` makes it an actor. Its methods return errors instead of raising them, so an
    exception at the caller means that the process is gone, or that Ray itself failed.
    """

    def __init__(self, manifest_uri: str, device: str, threads: int) -> None:
        self._manifest_uri = manifest_uri
        self._threads = threads
        self._device = device

    def load(self) -> StableSamError | bool:
        """Read the manifest and the weights; returns True, or what is wrong with them for every shard alike."""
        try:
            return self.refiner is not None
        except StableSamError as error:
            return error
        except Exception as error:
            return StableSamError(f"the model cannot be loaded: {reason(error)}")

    def work(
        self, shard: ShardPlan, poisoned: Mapping[str, str] | None = None
    ) -> ShardReport | ShardFailure | StableSamError:
        """Refine and commit one shard; the images in `poisoned` (image id -> reason) become failed rows untouched."""
        from stable_sam.shard_job import refine_shard

        try:
            return refine_shard(self.refiner, self.manifest, shard, poisoned or {})
        except (ConfigError, CredentialsError, WeightsError) as error:
            return error  # every other shard would meet it too
        except StableSamError as error:
            return ShardFailure(shard_id=shard.shard_id, error=reason(error))
        except Exception as error:
            # `refine_shard` makes rows of whatever is wrong with an image; what passes it is a lost GPU or as bad.
            return ShardFailure(shard_id=shard.shard_id, error=reason(error), actor_is_lost=True)

    def probe(self, shard: ShardPlan, image_id: str) -> bool | ShardFailure:
        """Do the work of one image and write nothing; returns True when the process survives it, whatever came out.

        A shard that cannot be read says nothing of the image and is a `ShardFailure`.
        """
        from stable_sam.data.images import decode_image
        from stable_sam.data.storage import read_bytes

        try:
            prompts = [prompt for prompt in read_shard(shard.uri) if prompt.image_id == image_id]
        except StableSamError as error:
            return ShardFailure(shard_id=shard.shard_id, error=reason(error))
        with contextlib.suppress(Exception):
            name = prompts[0].image_uri
            max_pixels = self.manifest.config.refiner.max_image_pixels
            image = decode_image(read_bytes(name), name=name, max_pixels=max_pixels)
            self.refiner.refine_image(image, prompts)
        return True

    @cached_property
    def manifest(self) -> RunManifest:
        """The run this actor works for."""
        return read_manifest(self._manifest_uri)

    @cached_property
    def refiner(self) -> Refiner:
        """The loaded model; raises `WeightsError` or `ConfigError`."""
        import torch

        from stable_sam.refiner import Refiner

        torch.set_num_threads(self._threads)
        config = self.manifest.config
        return Refiner(config.refiner.model_copy(update={"device": self._device}), config.routing)


def reason(error: BaseException) -> str:
    """One line of any error; its type too when it was not raised on purpose."""
    return str(error) if isinstance(error, StableSamError) else f"{type(error).__name__}: {one_line(error)[:300]}"
