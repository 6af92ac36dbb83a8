"""Prepare, infer, finish: together what `refine_image` does, and small and picklable between."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import MOST_PROMPTS_APART, ImageJob, finish_job, infer_job, prepare_job, refine_job
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.steps import InferredImage, PreparedImage

CONFIG = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=3, stability_offset=0.002))
HW = (300, 400)
PROMPTS = (
    Prompt(prompt_id="box", image_id="i", image_uri="/i", box_xyxy=(10.0, 12.0, 260.0, 270.0)),
    Prompt(prompt_id="outside", image_id="i", image_uri="/i", box_xyxy=(500.0, 12.0, 560.0, 70.0)),
    Prompt(prompt_id="clipped", image_id="i", image_uri="/i", box_xyxy=(-10.0, 50.0, 100.0, 466.0)),
    Prompt(prompt_id="point", image_id="i", image_uri="/i", points_xy=((40.0, 30.0),), point_labels=(1,)),
    Prompt(prompt_id="bad", image_id="i", image_uri="/i", box_xyxy=(1.0, 2.0, 3.0, 4.0), error="refused by the reader"),
)


def job(prompts: tuple[Prompt, ...] = PROMPTS, data: bytes | None = None, error: str | None = None) -> ImageJob:
    coarse = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC).save(file, "PNG")
    return ImageJob(
        image_id="i", image_uri="/i", prompts=prompts, data=file.getvalue() if data is None else data, error=error
    )


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(CONFIG.refiner, CONFIG.routing)


def by_stages(refiner: Refiner, job: ImageJob) -> list[RefinedMask]:
    """Each stage gets what came out of a pickle."""
    prepared = pickle.loads(pickle.dumps(prepare_job(CONFIG.refiner, refiner.input_side, job)))
    assert isinstance(prepared, PreparedImage)
    inferred = pickle.loads(pickle.dumps(infer_job(refiner, prepared)))
    assert isinstance(inferred, InferredImage)
    return finish_job(CONFIG, inferred)


def test_the_three_stages_are_refine_image(refiner: Refiner) -> None:
    masks = by_stages(refiner, job())
    assert masks == refine_job(refiner, CONFIG.refiner, job())
    assert [mask.status for mask in masks] == ["ok", "failed", "ok", "ok", "failed"]
    assert all(mask.prompt_stability for mask in masks if mask.status == "ok")
    assert masks[4].error == "refused by the reader"


def test_nothing_of_the_original_size_travels(refiner: Refiner) -> None:
    prepared = prepare_job(CONFIG.refiner, refiner.input_side, job())
    assert isinstance(prepared, PreparedImage)
    assert prepared.pixels.shape == (48, 64, 3)
    inferred = infer_job(refiner, prepared)
    assert isinstance(inferred, InferredImage)
    assert [some.logits.shape[1:] for some in inferred.inferred] == [(16, 16), (16, 16)]


def test_an_image_without_a_usable_prompt_needs_no_model() -> None:
    masks = prepare_job(CONFIG.refiner, 64, job((PROMPTS[1], PROMPTS[4])))
    assert isinstance(masks, list)
    assert ["outside" in str(mask.error) for mask in masks] == [True, False]
    assert masks[1].error == "refused by the reader"


def test_what_is_wrong_with_a_file_is_said_by_the_first_stage() -> None:
    for broken, reason in ((job(data=b"no image"), "not an image"), (job(error="/i: not found"), "not found")):
        masks = prepare_job(CONFIG.refiner, 64, broken)
        assert isinstance(masks, list)
        assert len(masks) == len(PROMPTS)
        assert reason in str(masks[0].error)


def test_logits_of_many_prompts_stay_where_the_model_is(refiner: Refiner) -> None:
    many = tuple(
        Prompt(prompt_id=str(n), image_id="i", image_uri="/i", box_xyxy=(5.0, 5.0, 50.0 + n, 60.0))
        for n in range(MOST_PROMPTS_APART + 1)
    )
    prepared = prepare_job(CONFIG.refiner, refiner.input_side, job(many))
    assert isinstance(prepared, PreparedImage)
    masks = infer_job(refiner, prepared)
    assert isinstance(masks, list)
    assert masks == refine_job(refiner, CONFIG.refiner, job(many))


def test_an_actor_that_only_hands_stages_on_needs_no_torch() -> None:
    imports = "import sys, tasks.actors.shard_actor, tasks.actors.offload"
    code = f"{imports}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
