"""Each stage has its own seconds: not those of its neighbours, of other images, nor of waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stable_sam import timing as stage_clock
from stable_sam.config import RefinerConfig
from stable_sam.records import Prompt
from stable_sam.refining.refiner import Refiner
from stable_sam.storage.parallel import ahead
from stable_sam.timing import STAGES, WAIT, StageClock, add_times, carried, keeps_spans, timed, turn


class Moments:
    """Stands for the module `time`: every look at it is as much later as it was told."""

    def __init__(self, *steps: float) -> None:
        self.now, self.steps = 100.0, iter(steps)

    def monotonic(self) -> float:
        self.now += next(self.steps)
        return self.now


def test_stages_add_up_and_one_inside_another_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_clock, "time", Moments(0, 1, 0, 2, 3, 4, 0, 5))
    with StageClock() as clock:
        with timed("decode"):
            pass
        with timed("encode") as outer, timed(WAIT):
            pass
        with timed("decode"):
            pass
    assert clock.times().seconds == {"decode": 6.0, "encode": 6.0}
    assert outer.seconds == 6.0


def test_a_stage_that_raises_counts_and_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with timed("decode"):  # without a clock
        pass
    with StageClock() as first, pytest.raises(ValueError, match="bad"), timed("decode"):
        raise ValueError("bad")
    with StageClock() as second, timed("resize"):
        pass
    assert first.times().seconds.keys() == {"decode"}
    assert second.times().seconds.keys() == {"resize"}
    assert not keeps_spans()


def test_waiting_for_the_model_is_no_stages_time() -> None:
    lock, entered = threading.Lock(), threading.Event()

    def encode() -> float:
        with StageClock(spans=10) as clock, timed("encode"):
            entered.set()
            with turn(lock):
                assert lock.locked()
        assert [span.stage for span in clock.times().spans] == [WAIT, "encode"]
        assert clock.times().spans[1].seconds > 0.2
        return clock.times().seconds["encode"]

    with ThreadPoolExecutor(1) as pool:
        with lock:
            waiting = pool.submit(encode)
            assert entered.wait(10)
            time.sleep(0.3)
        assert waiting.result() < 0.2
    assert not lock.locked()


def test_threads_have_the_clock_only_where_it_is_carried() -> None:
    def fetch(number: int) -> int:
        with timed("fetch"):
            return number

    with ThreadPoolExecutor(2) as pool, StageClock() as clock:
        assert list(pool.map(fetch, range(4))) == [0, 1, 2, 3]
        assert clock.times().seconds == {}
        assert list(pool.map(carried(fetch), range(4))) == [0, 1, 2, 3]
        assert clock.times().seconds.keys() == {"fetch"}
    with StageClock() as clock:
        assert list(ahead(fetch, range(6), 2)) == list(range(6))
    assert clock.times().seconds.keys() == {"fetch"}


def test_a_generator_does_not_count_what_its_reader_does() -> None:
    def masks() -> Iterator[int]:
        for number in range(3):
            with timed("rle"):
                pass
            yield number

    with StageClock(spans=10) as clock:
        for _ in masks():
            time.sleep(0.05)
    assert clock.times().seconds["rle"] < 0.05


def test_spans_are_few_and_tell_what_is_left_out() -> None:
    with StageClock(spans=3, about="/a.jpg") as clock:
        assert keeps_spans()
        for _ in range(50):
            with timed("rle"):  # one mask after the other: one span
                pass
        for number in range(4):
            with timed("fetch", f"/{number}.jpg"):
                pass
    times = clock.times()
    assert [(span.stage, span.about) for span in times.spans] == [
        ("rle", "/a.jpg"),
        ("fetch", "/0.jpg"),
        ("fetch", "/1.jpg"),
    ]
    assert times.left_out == 2
    assert abs(times.spans[0].start - time.time()) < 60
    with StageClock(spans=4) as shard:
        add_times(times)
        add_times(times)
    assert (len(shard.times().spans), shard.times().left_out) == (4, 2 + 2 + 2)
    with StageClock() as sums:
        add_times(times)
    assert sums.times().spans == ()
    assert sums.times().seconds == times.seconds


def test_every_stage_of_an_image_is_measured() -> None:
    refiner = Refiner(RefinerConfig(model="tiny", jitter_count=2, second_pass_dsp_weight=0))
    image = np.zeros((60, 80, 3), np.uint8)
    prompts = [Prompt(prompt_id="1", image_id="a", image_uri="/a", box_xyxy=(4.0, 4.0, 40.0, 30.0))]
    with StageClock() as clock:
        started = time.monotonic()
        with_clock = refiner.refine_image(image, prompts)
        took = time.monotonic() - started
    seconds = clock.times().seconds
    assert set(seconds) == set(STAGES) - {"fetch", "decode", "write", "commit"}
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= took
    with StageClock(spans=100):
        assert refiner.refine_image(image, prompts) == with_clock == refiner.refine_image(image, prompts)
    refiner.config = refiner.config.model_copy(update={"jitter_count": 0, "second_pass": "off"})
    with StageClock() as clock:
        refiner.refine_image(image, prompts)
    assert set(clock.times().seconds) == {"resize", "encode", "decode_prompts", "rle"}
