"""Training: its samples, losses, resume after a kill, and what it may touch. Real steps, on pictures of ellipses."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors import safe_open

from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, ConfigError, ImageError, NotFoundError, StorageError, WeightsError
from stable_sam.modeling.build import build_nano, build_tiny
from stable_sam.modeling.load import load_model
from stable_sam.modeling.nano import Backbone
from stable_sam.modeling.plugin import StableSamPlugin, count_parameters, detach_plugin
from stable_sam.modeling.weights import save_weights
from stable_sam.training import base, plugin
from stable_sam.training.base import jitter_boxes, multimask_loss, train_base
from stable_sam.training.dataset import (
    SAM_PIXEL_MEAN,
    Batch,
    TrainingBatches,
    cut_image,
    cut_masks,
    pad_image,
    random_window,
    read_training_sets,
)
from stable_sam.training.loop import append_csv, mean_figures, rate_factor
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.plugin import mixed_boxes, train_plugin
from stable_sam.training.settings import BaseTraining, PluginTraining

Edit = Callable[[dict], object]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)  # training switches it on, and other tests look at denormal numbers


def write_set(folder: Path, seed: int, images: str, file_name: str) -> Path:
    """Three pictures with two coloured ellipses each; returns the folder."""
    rng = np.random.default_rng(seed)
    (folder / images).mkdir(parents=True)
    coco: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "ellipse"}]}
    for number in range(3):
        height, width = (72, 96) if number % 2 else (96, 64)
        picture = np.full((height, width, 3), rng.integers(0, 90), np.uint8)
        name = f"{number}.png"
        coco["images"].append({"id": number, "file_name": file_name.format(name), "height": height, "width": width})
        for part in range(2):
            mask = np.zeros((height, width), np.uint8)
            center = (width // 2, height // 4 + part * height // 2)
            axes = (int(rng.integers(12, width // 3)), int(rng.integers(8, height // 4)))
            cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
            picture[mask > 0] = rng.integers(100, 256, 3)
            rle = coco_mask.encode(np.asfortranarray(mask))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            coco["annotations"].append(
                {"id": len(coco["annotations"]), "image_id": number, "category_id": 1, "segmentation": segmentation}
            )
        cv2.imwrite(str(folder / images / name), picture)
    (folder / "instances.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two sets; file names of the one begin at its `images/`, of the other at the JSON."""
    folder = tmp_path_factory.mktemp("data")
    write_set(folder / "one", 0, "images", "{}")
    write_set(folder / "two", 1, "images", "images/{}")
    return folder


def settings_of(kind: type, **changes):
    common = {
        "stages": [{"size": 64, "steps": 3, "batch_images": 2}], "warmup_steps": 1, "checkpoint_steps": 2,
        "ema": 0.5, "seed": 3,
    }  # fmt: skip
    return kind.from_dict(common | changes)


def batches(data: Path, **changes) -> TrainingBatches:
    wanted = {"size": 64, "batch_images": 2, "objects": 2, "points": 3, "seed": 7} | changes
    return TrainingBatches(read_training_sets(data), {}, **wanted)


def parts(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.images, batch.coverage, batch.boxes, batch.points


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, "pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def watch(monkeypatch, module, name: str, kill_at: int | None = None) -> list[Batch]:
    """The batches that the loss `module.name` sees; the call with that number, from 0, kills the run."""
    seen: list[Batch] = []
    real = getattr(module, name)

    def watched(sam, batch, *rest):
        if len(seen) == kill_at:
            raise Killed
        seen.append(batch)
        return real(sam, batch, *rest)

    monkeypatch.setattr(module, name, watched)
    return seen


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory) -> tuple[Path, list[Batch]]:
    """A base trained in one go, and the batches that it saw."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch, base, "base_loss")
        return train_base(data, tmp_path_factory.mktemp("base"), settings_of(BaseTraining)), seen


def nano(checkpoint: Path, **changes) -> RefinerConfig:
    return RefinerConfig(model="nano", checkpoint_uri=str(checkpoint), device="cpu", **({"plugin": False} | changes))


# The base


def test_a_trained_base_loads_strictly(whole_run):
    file, seen = whole_run
    loaded = load_model(nano(file))
    assert loaded.host is None
    assert loaded.sam.image_encoder.img_size == 64
    assert len(seen) == 3
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    assert (metadata["model"], metadata["size"], metadata["step"]) == ("nano", "64", "3")
    assert BaseTraining.model_validate_json(metadata["settings"]) == settings_of(BaseTraining)
    assert {value.dtype for value in tensors_of(file).values()} == {torch.float16}


def test_training_moves_every_part_of_the_base(whole_run):
    torch.manual_seed(3)
    untrained = build_nano(64).state_dict()
    trained = tensors_of(whole_run[0])
    assert trained.keys() == untrained.keys()
    moved = {key.split(".")[0] for key, value in trained.items() if not torch.equal(value, untrained[key].half())}
    assert moved == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert all(value.isfinite().all() for value in trained.values())


def test_a_killed_base_goes_on_where_its_checkpoint_is(whole_run, data, tmp_path, monkeypatch):
    file, all_batches = whole_run
    with monkeypatch.context() as patch:
        watch(patch, base, "base_loss", kill_at=2)
        with pytest.raises(Killed):
            train_base(data, tmp_path, settings_of(BaseTraining))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    with safe_open(tmp_path / "nano.safetensors", "pt") as stored:
        assert stored.metadata()["step"] == "2"
    (tmp_path / "checkpoint.partial").write_bytes(b"killed while writing")

    seen = watch(monkeypatch, base, "base_loss")
    resumed = tensors_of(train_base(data, tmp_path, settings_of(BaseTraining)))
    assert len(seen) == 1
    assert all(same(batch, expected) for batch, expected in zip(seen, all_batches[2:], strict=True))
    for key, value in tensors_of(file).items():
        torch.testing.assert_close(resumed[key].float(), value.float(), rtol=1e-3, atol=1e-4)


def test_a_finished_run_only_exports_again_the_same_bytes(data, tmp_path, monkeypatch):
    settings = settings_of(PluginTraining, checkpoint_steps=3)
    before = train_plugin(build_tiny(), "0", data, tmp_path, settings).read_bytes()
    seen = watch(monkeypatch, plugin, "plugin_loss")
    for _ in range(3):
        assert train_plugin(build_tiny(), "0", data, tmp_path, settings).read_bytes() == before
    assert seen == []


def test_resume_within_the_second_stage(data, tmp_path, monkeypatch):
    """The stages have samples and sizes of their own; the plugin of the tiny model is enough to see it."""
    stages = [{"size": 64, "steps": 3, "batch_images": 1}, {"size": 96, "steps": 3, "batch_images": 2}]
    settings = settings_of(PluginTraining, stages=stages)
    with monkeypatch.context() as patch:
        expected = watch(patch, plugin, "plugin_loss")
        whole = train_plugin(build_tiny(), "0", data, tmp_path / "whole", settings)
    assert [tuple(b.images.shape) for b in expected] == [(1, 3, 64, 64)] * 3 + [(2, 3, 96, 96)] * 3
    with monkeypatch.context() as patch:
        watch(patch, plugin, "plugin_loss", kill_at=5)
        with pytest.raises(Killed):
            train_plugin(build_tiny(), "0", data, tmp_path / "parts", settings)
    seen = watch(monkeypatch, plugin, "plugin_loss")
    resumed = train_plugin(build_tiny(), "0", data, tmp_path / "parts", settings)
    assert all(same(a, b) for a, b in zip(seen, expected[4:], strict=True))
    stored = tensors_of(resumed)
    for key, value in tensors_of(whole).items():
        torch.testing.assert_close(stored[key].float(), value.float(), rtol=1e-3, atol=1e-4)


def test_an_encoder_gives_the_backbone_its_start(data, tmp_path):
    torch.manual_seed(9)
    backbone = Backbone()
    encoder = save_weights(backbone, tmp_path / "encoder.safetensors", {})
    settings = settings_of(
        BaseTraining, stages=[{"size": 64, "steps": 1, "batch_images": 1}], backbone_rate=0.0, weight_decay=0.0
    )
    trained = tensors_of(train_base(data, tmp_path / "out", settings, encoder))
    for key, value in tensors_of(encoder).items():
        torch.testing.assert_close(trained[f"image_encoder.backbone.{key}"], value)


# The plugin


@pytest.fixture(scope="module")
def plugin_run(whole_run, data, tmp_path_factory):
    """A plugin trained on the trained base: its file, the base before and after, the plugin before and after."""
    torch.set_num_threads(1)
    loaded = load_model(nano(whole_run[0]))
    before = {key: value.clone() for key, value in loaded.sam.state_dict().items()}
    settings = settings_of(PluginTraining, hidden=8, max_offset=2.5, learning_rate=0.01)
    folder = tmp_path_factory.mktemp("plugin")
    file = train_plugin(loaded.sam, loaded.identity.weights_sha256, data, folder, settings)
    learning = {name for name, value in loaded.sam.named_parameters() if value.requires_grad}
    detach_plugin(loaded.sam)
    return file, before, loaded.sam.state_dict(), learning


def test_plugin_training_leaves_the_base_bit_for_bit(plugin_run):
    _, before, after, learning = plugin_run
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert learning
    assert all(".plugin." in name for name in learning)


def test_plugin_training_moves_the_plugin(plugin_run):
    torch.manual_seed(3)
    start = StableSamPlugin(256, 8, 2.5)
    trained = tensors_of(plugin_run[0])
    assert trained.keys() == start.state_dict().keys()
    assert sum(value.numel() for value in trained.values()) == count_parameters(start)
    moved = {key for key, value in start.state_dict().items() if not torch.equal(trained[key], value.half())}
    assert {"sampling.offset.weight", "sampling.project.weight", "routing.route.weight"} <= moved
    assert all(value.isfinite().all() for value in trained.values())


def test_a_trained_plugin_fits_its_own_base_only(plugin_run, whole_run, tmp_path):
    file, base_file = plugin_run[0], whole_run[0]
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    assert metadata["base_sha256"] == hashlib.sha256(base_file.read_bytes()).hexdigest()
    assert (metadata["channels"], metadata["hidden"], metadata["max_offset"]) == ("256", "8", "2.5")
    loaded = load_model(nano(base_file, plugin=True, plugin_uri=str(file)))
    assert loaded.host is not None
    state = loaded.host.plugin.state_dict()
    assert all(torch.equal(state[key], value.float()) for key, value in tensors_of(file).items())

    other = save_weights(build_nano(64), tmp_path / "other.safetensors", {"size": "64"})
    with pytest.raises(WeightsError, match=r"plugin\.safetensors: this plugin was trained on the base .*other"):
        load_model(nano(other, plugin=True, plugin_uri=str(file)))


def test_noise_of_the_training_boxes():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0]]).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(mixed_boxes(boxes, (0.0,), 64, generator), boxes)
    noisy = mixed_boxes(boxes, (0.0, 0.4), 64, generator)
    untouched = (noisy == boxes).all(dim=1).float().mean()
    assert 0.4 < untouched < 0.6
    assert ((noisy - boxes).abs() <= 0.4 * torch.tensor([40.0, 20, 40, 20]) + 1e-4).all()
    wild = mixed_boxes(boxes, (1.0,), 64, generator)
    assert (wild >= 0).all()
    assert (wild <= 64).all()
    assert (wild[:, 2:] > wild[:, :2]).all()


def test_jitter_of_the_base_is_slight():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 8.0, 4.0]]).repeat(100, 1, 1)
    moved = jitter_boxes(boxes, 64, torch.Generator().manual_seed(0)) - boxes
    assert (moved.abs() <= 20 / 1024 * 64 + 1e-5).all()
    assert moved[:, 0].abs().mean() > 0.5
    assert (boxes + moved >= 0).all()


# Samples


def test_samples_are_a_function_of_seed_and_step(data):
    one, again = batches(data), batches(data)
    forward = [one[step] for step in range(4)]
    backward = [again[step] for step in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], batches(data, seed=8)[0])


def test_parts_of_a_sample_agree(data):
    """Boxes, points and coverage are of one object."""
    for step in range(6):
        batch = batches(data)[step]
        assert batch.images.shape == (2, 3, 64, 64)
        assert batch.images.dtype == torch.uint8
        assert batch.coverage.shape == (2, 2, 16, 16)
        assert batch.boxes.shape == (2, 2, 4)
        assert batch.points.shape == (2, 2, 3, 2)
        assert (batch.coverage >= 0).all()
        assert (batch.coverage <= 1).all()
        assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all()
        for points, box, coverage in zip(
            batch.points.flatten(0, 1), batch.boxes.flatten(0, 1), batch.coverage.flatten(0, 1), strict=True
        ):
            assert ((points > box[:2]) & (points < box[2:])).all()
            columns, rows = (points // 4).long().T
            assert (coverage[rows, columns] > 0).all()
            rows, columns = torch.nonzero(coverage, as_tuple=True)
            low, high = torch.stack((columns.min(), rows.min())), torch.stack((columns.max(), rows.max())) + 1
            torch.testing.assert_close(low.float(), torch.floor(box[:2] / 4))
            torch.testing.assert_close(high.float(), torch.ceil(box[2:] / 4))


@pytest.mark.parametrize("flip", [False, True])
def test_picture_and_masks_are_cut_alike(flip):
    rng = np.random.default_rng(0)
    mask = np.zeros((72, 96), np.uint8)
    cv2.ellipse(mask, (40, 30), (25, 14), 30, 0, 360, 1, -1)
    picture = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    shown = 0
    for _ in range(20):
        window = random_window(mask.shape, rng)
        x, y, w, h = window
        assert 0 <= x <= x + w <= 96
        assert 0 <= y <= y + h <= 72
        image = cut_image(picture, window, 64, flip)
        assert max(image.shape[:2]) == 64
        cut = cut_masks(mask[:, :, None], window, 64, flip)
        assert len(cut) == (mask[y : y + h, x : x + w].sum() >= 0.4 * mask.sum())
        for visible in cut:
            shown += 1
            np.testing.assert_array_equal(visible[: image.shape[0], : image.shape[1]], image[:, :, 0] > 127)
            assert visible.shape == (64, 64)
            assert visible[image.shape[0] :].sum() == visible[:, image.shape[1] :].sum() == 0
    assert shown > 10


def test_what_is_beside_a_picture_is_its_mean():
    padded = pad_image(np.full((2, 3, 3), 7, np.uint8), 4)
    assert (padded[:2, :3] == 7).all()
    assert (padded[2:] == SAM_PIXEL_MEAN).all()
    assert (padded[:, 3:] == SAM_PIXEL_MEAN).all()
    np.testing.assert_allclose(SAM_PIXEL_MEAN, build_tiny().pixel_mean.flatten(), atol=0.5)


def test_weights_choose_the_sets(data):
    sets = read_training_sets(data)
    assert {name: len(items) for name, items in sets.items()} == {"one": 3, "two": 3}
    common = {"size": 64, "batch_images": 4, "objects": 1, "points": 1, "seed": 0}
    only = TrainingBatches(sets, {"two": 0.0}, **common)
    alone = TrainingBatches({"one": sets["one"], "two": sets["one"]}, {"two": 0.0}, **common)
    assert all(same(only[step], alone[step]) for step in range(3))


# Losses


def test_a_perfect_mask_costs_almost_nothing_and_errors_cost_more():
    coverage = torch.zeros(1, 16, 16)
    coverage[0, 4:10, 5:12] = 1
    near = near_cells(torch.tensor([[20.0, 16.0, 48.0, 40.0]]), 16, 4)
    costs = []
    for wrong in (0, 4, 16, 80, 256):
        logits = (coverage * 2 - 1) * 20
        logits.view(-1)[torch.randperm(256, generator=torch.Generator().manual_seed(0))[:wrong]] *= -1
        costs.append(mask_loss(logits, coverage, near).item())
    assert costs[0] == pytest.approx(0, abs=1e-4)
    assert costs == sorted(costs)
    assert costs[1] > 0.1


def test_small_and_large_objects_weigh_the_same():
    """Missing all of an object costs about as much for 2 x 2 cells as for 12 x 12."""
    costs = []
    for side in (2, 12):
        coverage = torch.zeros(1, 16, 16)
        coverage[0, 2 : 2 + side, 2 : 2 + side] = 1
        near = coverage.clone()
        costs.append(mask_loss(torch.full((1, 16, 16), -3.0), coverage, near).item())
    assert costs[0] == pytest.approx(costs[1], rel=0.1)


def test_mask_loss_takes_several_masks_of_one_object():
    generator = torch.Generator().manual_seed(0)
    logits, coverage = torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 8, 8, generator=generator)
    near = (torch.rand(2, 8, 8, generator=generator) > 0.5).float()
    together = mask_loss(logits, coverage[:, None], near[:, None])
    assert together.shape == (2, 3)
    for prompt in range(2):
        for mask in range(3):
            alone = mask_loss(logits[prompt, mask], coverage[prompt], near[prompt])
            torch.testing.assert_close(together[prompt, mask], alone)


def test_only_the_best_of_three_masks_learns():
    coverage = torch.zeros(1, 8, 8)
    coverage[0, 2:6, 2:6] = 1
    logits = torch.stack([coverage * 2 - 1, 1 - coverage * 2, coverage * 8 - 4, coverage * 0 - 1], dim=1)
    logits.requires_grad_(True)
    output = base.DecoderOutput(logits, torch.tensor([[0.0, 0.9, 0.2, 0.1]]), None)
    loss, chosen_iou, best_iou = multimask_loss(output, coverage, torch.ones(1, 8, 8))
    loss.backward()
    assert (chosen_iou, best_iou) == (0.0, 1.0)
    assert [bool(grad.abs().sum() > 0) for grad in logits.grad[0]] == [False, False, True, False]


def test_near_cells_against_a_loop():
    boxes = torch.tensor(
        [[[20.0, 16.0, 48.0, 40.0], [0.0, 0.0, 64.0, 64.0]], [[33.0, 5.0, 35.5, 9.0], [60.0, 1, 64, 3]]]
    )
    near = near_cells(boxes, 16, 4)
    assert near.shape == (2, 2, 16, 16)
    for index in np.ndindex(2, 2):
        x0, y0, x1, y1 = (value / 4 for value in boxes[index].tolist())
        more_x, more_y = (x1 - x0) * 0.25 + 1, (y1 - y0) * 0.25 + 1
        expected = [
            [float(x0 - more_x <= x + 0.5 <= x1 + more_x and y0 - more_y <= y + 0.5 <= y1 + more_y) for x in range(16)]
            for y in range(16)
        ]
        assert near[index].tolist() == expected
    assert 0 < near[0, 0].sum() < 256


def test_mask_iou():
    coverage = torch.tensor([[1.0, 0.6, 0.4, 0.0]]).view(1, 1, 4)
    assert mask_iou(torch.tensor([[[1.0, 2, -1, -1]]]), coverage).tolist() == [1.0]
    assert mask_iou(torch.tensor([[[1.0, -1, 5, -1]]]), coverage).tolist() == pytest.approx([1 / 3])
    assert mask_iou(torch.tensor([[[-1.0, -1, -1, -1]]]), torch.zeros(1, 1, 4)).tolist() == [0.0]


# The loop


def test_rate_rises_stays_and_falls_to_nothing():
    settings = settings_of(
        BaseTraining, stages=[{"size": 64, "steps": 60}, {"size": 64, "steps": 40}], warmup_steps=10, cooldown=0.4
    )
    rates = [rate_factor(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[9:61] == pytest.approx([1.0] * 52)
    assert rates[60:] == pytest.approx([1 - n / 40 for n in range(40)])
    assert rate_factor(100, settings) == 0
    assert rate_factor(0, settings_of(BaseTraining, warmup_steps=0)) == 1


def test_figures_are_averaged_where_they_are():
    rows = [{"loss": 1.0}, {"loss": 2.0, "iou": 0.25}, {"loss": 6.0, "iou": 0.75}]
    assert mean_figures(rows) == {"loss": 3.0, "iou": 0.5}


def test_log_keeps_its_columns(tmp_path):
    file = tmp_path / "log.csv"
    append_csv(file, {"step": 20, "loss": 1.5, "iou": 0.5})
    append_csv(file, {"step": 40, "loss": 1.25, "new": 3})
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [{"step": "20", "loss": "1.5", "iou": "0.5"}, {"step": "40", "loss": "1.25", "iou": ""}]


# What bad input gets


def broken(edit: Edit) -> Edit:
    """An edit of a set's folder that edits the document of its instances.json."""

    def change(folder: Path) -> None:
        file = folder / "instances.json"
        coco = json.loads(file.read_text())
        edit(coco)
        file.write_text(json.dumps(coco))

    return change


POLYGON = [[1, 1, 9, 1, 9, 9]]
BROKEN_SETS: list[tuple[str, Edit, type[Exception], str]] = [
    ("no sets", lambda s: (s / "instances.json").unlink(), AnnotationError, r"data: expected <set>/instances\.json"),
    ("broken JSON", lambda s: (s / "instances.json").write_text('{"images": ['), AnnotationError, "instances.*RLE"),
    ("a list", lambda s: (s / "instances.json").write_text("[]"), AnnotationError, "expected COCO instances"),
    ("no annotations", broken(lambda c: c.pop("annotations")), AnnotationError, "KeyError.'annotations'"),
    ("no masks", broken(lambda c: c["annotations"].clear()), AnnotationError, "at least one mask, got none"),
    (
        "a polygon",
        broken(lambda c: c["annotations"][1].update(segmentation=POLYGON)),
        AnnotationError,
        "annotation 1: ",
    ),
    (
        "other size",
        broken(lambda c: c["images"][1].update(width=95)),
        AnnotationError,
        "annotation 2: .*picture's size",
    ),
    ("no such image", broken(lambda c: c["annotations"][4].update(image_id=77)), AnnotationError, "KeyError.77"),
    ("missing picture", lambda s: (s / "images" / "2.png").unlink(), ImageError, "2.png: expected a training picture"),
]


@pytest.mark.parametrize(("edit", "error", "message"), [c[1:] for c in BROKEN_SETS], ids=[c[0] for c in BROKEN_SETS])
def test_broken_training_data_is_refused_in_one_line(tmp_path, edit, error, message):
    edit(write_set(tmp_path / "data" / "one", 0, "images", "{}"))
    with pytest.raises(error, match=message) as raised:
        read_training_sets(tmp_path / "data")
    assert len(str(raised.value).splitlines()) == 1
    assert str(tmp_path / "data") in str(raised.value)


def test_no_data_folder_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="nowhere: expected <set>/instances.json"):
        read_training_sets(tmp_path / "nowhere")


UNREADABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("not a picture", lambda file: file.write_bytes(b"GIF"), r"\d\.png: expected a training picture"),
    ("other size", lambda file: cv2.imwrite(str(file), np.zeros((5, 9, 3), np.uint8)), r"as annotated, got 9 x 5"),
]


@pytest.mark.parametrize(("spoil", "message"), [c[1:] for c in UNREADABLE], ids=[c[0] for c in UNREADABLE])
def test_an_unreadable_picture_ends_training_with_one_line(tmp_path, spoil, message):
    """The picture is read in another process, whose errors have to come over as they are."""
    for picture in (write_set(tmp_path / "data" / "one", 0, "images", "{}") / "images").iterdir():
        spoil(picture)
    with pytest.raises(ImageError, match=message) as raised:
        train_plugin(build_tiny(), "0", tmp_path / "data", tmp_path / "out", settings_of(PluginTraining))
    assert len(str(raised.value).splitlines()) == 1


def test_data_without_objects_of_a_size_is_refused(tmp_path, monkeypatch):
    """Not sought for ever."""
    monkeypatch.setattr("stable_sam.training.dataset.SAMPLE_TRIES", 20)
    monkeypatch.setattr("stable_sam.training.dataset.MIN_OBJECT_FRACTION", 0.99)
    write_set(tmp_path / "one", 0, "images", "{}")
    with pytest.raises(
        AnnotationError, match="sets one: expected objects of at least 99.0% of the input, got none in 20"
    ):
        batches(tmp_path)[0]


def test_other_files_where_training_files_should_be_are_refused(data, tmp_path):
    def train(**changes):
        return train_plugin(build_tiny(), "0", data, tmp_path / "out", settings_of(PluginTraining, **changes))

    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="out: expected a folder to write to"):
        train()
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a checkpoint of this run"):
        train()
    (tmp_path / "out" / "checkpoint.pt").unlink()
    train()
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a checkpoint of this run.*size mismatch") as raised:
        train(hidden=4)
    assert len(str(raised.value).splitlines()) == 1


def test_an_unusable_encoder_is_refused(data, tmp_path):
    with pytest.raises(NotFoundError, match=r"no\.safetensors"):
        train_base(data, tmp_path / "out", settings_of(BaseTraining), tmp_path / "no.safetensors")
    other = save_weights(torch.nn.Linear(2, 2), tmp_path / "other.safetensors", {})
    with pytest.raises(WeightsError, match=r"other\.safetensors: not a backbone of nano") as raised:
        train_base(data, tmp_path / "out", settings_of(BaseTraining), other)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (BaseTraining, {"learning_rat": 1}, "learning_rat: "),
        (BaseTraining, {"stages": []}, "stages: "),
        (BaseTraining, {"stages": [{"size": 100, "steps": 1}]}, "stages.0.size: .*multiple of 32, got 100"),
        (BaseTraining, {"ema": 1.0}, "ema: "),
        (BaseTraining, {"set_weights": {"one": -1}}, "set_weights.one: "),
        (BaseTraining, {"noise_scales": [0.1]}, "noise_scales: "),
        (PluginTraining, {"noise_scales": [0.2, 1.5]}, "noise_scales.1: "),
        (PluginTraining, {"point_counts": [0]}, "point_counts.0: "),
    ],
)
def test_settings_are_checked(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(kind, **changes)


@pytest.mark.parametrize(("name", "kind"), [("train_base", BaseTraining), ("train_plugin", PluginTraining)])
def test_the_files_in_configs_are_settings(name, kind):
    assert kind.from_yaml(Path(__file__).parents[2] / "configs" / f"{name}.yaml").total_steps > 100
