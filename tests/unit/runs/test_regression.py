"""A night beside the nights before it, in a real table: what is told, and what is chance."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_sam.config import RegressionConfig, RunConfig
from stable_sam.errors import InputError, NotFoundError
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs.commits import write_tombstones
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.regression import check_regressions, compare_nights
from stable_sam.runs.request import RunRequest

CONFIG = RegressionConfig(min_nights=2, min_prompts=10)


@dataclass
class Scores:
    """A refiner whose masks have these scores; the first prompts are for review, the next fail."""

    identity = ModelIdentity(model_id="scores", weights_sha256="ab", dtype="float32")
    review: int = 0
    failed: int = 0
    prompt_stability: float | None = 0.9
    predicted_iou: float = 0.8

    def refine_image(self, image: np.ndarray, prompts: list[Prompt]) -> list[RefinedMask]:
        return [self._mask(number, prompt) for number, prompt in enumerate(prompts)]

    def _mask(self, number: int, prompt: Prompt) -> RefinedMask:
        if self.review <= number < self.review + self.failed:
            return RefinedMask(prompt_id=prompt.prompt_id, status="failed", error="spoilt", route="review")
        return RefinedMask(
            prompt_id=prompt.prompt_id, status="ok", mask_size=(5, 6), mask_counts="01", area=1,
            prompt_stability=self.prompt_stability, predicted_iou=self.predicted_iou,
            route="review" if number < self.review else "accept",
        )  # fmt: skip


@dataclass
class Nights:
    """A table of one picture that is labelled anew every night."""

    root: Path
    runs: list[str] = field(default_factory=list)

    @property
    def table(self) -> str:
        return str(self.root / "table")

    def night(self, scores: Scores, prompts: int = 10) -> str:
        """Refine so many changed prompts; what an earlier night had more is withdrawn. Returns the run's id."""
        moved = len(self.runs) / 10
        manifest = plan_run(
            [
                Prompt(
                    prompt_id=f"p{number:02}", image_id="0", image_uri=str(self.root / "images/0.png"),
                    box_xyxy=(0, 0, 4 + moved, 4),
                )
                for number in range(prompts)
            ],
            RunRequest(
                annotations_uri=str(self.root / "weak.json"), images_uri=str(self.root / "images"),
                output_uri=self.table, config=RunConfig(),
            ),
            scores.identity,
        )  # fmt: skip
        assert manifest is not None
        for shard in manifest.shards:
            refine_shard(scores, manifest, shard)
        for shard in manifest.tombstones:
            write_tombstones(manifest, shard)
        publish(manifest)
        self.runs.append(manifest.run_id)
        return manifest.run_id


@pytest.fixture(scope="module")
def usual_nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    root = tmp_path_factory.mktemp("nights")
    (root / "images").mkdir()
    Image.new("RGB", (6, 5)).save(root / "images/0.png")
    nights = Nights(root)
    for review in (2, 1, 2):
        nights.night(Scores(review=review))
    return nights


@pytest.fixture
def nights(usual_nights: Nights, tmp_path: Path) -> Nights:
    """Three usual nights, in a table of the test's own."""
    shutil.copytree(usual_nights.root, tmp_path, dirs_exist_ok=True)
    return Nights(tmp_path, list(usual_nights.runs))


def test_a_night_is_found_behind_any_number_of_later_commits(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stable_sam.runs.regression._COMMITS", 1)
    assert compare_nights(nights.table, nights.runs[0], CONFIG).note.startswith("0 earlier nights")


@pytest.mark.parametrize(
    ("tonight", "worse"),
    [
        (Scores(review=3), []),
        (Scores(review=4), ["share in review 0.400, usually 0.200 (median of 3 nights; a change of 0.1 is usual)"]),
        (Scores(review=2, failed=1), ["share failed 0.100, usually 0.000 (median of 3 nights; a change of 0.02 is us"]),
        (Scores(prompt_stability=0.84), ["median prompt_stability 0.840, usually 0.900"]),
        (
            Scores(predicted_iou=0.7, prompt_stability=0.8),
            ["median prompt_stability 0.800", "median predicted_iou 0.700"],
        ),
        (Scores(review=0, prompt_stability=1.0, predicted_iou=1.0), []),
        (Scores(prompt_stability=None), []),
    ],
    ids=["usual", "review", "failed", "stability", "both scores", "better", "not computed"],
)
def test_what_is_worse_than_usual(nights: Nights, tonight: Scores, worse: list[str]) -> None:
    quality = compare_nights(nights.table, nights.night(tonight), CONFIG)
    assert len(quality.regressions) == len(worse)
    assert all(line.startswith(words) for line, words in zip(quality.regressions, worse, strict=True))
    assert quality.markdown().count("**worse**") == len(worse)
    check_regressions(quality, CONFIG)
    if worse:
        with pytest.raises(InputError, match=f"run {quality.run_id} is published and worse than usual"):
            check_regressions(quality, CONFIG.model_copy(update={"fail": True}))


def test_one_odd_night_before_does_not_count(nights: Nights) -> None:
    nights.night(Scores(prompt_stability=0.1, review=9))
    assert not compare_nights(nights.table, nights.night(Scores(review=2)), CONFIG).regressions


def test_only_the_last_nights_count(nights: Nights) -> None:
    for _ in range(2):
        nights.night(Scores(prompt_stability=0.5))
    tonight = nights.night(Scores(prompt_stability=0.5))
    assert compare_nights(nights.table, tonight, CONFIG).regressions
    assert not compare_nights(nights.table, tonight, CONFIG.model_copy(update={"nights": 2})).regressions


@pytest.mark.parametrize(
    ("prompts", "config", "why"),
    [
        (9, CONFIG, "9 prompts refined, fewer than regression.min_prompts 10"),
        (10, RegressionConfig(min_nights=4, min_prompts=10), "3 earlier nights of at least 10 prompts, fewer than"),
    ],
    ids=["few prompts", "few nights"],
)
def test_chance_is_not_judged(nights: Nights, prompts: int, config: RegressionConfig, why: str) -> None:
    quality = compare_nights(nights.table, nights.night(Scores(failed=9), prompts), config)
    assert quality.regressions == ()
    assert why in quality.markdown()


def test_tombstones_are_no_prompts_of_the_night(nights: Nights) -> None:
    nights.night(Scores(review=2), prompts=20)
    quality = compare_nights(nights.table, nights.night(Scores(review=2), prompts=10), CONFIG)
    (review, *_) = quality.measures
    assert (review.value, quality.nights) == (pytest.approx(0.2), 4)


def test_a_run_that_is_not_there(nights: Nights) -> None:
    with pytest.raises(NotFoundError, match="expected run nowhere"):
        compare_nights(nights.table, "nowhere", CONFIG)
