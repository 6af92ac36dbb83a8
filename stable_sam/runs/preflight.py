"""Checks within seconds, before any work starts, what would make a run fail, and says it in one line."""

from __future__ import annotations

from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, WeightsError
from stable_sam.identity import model_identity, weight_uris
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import check_output, exists


def check_run(request: RunRequest, *, writes: bool = True) -> None:
    """Raise the `StableSamError` that a run would raise for its model, truth, annotations, images or output.

    writes: False leaves the output unchecked, because checking it writes a probe object and removes it again.
    """
    check_weights(request.config.refiner)
    truth_uri = request.config.truth_uri
    if truth_uri is not None and not exists(truth_uri):
        raise AnnotationError(f"{truth_uri}: expected COCO instances as truth, found nothing there")
    next(request.prompt_batches())
    if writes:
        check_output(request.output_uri)


def check_weights(config: RefinerConfig) -> None:
    """Raise `ConfigError` or `WeightsError` when the model is not given whole, or a weights file or package is missing.

    No weights are read or downloaded.
    """
    if config.model == "tiny":
        model_identity(config)
        return
    for uri in weight_uris(config):
        if uri is not None and not exists(uri):
            raise WeightsError(f"{uri}: no such weights file; correct its path or URI")
