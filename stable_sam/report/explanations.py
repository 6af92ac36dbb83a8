"""Draw what the decoder attends to for some of the worst prompts, with the model that made their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError, ImageError, PromptError, StorageError
from stable_sam.images.decode import decode_image
from stable_sam.report.pictures import read_file, webp
from stable_sam.table.schema import SHARD_SCHEMA, prompt_from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanations:
    """Pictures of SAM beside Stable-SAM (`stable_sam.explain.drawing`) for some prompts."""

    webp: list[tuple[str, str]] = field(default_factory=list)
    """Name and WebP file in base64 of each picture."""
    of: dict[str, str] = field(default_factory=dict)
    """Name of each prompt's picture, by prompt_id."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reason why a chosen prompt has no picture, by prompt_id."""


def explanations(rows: Sequence[dict[str, Any]], count: int, config: RunConfig) -> Explanations:
    """Explain the first `count` of `rows` that have a mask and were not accepted, with the model of `config`.

    The model is loaded only when there is a prompt to explain. Raises `ConfigError` and `WeightsError` for the model.
    """
    chosen = [row for row in rows if row["status"] == "ok" and row["route"] != "accept"][:count]
    found = Explanations()
    if not chosen:
        return found
    from stable_sam.explain.drawing import draw
    from stable_sam.explain.explanation import explain
    from stable_sam.refining.refiner import Refiner

    refiner = Refiner(config.refiner, config.routing)
    given = _model_name(asdict(refiner.identity))
    for number, row in enumerate(chosen):
        prompt_id, made_by = row["prompt_id"], _model_name(row)
        if made_by != given:
            found.missing[prompt_id] = (
                f"expected the model that made this mask, {made_by}; the report was given {given}"
            )
            continue
        try:
            prompt = prompt_from_row({name: row[name] for name in SHARD_SCHEMA.names})
            name, data = row["image_uri"], read_file(row["image_uri"])
            pixels = decode_image(data, name=name, max_pixels=config.refiner.max_image_pixels)
            drawn = draw(explain(refiner, pixels, prompt, decoded=refiner.decode(data, name=name)))
        except (PromptError, ConfigError, ImageError, StorageError) as error:
            found.missing[prompt_id] = str(error)
            continue
        found.of[prompt_id] = f"x{number}"
        found.webp.append((f"x{number}", webp(drawn)))
    return found


def _model_name(identity: Mapping[str, str]) -> str:
    return f"{identity['model_id']} in {identity['dtype']}, weights {identity['weights_sha256'][:16]}"
