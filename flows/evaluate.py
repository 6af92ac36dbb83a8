"""The evaluation as a Prefect flow for large sets: Ray actors share the images, and the figures stay the same."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.prefect_setup import log_user_errors_in_one_line
from stable_sam.config import RayConfig
from stable_sam.evaluation.evaluate import Evaluation
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.markdown import markdown
from stable_sam.evaluation.outputs import EvaluationOutputs
from stable_sam.storage.uris import absolute_uri
from tasks.evaluate import evaluate


@flow(name="evaluate-dataset")
def evaluate_dataset(
    data: list[str],
    outputs: dict[str, str | None],
    settings: dict[str, Any] | None = None,
    ray: dict[str, Any] | None = None,
) -> Evaluation:
    """Evaluate the sets in the folders `data` and write the files that `outputs` names.

    data: folders that every actor can read. outputs, settings, ray: the fields of `EvaluationOutputs`,
    `EvaluationConfig` and `RayConfig` as mappings. Raises `StableSamError`; an image that cannot be scored ends the
    evaluation, unlike a run of `refine-dataset`.
    """
    log_user_errors_in_one_line()
    files = EvaluationOutputs.from_dict(outputs)
    files.check()
    evaluation = evaluate(
        [absolute_uri(folder) for folder in data],
        outputs=files,
        settings=EvaluationConfig.from_dict(settings or {}),
        ray=RayConfig.from_dict(ray or {}),
    )
    create_markdown_artifact(markdown(evaluation), key="evaluation")
    return evaluation
