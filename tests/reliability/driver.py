"""One run of the flow without Prefect, which costs seconds and has no part in what the table becomes.

python -m tests.reliability.driver ANNOTATIONS IMAGES OUTPUT CONFIG

Prints "ready" when everything is imported. An error meant for the user is one line and exit code 2, as in the command.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


def main() -> int:
    """The flow's own body, its tasks called as the plain functions they are."""
    _without_prefect()
    from flows.refine import refine_dataset
    from stable_sam.errors import StableSamError

    annotations, images, output, config = sys.argv[1:]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        refine_dataset(annotations_uri=annotations, images_uri=images, output_uri=output, config=config)
    except StableSamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


class _Nothing(ModuleType):
    """A module whose functions, artifacts and events above all, do nothing and return an id."""

    def __getattr__(self, name: str) -> Callable[..., uuid.UUID]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: uuid.uuid4()


def _without_prefect() -> None:
    def plain(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        return function if function is not None else plain

    deployed = SimpleNamespace(deployment=SimpleNamespace(id=None))
    prefect, log = _Nothing("prefect"), _Nothing("prefect.logging")
    vars(prefect).update(task=plain, flow=plain, runtime=deployed)
    vars(log).update(get_run_logger=logging.getLogger)
    sys.modules |= {"prefect": prefect, "prefect.logging": log}
    sys.modules |= {name: _Nothing(name) for name in ("prefect.artifacts", "prefect.events")}


if __name__ == "__main__":
    sys.exit(main())
