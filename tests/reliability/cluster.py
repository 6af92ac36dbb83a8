"""A Ray for many drivers: prints its address and lives until its input is closed."""

from __future__ import annotations

import logging
import sys

import ray


def main() -> None:
    """On loopback, with room for the actors of three drivers."""
    ray.init(
        "local",  # whatever else runs on this machine
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    sys.stdout.write(ray.get_runtime_context().gcs_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
