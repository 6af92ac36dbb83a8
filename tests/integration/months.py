"""A table that is some runs old, and what is asked of it."""

from __future__ import annotations

from dataclasses import replace

from deltalake import DeltaTable

from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.publish import publish
from stable_sam.storage.files import delta_options
from tests.integration.masks_dataset import Dataset

EVERY_ROW = "SELECT * FROM history ORDER BY prompt_id, revision"
CURRENT = "SELECT * FROM masks ORDER BY prompt_id"


def moved(dataset: Dataset, change: int, count: int = 12) -> RunManifest:
    """A night with other boxes for the first four prompts, and with only the first `count` of the twelve."""
    prompts = dataset.prompts(count)
    return dataset.refined([replace(prompt, box_xyxy=(change, 1, 4, 3)) for prompt in prompts[:4]] + prompts[4:])


def months(dataset: Dataset) -> None:
    """Four runs: all, four moved, one withdrawn, which then comes back while another goes."""
    publish(dataset.refined())
    publish(moved(dataset, 1))
    publish(moved(dataset, 1, 11))
    publish(dataset.refined([prompt for prompt in dataset.prompts() if prompt.prompt_id != "p02"]))


def delta(dataset: Dataset) -> DeltaTable:
    return DeltaTable(dataset.output, storage_options=delta_options(dataset.output))
