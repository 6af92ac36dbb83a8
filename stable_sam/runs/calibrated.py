"""Finds the calibration that a run routes by."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

from stable_sam.config import RefinerConfig, RoutingConfig, RunConfig
from stable_sam.config.calibration import Calibration
from stable_sam.errors import ConfigError
from stable_sam.identity import ModelIdentity
from stable_sam.storage.files import read_bytes

BUNDLED = "bundled"
BUNDLED_FILE = "nano_calibration.json"


def calibrated_run(config: RunConfig, model: ModelIdentity) -> RunConfig:
    """Fill the content of its calibration file into a run's config; raises as `calibrated_routing` does."""
    return config.model_copy(update={"routing": calibrated_routing(config.routing, config.refiner, model)})


def calibrated_routing(routing: RoutingConfig, refiner: RefinerConfig, model: ModelIdentity) -> RoutingConfig:
    """Fill the content of its calibration file into `routing`, if it names one.

    The bundled calibration is ignored when it does not hold for this model. Raises `ConfigError` when any other does
    not hold for the model or is no calibration, and `StorageError` when it cannot be read.
    """
    uri = routing.calibration_uri
    if uri is None or routing.calibration is not None:
        return routing
    if uri == BUNDLED:
        file = files("stable_sam").joinpath("weights", BUNDLED_FILE)
        bundled = Calibration.from_json(file.read_bytes(), str(file))
        fits = misfit(bundled, refiner, model) is None
        return routing.model_copy(update={"calibration": bundled}) if fits else routing
    calibration = Calibration.from_json(read_bytes(uri), uri)
    if problem := misfit(calibration, refiner, model):
        raise ConfigError(f"routing.calibration_uri: {uri}: {problem}; run `stable-sam calibrate` for this model")
    return routing.model_copy(update={"calibration": calibration})


def misfit(calibration: Calibration, refiner: RefinerConfig, model: ModelIdentity) -> str | None:
    """Say why a calibration does not hold for the scores of this model; None when it does."""
    source = model.score_source(refiner)
    if calibration.tiles is None:  # it then holds for masks made in the whole image, which runs with tiles make as well
        source = replace(source, tiles=None)
    if (other := calibration.source.differs(source)) is None:
        return None
    name, theirs, ours = other
    return f"calibrated for {name} {theirs}, the run has {ours}"
