"""Evaluation on made-up pictures with the tiny model: same prompts for both methods, fixed seeds, all counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from flows.cli import app
from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, ConfigError, ImageError, StorageError
from stable_sam.evaluation.averages import CELLS, PARTS, SHARES, WHOLE_SLICE, TableLine
from stable_sam.evaluation.by_object import ALL_SETS
from stable_sam.evaluation.evaluate import Evaluation, SetCounts, evaluate, evaluation_of, read_sets
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.methods import method_config
from stable_sam.evaluation.metrics import ReferenceMask
from stable_sam.evaluation.neighbours import Neighbours, find_neighbours
from stable_sam.evaluation.prompts import PromptKind, prompt_rng
from stable_sam.evaluation.result_records import write_records
from stable_sam.evaluation.sample import sample_objects
from stable_sam.evaluation.scoring import Scorer
from stable_sam.evaluation.true_masks import read_truth
from stable_sam.refining.stability import prompt_stability
from tasks.actors import evaluation_actor
from tasks.actors.sizing import ActorPlan

TINY = RefinerConfig(model="tiny")
SQUARE = [[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]]


def write_set(folder: Path, annotations: list[dict[str, Any]], pictures: int = 1) -> Path:
    """A set of 80 x 60 pictures; file names begin with images/ in even pictures only, as both are in use."""
    (folder / "images").mkdir(parents=True)
    images = []
    for number in range(pictures):
        picture = Image.new("RGB", (80, 60), "navy")
        ImageDraw.Draw(picture).rectangle((10, 10, 39, 39), fill="orange")
        picture.save(folder / "images" / f"{number}.png")
        name = f"{number}.png" if number % 2 else f"images/{number}.png"
        images.append({"id": number, "file_name": name, "width": 80, "height": 60})
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def square(number: int, image: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "segmentation": SQUARE, **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets: one object on each of two pictures, and two objects on one."""
    write_set(tmp_path / "data" / "a", [square(1), square(2, image=1)], pictures=2)
    write_set(tmp_path / "data" / "b", [square(1), square(2)])
    return tmp_path / "data"


KINDS = ("gt-box", "noisy-box", "1-point", "3-points")


def run(data: Path, **more: Any) -> Evaluation:
    settings = {"refiner": TINY, "prompts": KINDS, "random_prompts": 3, "resamples": 50, **more}
    return evaluate([data], EvaluationConfig(**settings))[0]


def whole(result: Evaluation) -> dict[tuple[str, str, str], TableLine]:
    return {(s.set, s.prompts, s.method): s for s in result.scores if s.slice == WHOLE_SLICE}


def test_table_has_every_set_kind_and_method(data: Path) -> None:
    line = whole(run(data))
    assert len(line) == 3 * 4 * 2
    assert line[ALL_SETS, "noisy-box", "sam"].objects == 4
    assert line[ALL_SETS, "noisy-box", "sam"].masks == 12
    assert line["a", "gt-box", "sam"].masks == 2
    assert line["a", "gt-box", "sam"].msf is None, "one prompt has no mSF"
    assert line["a", "1-point", "sam"].msf is not None
    of_sets = [line[name, "3-points", "sam"].miou.value for name in ("a", "b")]
    assert line[ALL_SETS, "3-points", "sam"].miou.value == pytest.approx(np.mean(of_sets))


def test_methods_differ_by_the_plugin_alone(data: Path) -> None:
    both, alone = whole(run(data)), whole(run(data, methods=("sam",)))
    assert {k: s for k, s in both.items() if s.method == "sam"} == alone, "same prompts, whatever else is measured"
    assert {s.dsp_weight for s in alone.values()} == {0.0}
    for (name, prompts, method), score in both.items():
        base = alone[name, prompts, "sam"]
        if method == "stable-sam":
            assert score.dsp_weight > 0
            assert score.miou != base.miou
            assert score.to_sam["miou"].value == pytest.approx(score.miou.value - base.miou.value)
        assert score.miou.low <= score.miou.value <= score.miou.high


def test_hq_sam_is_measured_on_the_same_base(data: Path, tmp_path: Path) -> None:
    import hashlib

    from stable_sam.modeling.bases import build_base
    from stable_sam.modeling.hq import build_hq
    from stable_sam.modeling.weights import save_weights

    base = {"base_sha256": hashlib.sha256(b"tiny").hexdigest()}
    file = save_weights(build_hq(build_base("tiny")), tmp_path / "hq.safetensors", base)
    three = run(
        data,
        refiner=RefinerConfig(model="tiny", hq_uri=str(file)),
        methods=("stable-sam", "hq-sam", "sam"),
    )
    two = whole(run(data))
    line = whole(three)
    assert {k: s for k, s in line.items() if s.method != "hq-sam"} == two, "the branch changes nothing but hq-sam"
    assert line["a", "gt-box", "hq-sam"].miou != line["a", "gt-box", "sam"].miou
    assert line["a", "gt-box", "hq-sam"].dsp_weight == 0
    parameters = three.model.parameters
    assert parameters["sam"] < min(parameters["hq-sam"], parameters["stable-sam"])
    assert three.model.weights_sha256.keys() == {"base", "plugin", "hq"}


def test_seed_fixes_the_numbers(data: Path) -> None:
    assert run(data).scores == run(data).scores
    assert run(data).scores != run(data, seed=1).scores


def test_records_hold_every_mask_and_give_the_tables_back(data: Path, tmp_path: Path) -> None:
    settings = EvaluationConfig(refiner=TINY, prompts=KINDS, random_prompts=3, resamples=50)
    result, records = evaluate([data], settings)
    write_records(records, str(tmp_path / "records.parquet"))
    sql = "SELECT method, avg(iou), avg(union_iou), count(*), min(prompt_quality), max(prompt_quality) "
    sql += f"FROM '{tmp_path}/records.parquet' WHERE prompt = '%s' AND set = 'b' GROUP BY method"
    for kind in KINDS:
        for method, iou, stability, masks, low, high in duckdb.sql(sql % kind).fetchall():
            line = whole(result)["b", kind, method]
            assert line.miou.value == pytest.approx(iou)
            assert line.masks == masks
            assert (line.msf and line.msf.value) == (stability and pytest.approx(stability))
            assert {"gt-box": (1, 1), "1-point": (1, 1), "3-points": (3, 3)}.get(kind, (low, high)) == (low, high)
            assert kind != "noisy-box" or 0 < low < high < 1


def test_union_iou_is_the_papers_stability(data: Path) -> None:
    """The mean over an object's masks is `prompt_stability` of these masks."""
    scorer = Scorer(EvaluationConfig(refiner=TINY, prompts=("noisy-box-0.6",), random_prompts=10, methods=("sam",)))
    image = read_truth(data / "a")[0].images[0]
    masks: list[np.ndarray] = []
    honest = ReferenceMask.compare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReferenceMask, "compare", lambda self, mask: masks.append(mask) or honest(self, mask))
        records = scorer.score("a", image)
    assert len(masks) == 10
    expected = prompt_stability(masks)
    assert 0 < expected < 1
    assert np.mean(records["union_iou"].to_pylist()) == pytest.approx(expected)


def boxed(number: int, x0: float, y0: float, x1: float, y1: float, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 0, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], **more}


def test_neighbours_are_the_whole_and_the_nearest_object_apart(tmp_path: Path) -> None:
    person, shirt, dog, cat = (
        boxed(1, 0, 0, 30, 60),
        boxed(2, 5, 10, 25, 30),
        boxed(3, 34, 0, 44, 9),
        boxed(4, 60, 9, 79, 59),
    )
    objects = read_truth(write_set(tmp_path / "a", [person, shirt, dog, cat]))[0].images[0].objects
    expected = [(None, 2), (0, 2), (None, 0), (None, 2)]
    assert find_neighbours(objects) == [Neighbours(whole=w, nearest=n) for w, n in expected]
    twins = read_truth(write_set(tmp_path / "b", [square(1), square(2)]))[0].images[0].objects
    assert find_neighbours(twins) == [Neighbours(whole=None, nearest=None)] * 2, "neither is a part, nor apart"


def test_slices_by_size_and_parts_with_their_drift(tmp_path: Path) -> None:
    speck, part = boxed(1, 2, 2, 9, 9), boxed(2, 20, 10, 40, 30)
    large = boxed(3, 15, 5, 79, 59)
    result = run(write_set(tmp_path / "a", [speck, part, large]), prompts=("gt-box", "two-objects-box", "1-point"))
    objects = {(s.slice, s.prompts): s.objects for s in result.scores if s.method == "sam"}
    assert [objects[name, "gt-box"] for name in (WHOLE_SLICE, PARTS)] == [3, 1]
    shares, cells = ([objects.get((name, "gt-box"), 0) for name in slices] for slices in (SHARES, CELLS))
    assert shares == [0, 0, 1, 1, 1]
    # The tiny model's input has 64 pixels and its embedding 4 cells, for the 80 pixels of the pictures.
    assert cells == [1, 1, 1, 0, 0], "sides of 7, 20 and 64 pixels are 0.35, 1 and 3.2 cells"
    assert objects[WHOLE_SLICE, "two-objects-box"] == 3
    for score in result.scores:
        assert (score.drift is not None) == (score.slice == PARTS)
        assert score.drift is None or 0 <= score.drift.value <= 1


def test_drift_counts_masks_that_are_nearer_to_the_whole(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [boxed(1, 20, 10, 40, 30), boxed(2, 15, 5, 79, 59)])
    _, records = evaluate([folder], EvaluationConfig(refiner=TINY, prompts=("3-points",), random_prompts=4))
    rows = [row for row in records.to_pylist() if row["whole"] is not None and row["method"] == "sam"]
    assert {row["annotation"] for row in rows} == {"1"}
    (line,) = (
        s for s in run(folder, prompts=("3-points",), random_prompts=4).scores if s.slice == PARTS and s.method == "sam"
    )
    assert line.drift is not None
    assert line.drift.value == np.mean([row["whole_iou"] > row["iou"] for row in rows])


def test_an_object_alone_has_no_box_with_another(data: Path) -> None:
    result = run(data / "a", prompts=("gt-box", "two-objects-box"))
    assert result.skipped == {"two-objects-box": 2}
    assert {score.prompts for score in result.scores} == {"gt-box"}


def test_a_sample_of_objects_keeps_sets_and_neighbours(tmp_path: Path) -> None:
    many = [boxed(n, n, n, n + 20, n + 20) for n in range(30)]
    write_set(tmp_path / "data" / "a", many)
    write_set(tmp_path / "data" / "b", many[:10])
    write_set(tmp_path / "data" / "c", many[:1])
    sets = read_truth(tmp_path / "data")
    sample = sample_objects(sets, 9, 0)
    assert [part.objects for part in sample] == [6, 2, 1]
    assert len(sample[0].images[0].objects) == 30, "the others are still neighbours"
    assert sample == sample_objects(sets, 9, 0) != sample_objects(sets, 9, 1)
    assert sample_objects(sets, 41, 0) == sets
    result = run(tmp_path / "data", max_objects=9, prompts=("gt-box",))
    assert {name: counts.objects for name, counts in result.sets.items()} == {"a": 6, "b": 2, "c": 1}
    full, part = whole(run(tmp_path / "data", prompts=("gt-box",))), whole(result)
    assert full["c", "gt-box", "sam"] == part["c", "gt-box", "sam"], "a sample changes no object's figures"


def test_limit_and_smallest_area_are_kept_and_counted(tmp_path: Path) -> None:
    speck = {"id": 9, "image_id": 0, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
    crowd = square(8, iscrowd=1)
    folder = write_set(tmp_path / "a", [square(n, image=n) for n in range(5)] + [speck, crowd], pictures=5)
    part = read_truth(folder, min_area_fraction=0.005, limit=2)[0]
    assert (len(part.images), part.objects, part.small, part.crowd) == (2, 2, 1, 1)
    counts = SetCounts(images=2, objects=2, left_out_crowd=1, left_out_small=1, detections=None)
    assert run(folder, limit=2, min_area_fraction=0.005).sets == {"a": counts}
    assert run(folder, limit=1).sets["a"].objects == 2, "by default the smallest object counts"


def test_all_forms_of_segmentation_are_one_mask(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), dtype=np.uint8, order="F")
    mask[10:40, 10:40] = 1
    compressed = coco_mask.encode(mask)
    compressed = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    changes = np.flatnonzero(np.diff(np.concatenate(([0], mask.ravel(order="F"))))).tolist()
    counts = np.diff([0, *changes, mask.size]).tolist()
    forms = [SQUARE, compressed, {"size": [60, 80], "counts": counts}]
    folder = write_set(tmp_path / "a", [square(n, segmentation=form) for n, form in enumerate(forms)])
    for item in read_truth(folder)[0].images[0].objects:
        assert ReferenceMask(item.mask()).compare(mask.astype(bool)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"id": 1, "image_id": 7, "segmentation": SQUARE}, "7 is missing or unknown"),
        ({"id": 1, "image_id": 0}, "'segmentation' is missing"),
        (square(1, segmentation=[]), "expected a segmentation"),
        (square(1, segmentation={"size": [6, 8], "counts": "1"}), "expected a mask of"),
        (square(1, segmentation=None), "got None"),
        (square(1, segmentation={"size": [60, 80], "counts": [-1, 4801]}), "run lengths that add up to the image"),
        (square(1, segmentation={"size": [60, 80], "counts": "1"}), "run lengths that add up to the image"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path: Path, annotation: dict[str, Any], reason: str) -> None:
    folder = write_set(tmp_path / "a", [square(0), annotation])
    with pytest.raises(AnnotationError, match=r"instances\.json: annotations\[1\]: expected .*" + reason):
        read_truth(folder)


def test_a_bad_folder_file_or_picture_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(AnnotationError, match="found none"):
        read_truth(tmp_path / "nowhere")
    (data / "b" / "instances.json").write_text("{")
    with pytest.raises(AnnotationError, match="not valid JSON"):
        run(data)
    (data / "b" / "instances.json").write_text("[]")
    with pytest.raises(AnnotationError, match="expected COCO instances"):
        run(data)
    (data / "a" / "images" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"1\.png: cannot read"):
        run(data / "a")
    Image.new("RGB", (8, 6)).save(data / "a" / "images" / "1.png")
    with pytest.raises(ImageError, match="expected the declared 80 x 60 pixels, the upright image has 8 x 6$"):
        run(data / "a")


@pytest.mark.parametrize("name", ["box", "noisy-box-0", "noisy-box-2", "noisy-box-x", "0-points", "points", ""])
def test_an_unknown_kind_of_prompt_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="prompts: expected gt-box"):
        PromptKind.parse(name)


def test_kinds_of_prompts() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:40, 20:50] = True
    assert PromptKind.parse("gt-box").draw(mask, prompt_rng(0), 5).tolist() == [[20, 10, 50, 40]]
    assert PromptKind.parse("noisy-box").noise == 0.4
    boxes = PromptKind.parse("noisy-box-0.2").draw(mask, prompt_rng(0), 50)
    assert boxes.shape == (50, 4)
    assert np.abs(boxes - [20, 10, 50, 40]).max() <= 0.2 * 30
    points = PromptKind.parse("10-points").draw(mask, prompt_rng(0), 5)
    assert points.shape == (5, 10, 2)
    assert mask[points[..., 1].astype(int), points[..., 0].astype(int)].all()


def test_hq_sam_of_a_published_base_is_the_published_one_unless_it_is_given() -> None:
    methods = "sam", "hq-sam"
    assert method_config(RefinerConfig(model="vit_b"), methods).hq_uri == "published"
    assert method_config(RefinerConfig(model="vit_b", hq_uri="hq.pth"), methods).hq_uri == "hq.pth"
    with pytest.raises(ConfigError, match=r"hq-sam needs the URI of its weights for vit_b \(--hq\), got none"):
        method_config(RefinerConfig(model="vit_b", checkpoint_uri="mine.pth"), methods)


def test_missing_weights_are_named_before_the_sets_are_read(tmp_path: Path) -> None:
    settings = EvaluationConfig(refiner=RefinerConfig(model="vit_b"), methods=("sam",))
    with pytest.raises(ConfigError, match="run: stable-sam models get vit_b "):
        read_sets([tmp_path / "nowhere"], settings)


def test_methods_and_sets_are_checked(data: Path) -> None:
    expected = "methods: expected at least one of sam, hq-sam, stable-sam, with or without box, got"
    for methods, got in ((("sam", "magic"), "magic"), (("box",), "box"), ((), "none")):
        with pytest.raises(ConfigError, match=f"{expected} {got}"):
            run(data, methods=methods)
    with pytest.raises(ConfigError, match="needs a plugin"):
        run(data, refiner=RefinerConfig(model="tiny", plugin=False))
    with pytest.raises(ConfigError, match=r"hq-sam needs the URI of its weights for tiny \(--hq\), got none"):
        run(data, methods=("hq-sam",))
    with pytest.raises(ConfigError, match="prompts: expected at least one"):
        run(data, prompts=())
    with pytest.raises(ConfigError, match="got a more than once"):
        evaluate([data, data / "a"], EvaluationConfig(refiner=TINY))
    with pytest.raises(ConfigError, match="expected objects to evaluate"):
        run(data, min_area_fraction=0.9)
    with pytest.raises(ConfigError, match="expected the model nano"):
        run(data, size=128)
    for size in (0, -32, 32, 100):
        with pytest.raises(ConfigError, match=f"size: expected a multiple of 32 of at least 64 pixels, got {size}$"):
            run(data, refiner=RefinerConfig(model="nano"), size=size)


def test_command_prints_the_tables_and_writes_what_it_is_asked_for(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    files = ["--out", str(out), "--markdown", str(tmp_path / "t.md"), "--records", str(tmp_path / "r.parquet")]
    arguments = ["evaluate", "--data", str(data), "--model", "tiny", "--prompts", "gt-box,1-point", *files]
    answer = CliRunner().invoke(app, [*arguments, "--random-prompts", "2"], catch_exceptions=False)
    assert answer.exit_code == 0
    assert "all objects: 4 objects" in answer.stdout
    result = json.loads(out.read_text())
    assert result["settings"]["random_prompts"] == 2
    assert result["model"]["weights_sha256"].keys() == {"base", "plugin"}
    lines = [score for score in result["scores"] if score["slice"] == "all"]
    assert len(lines) == 3 * 2 * 2
    table = (tmp_path / "t.md").read_text()
    line = next(s for s in lines if (s["set"], s["prompts"], s["method"]) == ("a", "1-point", "stable-sam"))
    assert f"| 1-point | Stable-SAM | {line['miou']['value']:.3f} [{line['miou']['low']:.3f}, " in table
    assert "## alpha_1 and how good the prompts are" in table
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/r.parquet'").fetchall() == [(4 * 2 * (1 + 2),)]


def test_an_actor_s_shares_give_a_plain_run_s_figures(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_actor, "SHARE_IMAGES", 1)
    settings = EvaluationConfig(refiner=TINY, prompts=KINDS, random_prompts=3, resamples=50)
    sets = read_sets([data], settings)
    shares = list(evaluation_actor.split_sets(sets))
    assert [share.shard_id for share in shares[:2]] == [
        f"a, images {name} to {name}" for name in ("images/0.png", "1.png")
    ]
    plan = ActorPlan(actors=1, num_cpus=1, num_gpus=0, threads=torch.get_num_threads())
    actor = evaluation_actor.EvaluationActor(settings, plan)
    assert actor.load() is True
    scored = sorted((actor.work(share) for share in reversed(shares)), key=lambda share: share.number)
    tables = [table for share in scored for table in share.tables]
    plain, records = evaluate([data], settings)
    assert evaluation_of(tables, scored[0].facts, sets, settings) == (plain, records)
    (data / "a" / "images" / "1.png").unlink()
    assert isinstance(actor.work(shares[1]), ImageError)
    without = EvaluationConfig(refiner=RefinerConfig(model="tiny", plugin=False))
    assert isinstance(evaluation_actor.EvaluationActor(without, plan).load(), ConfigError)


def test_ids_that_begin_again_are_still_objects_of_their_own(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "a", [square(1), square(1, image=1), square(1, image=2)], pictures=3)
    result = run(folder, prompts=("noisy-box", "1-point"))
    assert {score.objects for score in result.scores if score.slice == WHOLE_SLICE} == {3}
    assert result.skipped == {}


def test_a_place_that_cannot_be_written_is_named_before_work_starts(data: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--data", str(data), "--model", "tiny", "--out", str(tmp_path / "r.json")]
    answer = CliRunner().invoke(app, [*arguments, "--markdown", str(tmp_path / "no" / "t.md")])
    assert isinstance(answer.exception, StorageError)
    assert str(answer.exception).endswith("no/t.md: expected a file in a folder that exists and can be written")
    assert not (tmp_path / "r.json").exists()
