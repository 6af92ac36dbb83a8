"""Compiled passes and what stands around them: the same masks, in few shapes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.images.frames import Frame
from stable_sam.modeling.bases.nano import build_nano
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.modeling.fast import compiled
from stable_sam.modeling.fast.compiled import CompiledPasses, bucket
from stable_sam.modeling.fast.prompt_tokens import prompt_tokens
from stable_sam.modeling.load import LoadedModel
from stable_sam.refining.predict import Prediction, PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.stability import prompt_stability
from stable_sam.refining.stability_on_device import prompt_stabilities
from tests.unit.modeling.test_fast_paths import BOXES, PROMPTS, SIZES, some_logits

BOX = {"boxes_xyxy": np.array([[10.0, 10.0, 40.0, 50.0], [0.0, 5.0, 20.0, 44.0], [30.0, 8.0, 60.0, 40.0]])}
POINT = {"points_xy": BOX["boxes_xyxy"][:, None, :2] + 8.0, "point_labels": np.array([[1], [1], [0]])}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def assert_equal(ours: Prediction, expected: Prediction) -> None:
    np.testing.assert_allclose(ours.logits, expected.logits, atol=1e-4 * np.abs(expected.logits).max())
    np.testing.assert_allclose(ours.iou, expected.iou, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.dsp_weight, expected.dsp_weight, rtol=1e-4)
    np.testing.assert_array_equal(ours.token, expected.token)


def traced(**settings: object) -> tuple[LoadedModel, LoadedModel]:
    """A model, and the same through everything but the compiler's own code."""
    eager = Refiner(RefinerConfig(model="tiny", device="cpu", **settings)).model
    return eager, replace(eager, compiled=CompiledPasses(graphs=False, backend="eager"))


def compile_lightly() -> None:
    """Half the time for the compiler: no vector code, no processes beside it. torch's settings are a thread's own."""
    torch._inductor.config.cpp.simdlen = 1
    torch._inductor.config.compile_threads = 1


def test_compiled_by_torch_is_eager(fresh_compiler):
    """Within 1e-4 of the logits' scale, with the real compiler; three boxes are four."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none here")
    eager = Refiner(RefinerConfig(model="tiny", device="cpu", plugin=False)).model
    ours = Refiner(RefinerConfig(model="tiny", device="cpu", plugin=False, compile=True)).model
    ours.compiled._run(compile_lightly)
    views = [embed_image(model, pixels()) for model in (ours, eager)]
    torch.testing.assert_close(views[0].features.embedding, views[1].features.embedding, rtol=1e-4, atol=1e-5)
    prompts = PromptArrays(**BOX)
    assert_equal(predict(ours, views[0], prompts, 8), predict(eager, views[1], prompts, 8))


def test_few_programs_make_the_same_masks(fresh_compiler):
    """One for each bucket of boxes and of points, each in one piece; torch by itself keeps 8.

    Rows that fill a bucket change nothing, and no answer is written over by the next.
    """
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager, ours = traced()
    view = embed_image(ours, pixels())
    for given, counts in ((BOX, (1, 3, 3)), (POINT, (2,))):
        arrays = [PromptArrays(**given).rows(0, count) for count in counts]
        answers = [predict(ours, view, one, 4) for one in arrays]
        for one, answer in zip(arrays, answers, strict=True):
            assert len(answer.logits) == len(answer.dsp_weight) == len(one)
            assert_equal(answer, predict(eager, view, one, 4))
    assert counters["stats"]["unique_graphs"] == 1 + 3  # the encoder; 1 and 4 boxes, 2 points
    assert not counters["graph_break"]
    assert ours.compiled._run(lambda: torch._dynamo.config.recompile_limit) == compiled.SHAPES


def test_prompts_of_other_kinds_are_not_compiled(monkeypatch):
    """Two points, and a box with a point."""
    eager, ours = traced()
    monkeypatch.setattr(compiled.CompiledPasses, "decode", lambda *_, **__: pytest.fail("compiled"))
    view = embed_image(eager, pixels())
    two = {"points_xy": np.repeat(POINT["points_xy"], 2, axis=1), "point_labels": np.ones((3, 2), dtype=np.int64)}
    for prompts in (two, BOX | POINT):
        predict(ours, view, PromptArrays(**prompts), 4)


def test_the_encoder_keeps_the_callers_arithmetic(fresh_compiler):
    eager, ours = traced(dtype="bfloat16")
    half, expected = (embed_image(model, pixels()).features.embedding for model in (ours, eager))
    assert torch.equal(half, expected)
    full = embed_image(replace(eager, identity=replace(eager.identity, dtype="float32")), pixels()).features.embedding
    assert not torch.equal(half, full)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (17, 32), (64, 64)])
def test_buckets_are_powers_of_two(count, expected):
    assert bucket(count) == expected


def test_compiling_is_no_other_run():
    config = RunConfig()
    compiled = config.model_copy(update={"refiner": config.refiner.model_copy(update={"compile": True})})
    assert compiled.content_hash() == config.content_hash()


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_prompt_tokens_are_sams(kind):
    """Bit for bit; a label that SAM does not know marks a point without a kind."""
    for sam in (build_tiny(), build_nano(64)):
        given = {"boxes": None, "points": None} | PROMPTS[kind]
        if given["points"] is not None:
            xy, labels = given["points"]
            given["points"] = (torch.cat((xy, xy)), torch.cat((labels, -labels * 3)))
            given["boxes"] = None if given["boxes"] is None else torch.cat((BOXES, BOXES))
        with torch.no_grad():
            expected, _ = sam.prompt_encoder(**given, masks=None)
            assert torch.equal(prompt_tokens(sam.prompt_encoder, given["boxes"], given["points"]), expected)


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("at_a_time", [1, 2**26])
def test_prompt_stability_where_the_logits_are_is_that_of_the_host(monkeypatch, hw, at_a_time):
    """Within 1e-6; the last prompt finds nothing."""
    monkeypatch.setattr("stable_sam.refining.stability_on_device.PIXELS_AT_A_TIME", at_a_time)
    frame = Frame(hw, 64)
    groups = [[some_logits(seed, kind) for seed in (7, 8, 9)] for kind in ("bump", "noise", "nothing")]
    logits = np.array(groups)
    expected = [prompt_stability(frame.masks_on_input(group)) for group in logits]
    np.testing.assert_allclose(prompt_stabilities(torch.from_numpy(logits), frame), expected, atol=1e-6)
