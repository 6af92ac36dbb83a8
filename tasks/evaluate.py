"""The Prefect task of an evaluation: actors score all images, and the figures and records are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from stable_sam.config import RayConfig
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.outputs import EvaluationOutputs
from stable_sam.wording import counted
from tasks.actors.evaluation_actor import ScoredShare, split_sets
from tasks.actors.run import score_shares

if TYPE_CHECKING:
    from stable_sam.evaluation.evaluate import Evaluation


@task(task_run_name="evaluate")
def evaluate(data: list[str], outputs: EvaluationOutputs, settings: EvaluationConfig, ray: RayConfig) -> Evaluation:
    """Evaluate the images in the folders `data` on Ray actors, and write `outputs`.

    The figures are those of an evaluation in one process. Raises `StableSamError` when an image cannot be scored.
    """
    from prefect.logging import get_run_logger

    from stable_sam.evaluation.evaluate import evaluation_of, read_sets

    logger = get_run_logger()
    sets = read_sets([Path(folder) for folder in data], settings)
    shares = list(split_sets(sets))
    scored: list[ScoredShare] = []
    for share in score_shares(settings, shares, ray):
        scored.append(share)
        logger.info("%d of %s of images scored", len(scored), counted(len(shares), "share"))
    scored.sort(key=lambda share: share.number)
    tables = [table for share in scored for table in share.tables]
    evaluation, records = evaluation_of(tables, scored[0].facts, sets, settings)
    outputs.write(evaluation, records)
    return evaluation
