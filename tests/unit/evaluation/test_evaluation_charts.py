"""The pictures of an evaluation: written, readable, and showing what they say."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.alpha import ALL_BOXES, ALL_POINTS, NOISY_BOXES, correlate_alpha
from stable_sam.evaluation.chart import BINS, alpha_plot, bar_chart, binned_means
from stable_sam.evaluation.evaluate import Evaluation, evaluation_of
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.methods import ModelFacts
from stable_sam.evaluation.result_records import SCHEMA, join_records, record_table
from stable_sam.evaluation.true_masks import TruthImage, TruthObject, TruthSet

KINDS = ("gt-box", "noisy-box", "loose-box", "1-point", "3-points")


def made_up_records(settings: EvaluationConfig, objects: int = 12) -> pa.Table:
    """Records in which alpha_1 falls with the quality of a box and knows nothing of the number of points."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(objects):
        for kind in settings.prompts:
            for method in settings.methods:
                for prompt in range(1 if kind == "gt-box" else 4):
                    points = "point" in kind
                    quality = float(kind[0]) if points else 1.0 if kind == "gt-box" else rng.uniform(0.2, 0.9)
                    alpha = rng.uniform() if points else 1 - quality
                    row = dict.fromkeys(SCHEMA.names, 0.5) | {
                        "set": "a", "picture": "p", "annotation": str(number), "category": "", "whole": None,
                        "method": method, "prompt": kind, "number": prompt, "prompt_quality": quality,
                        "box_xyxy": None, "view": None,
                        "iou": rng.uniform(0.4, 0.9), "dsp_weight": alpha if method == "stable-sam" else 0.0,
                        "union_iou": None if kind == "gt-box" else 0.7, "whole_iou": None,
                    }  # fmt: skip
                    rows.append(row)
    return record_table(rows)


@pytest.fixture(scope="module")
def made_up() -> tuple[Evaluation, pa.Table]:
    settings = EvaluationConfig(
        refiner=RefinerConfig(model="tiny", hq_uri="hq"), methods=("sam", "hq-sam", "stable-sam"), prompts=KINDS
    )
    facts = ModelFacts(model="tiny", input_size=64, weights_sha256={}, parameters={})
    items = tuple(TruthObject(annotation_id=str(n), category="", rle={}) for n in range(12))
    image = TruthImage(path=None, name="p", size_hw=(1, 1), objects=items)  # type: ignore[arg-type]  # never opened
    sets = [TruthSet(name="a", images=(image,), crowd=0, small=0)]
    return evaluation_of([made_up_records(settings)], facts, sets, settings)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(image: np.ndarray, colour: str) -> int:
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=2) < 3).sum())


def test_bars_of_every_method_grow_with_their_figure(made_up: tuple[Evaluation, pa.Table]) -> None:
    from stable_sam.evaluation.chart import COLOURS

    evaluation, _ = made_up
    chart = pixels(bar_chart(evaluation))
    sizes = {method: coloured(chart, COLOURS[method]) for method in evaluation.settings.methods}
    assert min(sizes.values()) > 1000
    halved = [
        replace(score, miou=replace(score.miou, value=score.miou.value / 2, low=0.0))
        if score.method == "sam"
        else score
        for score in evaluation.scores
    ]
    smaller = pixels(bar_chart(replace(evaluation, scores=tuple(halved))))
    assert coloured(smaller, COLOURS["sam"]) < 0.75 * sizes["sam"]
    assert coloured(smaller, COLOURS["hq-sam"]) > 0.75 * sizes["hq-sam"]


def test_alpha_is_drawn_with_boxes_points_or_one_of_them(made_up: tuple[Evaluation, pa.Table]) -> None:
    _, records = made_up
    for kinds in (KINDS, ("gt-box", "noisy-box"), ("1-point",)):
        plot = pixels(alpha_plot(records, kinds))
        assert plot.shape[0] > 300
        assert (plot.sum(axis=2) < 60).sum() > 200, "axes and the line of means are black"


def test_correlations_find_what_alpha_knows(made_up: tuple[Evaluation, pa.Table]) -> None:
    evaluation, records = made_up
    rho = {line.group: line.rho for line in evaluation.alpha}
    assert rho[ALL_BOXES] == rho[NOISY_BOXES] == rho["noisy-box"] == pytest.approx(-1)
    assert rho["gt-box"] is None, "one quality alone correlates with nothing"
    assert rho[ALL_POINTS] is not None
    assert abs(rho[ALL_POINTS]) < 0.4
    counts = {line.group: line.masks for line in evaluation.alpha}
    assert (counts["gt-box"], counts[NOISY_BOXES], counts[ALL_BOXES]) == (12, 96, 108)
    assert correlate_alpha(records.filter(pa.array([False] * len(records))), KINDS) == []
    assert correlate_alpha(join_records([]), KINDS) == []


def test_binned_means_are_of_all_values_and_in_order() -> None:
    x = np.random.default_rng(0).uniform(size=1000)
    centres, means = binned_means(x, 2 * x)
    assert len(centres) == BINS
    assert (np.diff(centres) > 0).all()
    np.testing.assert_allclose(means, 2 * centres)
    for values, expected in (([1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 5], [1, 3, 5]), ([3, 3], [3]), ([1, 3], [1, 3])):
        centres, _ = binned_means(np.array(values, float), np.zeros(len(values)))
        assert centres.tolist() == expected
