"""The evaluation over Ray: a plain run's figures and records, whatever order the pictures come back in."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flows.evaluate import evaluate_dataset
from stable_sam.config import RayConfig, RefinerConfig
from stable_sam.errors import ImageError, StableSamError
from stable_sam.evaluation.evaluate import evaluate, read_sets
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.result_records import write_records
from tasks.actors import evaluation_actor
from tasks.actors.evaluation_actor import EvaluationActor, split_sets
from tasks.actors.run import score_shares

SETTINGS = EvaluationConfig(
    refiner=RefinerConfig(model="tiny"),
    prompts=("gt-box", "noisy-box", "two-objects-box", "1-point"),
    random_prompts=3,
    resamples=50,
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets of three pictures with two objects each; a share holds two pictures."""
    monkeypatch.setattr(evaluation_actor, "SHARE_IMAGES", 2)
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "data" / name
        (folder / "images").mkdir(parents=True)
        images, annotations = [], []
        for number in range(3):
            coarse = noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((80, 60)).save(folder / "images" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 60})
            for n, (x, y) in enumerate(((5, 5), (45, 20))):
                corners = [x, y, x + 30, y, x + 30, y + 25 + number, x, y + 25 + number]
                annotations.append({"id": 10 * number + n, "image_id": number, "segmentation": [corners]})
        (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path / "data"


@pytest.mark.usefixtures("ray_local", "prefect_server")
def test_the_flow_gives_a_plain_run_s_figures_bit_for_bit(data: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as an actor's: sums of other partitions differ in the last bit
    try:
        plain, records = evaluate([data], SETTINGS)
    finally:
        torch.set_num_threads(threads)
    write_records(records, str(tmp_path / "plain.parquet"))
    outputs = {"json_uri": str(tmp_path / "ray.json"), "records_uri": str(tmp_path / "ray.parquet")}
    outputs["markdown_uri"] = str(tmp_path / "ray.md")
    over_ray = evaluate_dataset([str(data)], outputs, SETTINGS.model_dump(mode="json"), {"actors": 2})
    assert over_ray == plain
    assert json.loads((tmp_path / "ray.json").read_text()) == json.loads(json.dumps(plain.to_json()))
    assert pq.read_table(tmp_path / "ray.parquet").equals(pq.read_table(tmp_path / "plain.parquet"))
    assert (tmp_path / "ray.md").read_text().startswith("tiny at 64 px")


@pytest.mark.usefixtures("ray_local")
def test_a_picture_that_cannot_be_read_ends_it_with_its_name(data: Path) -> None:
    sets = read_sets([data], SETTINGS)
    (data / "b" / "images" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"b/images/1\.png: cannot read"):
        list(score_shares(SETTINGS, list(split_sets(sets)), RayConfig(actors=1)))


@pytest.mark.usefixtures("ray_local")
def test_an_actor_that_dies_once_costs_nothing_and_one_that_always_dies_is_said(data: Path, tmp_path: Path) -> None:
    died = tmp_path / "died"

    class DyingActor(EvaluationActor):
        def work(self, share):  # type: ignore[no-untyped-def]
            if share.number == 1 and not (died.exists() and once):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().work(share)

    shares = list(split_sets(read_sets([data], SETTINGS)))
    assert [share.shard_id for share in shares[:2]] == ["a, images 0.png to 1.png", "a, images 2.png to 2.png"]
    ray = RayConfig(actors=1, max_retries=1)
    once = True
    scored = list(score_shares(SETTINGS, shares, ray, actor_class=DyingActor))
    assert died.exists()
    assert sorted(share.number for share in scored) == [0, 1, 2, 3]
    once = False
    with pytest.raises(StableSamError, match=r"^a, images 2\.png to 2\.png: one of these images ends the process"):
        list(score_shares(SETTINGS, shares[:2], ray, actor_class=DyingActor))
