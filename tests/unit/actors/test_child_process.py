"""A model in a process of its own: whatever an image does to it, the neighbours have their masks."""

from __future__ import annotations

import io
import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import StableSamError, StorageError, WeightsError
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import ImageJob
from stable_sam.timing import StageClock
from tasks.actors.child import ChildSettings
from tasks.actors.child_process import DeviceLostError, Limits, RefinerProcess
from tests.unit import planted_refiner

buffer = io.BytesIO()
Image.new("RGB", (8, 6)).save(buffer, "PNG")
PIXELS = buffer.getvalue()


def job(image_id: str, *, prompts: int = 1, marker: Path | None = None, error: str | None = None) -> ImageJob:
    attributes = None if marker is None else str(marker)
    made = tuple(
        Prompt(prompt_id=f"{image_id}:{n}", image_id=image_id, image_uri=f"/{image_id}", attributes=attributes)
        for n in range(prompts)
    )
    return ImageJob(image_id=image_id, image_uri=f"/{image_id}", prompts=made, data=PIXELS, error=error)


def process(
    *, at_once: int = 2, seconds: float = 60, memory_mb: int = 500, checkpoint_uri: str | None = None
) -> RefinerProcess:
    settings = ChildSettings(
        load=pickle.dumps(planted_refiner.load),
        config=RunConfig(refiner=RefinerConfig(checkpoint_uri=checkpoint_uri)),
        threads=1,
        images_at_once=at_once,
    )
    return RefinerProcess(settings, Limits(seconds=seconds, memory_mb=memory_mb))


@pytest.fixture(scope="module")
def shared() -> Iterator[RefinerProcess]:
    """One for all tests that leave it as they found it, or do it harm."""
    child = process()
    assert child.start() == planted_refiner.MODEL
    yield child
    child.stop()


def refined(child: RefinerProcess, *jobs: ImageJob) -> list[RefinedMask]:
    """One mask for each prompt, in order."""
    masks = [mask for of_image in child.refine(iter(jobs)) for mask in of_image]
    assert [mask.prompt_id for mask in masks] == [prompt.prompt_id for job in jobs for prompt in job.prompts]
    return masks


def test_masks_come_in_order_from_another_process(shared: RefinerProcess) -> None:
    masks = refined(shared, job("slow"), *(job(str(number)) for number in range(20)))
    assert {mask.status for mask in masks} == {"ok"}
    assert os.getpid() not in {mask.area for mask in masks}
    assert len({mask.area for mask in masks}) == 1


@pytest.mark.parametrize(("harm", "reason"), [("abort", "SIGABRT"), ("exit", "exit code 3")])
def test_an_image_that_ends_the_process_fails_alone(shared: RefinerProcess, harm: str, reason: str) -> None:
    jobs = [job("a"), job("b"), job(f"{harm}-x", prompts=3), job("c"), job("d")]
    masks = refined(shared, *jobs)
    assert [mask.status for mask in masks] == ["ok", "ok", "failed", "failed", "failed", "ok", "ok"]
    expected = f"/{harm}-x: refining this image ended the process ({reason}), 2 times"
    assert {mask.error for mask in masks if mask.status == "failed"} == {expected}


def test_what_images_took_comes_back_but_of_those_that_end_the_process(shared: RefinerProcess) -> None:
    with StageClock(spans=10) as clock:
        refined(shared, job("a"), job("exit"), job("b"))
    assert clock.times().seconds.keys() == {"decode"}
    assert clock.times().seconds["decode"] > 0
    assert clock.times().spans == (), "nobody asked the process for them"


def test_spans_come_back_where_they_are_asked_for() -> None:
    settings = replace(process()._settings, keep_spans=True)
    child = RefinerProcess(settings, Limits(seconds=60, memory_mb=500))
    with StageClock(spans=10) as clock:
        refined(child, job("a"), job("b"))
    child.stop()
    assert sorted((span.stage, span.about) for span in clock.times().spans) == [("decode", "/a"), ("decode", "/b")]


def test_an_image_that_hangs_in_c_fails_alone() -> None:
    child = process(seconds=2)
    masks = refined(child, job("a"), job("hang"), job("b"))
    child.stop()
    assert [mask.status for mask in masks] == ["ok", "failed", "ok"]
    assert "took longer than its time limit, 2 s (image_timeout_s)" in str(masks[1].error)


def test_an_image_that_eats_memory_fails_alone() -> None:
    child = process(memory_mb=100)
    masks = refined(child, job("a"), job("eat"), job("b"))
    child.stop()
    assert [mask.status for mask in masks] == ["ok", "failed", "ok"]
    assert "took more than its memory limit, 100 MB (image_memory_mb)" in str(masks[1].error)


def test_more_prompts_have_more_time() -> None:
    limits = Limits(seconds=2, memory_mb=1)
    whole, tiles = RefinerConfig(tiles="off"), RefinerConfig(max_tiles=32)
    assert [limits.seconds_for(job("a", prompts=count), whole) for count in (1, 100, 1000)] == [2, 2, 20]
    assert [limits.seconds_for(job("a", prompts=count), tiles) for count in (1, 4, 8, 100, 2000)] == [2, 2, 4, 16, 40]


def test_a_death_that_was_not_the_images_costs_no_row(shared: RefinerProcess, tmp_path: Path) -> None:
    masks = refined(shared, job("a"), job("abort", marker=tmp_path / "aborted"), job("b"))
    assert {mask.status for mask in masks} == {"ok"}


@pytest.mark.parametrize(("harm", "number"), [("kill", "SIGKILL"), ("term", "SIGTERM")])
def test_a_kill_from_outside_condemns_later_than_an_abort(harm: str, number: str, shared: RefinerProcess) -> None:
    (mask,) = refined(shared, job(harm))
    assert str(mask.error).endswith(f"({number}), 3 times")


def test_the_process_may_be_killed_while_nothing_happens(shared: RefinerProcess) -> None:
    (mask,) = refined(shared, job("a"))
    assert mask.area is not None
    os.kill(mask.area, signal.SIGKILL)
    (again,) = refined(shared, job("a"))
    assert again.status == "ok"
    assert again.area != mask.area


def test_jobs_with_an_error_are_failed_rows_and_never_sent(shared: RefinerProcess) -> None:
    masks = refined(shared, job("a"), job("abort", error="known to be bad"), job("b"))
    assert [mask.error for mask in masks] == [None, "known to be bad", None]


def test_an_error_of_the_store_leaves_a_process_that_still_answers(shared: RefinerProcess) -> None:
    def jobs() -> Iterator[ImageJob]:
        yield job("slow")
        raise StorageError("s3://x: cannot read")

    with pytest.raises(StorageError, match="cannot read"):
        list(shared.refine(jobs()))
    assert [mask.status for mask in refined(shared, job("b", prompts=2))] == ["ok", "ok"]


def test_a_lost_gpu_is_no_images_fault() -> None:
    child = process()
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        refined(child, job("a"), job("gpu"), job("b"))
    child.stop()


def test_what_is_wrong_with_the_model_is_said() -> None:
    with pytest.raises(WeightsError, match="no such weights"):
        process(checkpoint_uri="missing.pth").start()
    with pytest.raises(StableSamError, match=r"ended while it started: .*exit code 4"):
        process(checkpoint_uri="die").start()


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        (mask,) = refined(process(), job("a"))
        (tmp_path / "child").write_text(str(mask.area))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < end, "the child outlived its parent"
        time.sleep(0.05)
