"""Identifies the model of a config: reads its weights and hashes them for every row. Never imports torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from stable_sam.arithmetic import fixed_dtype
from stable_sam.bases import BASES
from stable_sam.bases.cache import PUBLISHED, cached_plugin, needed_file
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.scores import ScoreSource
from stable_sam.storage.files import read_bytes

BUNDLED_BASE = "nano.safetensors"
BUNDLED_PLUGIN = "nano_plugin.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What tells two models apart: two models with equal identities give the same rows."""

    model_id: str
    """Name of the base model, followed by `+plugin` with the Stable-SAM plugin or by `+hq` with HQ-SAM."""
    weights_sha256: str
    """SHA-256 of the base's file, continued over the file of the plugin or of HQ-SAM when one of them is used."""
    dtype: str
    """Arithmetic of the image encoder: `float32` or `bfloat16`."""

    def score_source(self, config: RefinerConfig) -> ScoreSource:
        """Return what the scores of this model's masks depend on when it is prompted as `config` says."""
        return ScoreSource(
            weights_sha256=self.weights_sha256,
            jitter_count=config.jitter_count,
            jitter_scale=config.jitter_scale,
            dtype=self.dtype,
            stability_offset=config.stability_offset,
            # Without a plugin there is no alpha, and no prompt takes the second pass.
            second_pass_from=config.second_pass_from if self.model_id.endswith("+plugin") else None,
            tiles=config.tile_rule,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The weight files of a model, read whole. The random `tiny` has no files: its name stands for their bytes."""

    base_name: str
    base: bytes
    plugin_name: str | None
    plugin: bytes | None
    hq_name: str | None = None
    hq: bytes | None = None

    @property
    def base_sha256(self) -> str:
        """SHA-256 of the base alone, which a plugin records because it fits no other base."""
        return hashlib.sha256(self.base).hexdigest()


def model_identity(config: RefinerConfig) -> ModelIdentity:
    """Identify the model that `config` names by reading its weights.

    Raises `ConfigError`, `WeightsError` and `StorageError`.
    """
    return identify(config, read_weights(config))


def identify(config: RefinerConfig, weights: WeightFiles) -> ModelIdentity:
    """Identify the model that `config` names from weights that were already read."""
    digest = hashlib.sha256(weights.base)
    model_id: str = config.model
    if weights.hq is not None:
        digest.update(weights.hq)
        model_id += "+hq"
    elif weights.plugin is not None:
        digest.update(weights.plugin)
        model_id += "+plugin"
    return ModelIdentity(model_id=model_id, weights_sha256=digest.hexdigest(), dtype=fixed_dtype(config).dtype)


def read_weights(config: RefinerConfig) -> WeightFiles:
    """Read all weight files of the model that `config` names.

    Raises `ConfigError`, `WeightsError` and `StorageError`.
    """
    if config.model == "tiny":
        return _tiny(config)
    base_uri, plugin_uri, hq_uri = weight_uris(config)
    return WeightFiles(
        base_name=base_uri,
        base=read_bytes(base_uri),
        plugin_name=plugin_uri,
        plugin=None if plugin_uri is None else read_bytes(plugin_uri),
        hq_name=hq_uri,
        hq=None if hq_uri is None else read_bytes(hq_uri),
    )


def bundled_path(name: str) -> str:
    """Return the local path of a weights file that comes with this package; raises `WeightsError` if it is missing."""
    path = files("stable_sam").joinpath("weights", name)
    if not path.is_file():
        raise WeightsError(f"{path}: expected the weights that come with stable-sam, found no file; install it again")
    return str(path)


def weight_uris(config: RefinerConfig) -> tuple[str, str | None, str | None]:
    """Return where the weights of the base, of the plugin and of HQ-SAM are, None for none. `tiny` has no base file.

    Raises `ConfigError` with the command that downloads a published file, or installs a package, that is not on this
    machine, and `WeightsError`.
    """
    BASES[config.model].check_extra()  # said here, before large files are read
    base = config.checkpoint_uri or _found_base(config.model)
    if not config.plugin:
        return base, None, _hq_uri(config)
    if config.plugin_uri is None and config.checkpoint_uri is None:
        return base, _found_plugin(config.model), _hq_uri(config)
    # A plugin fits one base only: a base of the user's own needs its own plugin or has none.
    return base, config.plugin_uri, _hq_uri(config)


def _found_base(model: str) -> str:
    return bundled_path(BUNDLED_BASE) if model == "nano" else str(needed_file(BASES[model]))


def _found_plugin(model: str) -> str | None:
    if model == "nano":
        return bundled_path(BUNDLED_PLUGIN)
    path = cached_plugin(BASES[model])
    return None if path is None else str(path)


def _hq_uri(config: RefinerConfig) -> str | None:
    return str(needed_file(BASES[config.model], hq=True)) if config.hq_uri == PUBLISHED else config.hq_uri


def _tiny(config: RefinerConfig) -> WeightFiles:
    if config.checkpoint_uri is not None or config.plugin_uri is not None:
        raise ConfigError("model: tiny is random and takes no checkpoint_uri or plugin_uri")
    plugin = b"plugin" if config.plugin else None
    hq_uri = _hq_uri(config)
    return WeightFiles(
        base_name="tiny",
        base=b"tiny",
        plugin_name="tiny plugin" if plugin else None,
        plugin=plugin,
        hq_name=hq_uri,
        hq=None if hq_uri is None else read_bytes(hq_uri),
    )
