"""The weights in this repository: they load as one model, fit the size promised, and still draw the masks they drew.

After new weights, write the golden masks again: python tests/golden/test_bundled_weights.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage import data

from stable_sam.config import RefinerConfig
from stable_sam.identity import BUNDLED_BASE, BUNDLED_PLUGIN, bundled_path
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask

GOLDEN = Path(__file__).with_name("nano_masks.json")
PROMPTS = (
    Prompt(prompt_id="cat", image_id="chelsea", image_uri="", box_xyxy=(20, 5, 440, 300)),
    Prompt(prompt_id="eye", image_id="chelsea", image_uri="", box_xyxy=(128, 76, 216, 156)),
    Prompt(
        prompt_id="points", image_id="chelsea", image_uri="", points_xy=((230, 150), (99, 200)), point_labels=(1, 1)
    ),
)
SMALL = Prompt(prompt_id="pupil", image_id="chelsea", image_uri="", box_xyxy=(152, 98, 188, 134))
"""Asked in a tile."""


def refined() -> dict[str, dict[str, Any]]:
    """Golden content: second pass, or "tile", and prompt_id -> mask and scores, made by the bundled model."""
    masks = {
        f"{second_pass} {mask.prompt_id}": mask
        for second_pass in ("off", "mirror")
        for mask in _refined(PROMPTS, second_pass=second_pass, tiles="off")
    }
    [small] = _refined([SMALL])
    masks[f"{small.view} {small.prompt_id}"] = small
    return {
        name: {"size": mask.mask_size, "counts": mask.mask_counts, "predicted_iou": mask.predicted_iou}
        for name, mask in masks.items()
    }


def _refined(prompts: Sequence[Prompt], **settings: Any) -> list[RefinedMask]:
    return Refiner(RefinerConfig(device="cpu", **settings)).refine_image(data.chelsea(), prompts)


def test_masks_of_the_bundled_model_have_not_changed() -> None:
    golden, now = json.loads(GOLDEN.read_text()), refined()
    assert now.keys() == golden.keys()
    for prompt_id, was in golden.items():
        before, after = (decode_mask(tuple(m["size"]), m["counts"]) for m in (was, now[prompt_id]))
        # Another processor sums in another order: a few pixels of the border may move.
        assert np.logical_and(before, after).sum() / np.logical_or(before, after).sum() > 0.98
        assert abs(now[prompt_id]["predicted_iou"] - was["predicted_iou"]) < 0.01


def test_the_files_are_small_enough_to_live_in_the_repository() -> None:
    assert Path(bundled_path(BUNDLED_BASE)).stat().st_size < 25_000_000
    assert Path(bundled_path(BUNDLED_PLUGIN)).stat().st_size < 400_000


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(refined(), indent=1) + "\n")
