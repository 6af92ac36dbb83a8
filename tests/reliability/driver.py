"""One run of the flow without Prefect's engine, which costs seconds and has no part in what the table becomes.

python -m tests.reliability.driver ANNOTATIONS IMAGES OUTPUT CONFIG

Prints "ready" when everything is imported. An error meant for the user is one line and exit code 2, as in the command.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable
from typing import Any


def main() -> int:
    """The flow's own body, its tasks called as the plain functions they are."""
    _without_engine()
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


def _without_engine() -> None:
    import prefect
    import prefect.artifacts
    import prefect.logging

    def plain(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        return function if function is not None else plain

    for name in ("task", "flow"):
        setattr(prefect, name, plain)
    for name in dir(prefect.artifacts):
        if name.startswith(("create_", "update_")):
            setattr(prefect.artifacts, name, lambda **_: uuid.uuid4())
    prefect.logging.get_run_logger = logging.getLogger  # type: ignore[assignment]  # a logger is all that is asked for


if __name__ == "__main__":
    sys.exit(main())
