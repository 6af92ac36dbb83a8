"""The HTML page of a real table: tiny model, three photographs, one prompt that failed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import NotFoundError
from stable_sam.explain import drawing, explanation
from stable_sam.formats.read import read_prompts
from stable_sam.images.decode import DecodedImage
from stable_sam.records import Prompt
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.report.digest import digest
from stable_sam.report.explanations import explanations
from stable_sam.report.figures import Figures, figures
from stable_sam.report.risk import RiskCoverage, risk_coverage
from stable_sam.report.write import write_report
from stable_sam.rle import decode_mask
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.table.query import connected, query
from stable_sam.table.schema import SHARD_SCHEMA
from stable_sam.table.views import OUTCOMES
from tests.report_table import answer, page_data, page_pictures, picture, publish_night

HOSTILE = "</script><b>thing</b><!-- <script> | x"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "images"
    folder.mkdir()
    for number, color in enumerate(["red", "gray", "navy"]):
        picture = Image.new("RGB", (80, 60), "white")
        ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=color)
        picture.save(folder / f"photo{number}.png")
    return folder


@pytest.fixture(scope="module")
def table(images: Path) -> str:
    weak: list[dict[str, Any]] = [{"bbox": [5, 5, 40, 30]}, {"bbox": [30, 20, 45, 38]}, {"points": [[40, 30, 1]]}]
    document = {
        "images": [{"id": n, "file_name": f"photo{n}.png", "width": 80, "height": 60} for n in range(3)],
        "annotations": [
            {"id": 10 * image + n, "image_id": image, "category_id": 1, **prompt}
            for image in range(3)
            for n, prompt in enumerate(weak)
        ],
        "categories": [{"id": 1, "name": HOSTILE}],
    }
    document["annotations"][0]["bbox"] = [5, 5, -40, 30]
    document["annotations"][3]["bbox"] = [20, 10, 1e9, -5]
    annotations = images.parent / "annotations.json"
    annotations.write_text(json.dumps(document))
    config = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2))
    manifest = plan_run(
        read_prompts(str(annotations), images_uri=str(images)),
        RunRequest(
            annotations_uri=str(annotations),
            images_uri=str(images),
            output_uri=str(images.parent / "table"),
            config=config,
        ),
    )
    assert manifest is not None
    refiner = Refiner(config.refiner, config.routing)
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)
    return manifest.output_uri


def test_every_prompt_has_an_entry_worst_first(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert write_report(table, str(out)) == 9
    entries = page_data(out)
    outcomes = [entry["outcome"] for entry in entries]
    assert outcomes == sorted(outcomes, key=OUTCOMES.index)
    assert outcomes[:3].count("failed") == 2
    rows = {row["prompt_id"]: row for row in query(table, "SELECT * FROM masks").to_pylist()}
    assert len(rows) == 9
    for entry in entries:
        row = rows[entry["id"]]
        if entry["outcome"] == "failed":
            assert entry["reason"] == row["error"]
            assert "mask" not in entry
        else:
            assert entry["mask"] == {"size": row["mask_size"], "counts": row["mask_counts"]}
            assert entry["scores"]["predicted_iou"] == pytest.approx(row["predicted_iou"], abs=1e-5)


def test_a_picture_is_stored_once_for_all_its_prompts(table: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(table, str(out))
    names = page_pictures(out)
    assert len(names) == 3
    for entry in page_data(out):
        stored = np.array(Image.open(io.BytesIO(base64.b64decode(names[entry["picture"]]))))
        original = np.array(Image.open(entry["image"]))
        assert stored.shape == original.shape
        assert np.abs(stored.astype(int) - original).mean() < 6, "the picture of this prompt and not another one's"


def test_a_small_object_of_a_large_image_gets_a_crop_and_a_large_mask_is_reduced(tmp_path: Path) -> None:
    uri = picture(tmp_path / "images/large.png", 4000, 3000)
    small, wide = np.zeros((3000, 4000), bool), np.zeros((3000, 4000), bool)
    small[1500:1540, 2000:2060] = True
    wide[200:2800, 300:3700] = True
    wide[1000:1400, 1000:1500] = False
    prompts = [
        Prompt(prompt_id="small", image_id="1", image_uri=uri, box_xyxy=(1990, 1490, 2070, 1550)),
        Prompt(prompt_id="wide", image_id="1", image_uri=uri, box_xyxy=(300, 200, 3700, 2800)),
    ]
    tile = {"view": "tile", "tile_xywh": (1600, 1200, 800, 800)}
    table = publish_night(
        tmp_path, prompts, [answer("small", small, gain_over_box=-0.02, **tile), answer("wide", wide)]
    )
    out = tmp_path / "report.html"
    write_report(table, str(out))
    entries = {entry["id"]: entry for entry in page_data(out)}
    views = [entries[name].get("view") for name in ("small", "wide")]
    assert views == ["a tile of 800 x 800 pixels at 1600, 1200", None]
    assert [entries[name].get("gain") for name in ("small", "wide")] == [-0.02, None]
    assert entries["wide"]["frame"] == [0, 0, 4000, 3000]
    assert entries["small"]["frame"] == [1942, 1442, 2118, 1598]
    sizes = {name: Image.open(io.BytesIO(base64.b64decode(data))).size for name, data in page_pictures(out).items()}
    assert sizes == {entries["wide"]["picture"]: (1024, 768), entries["small"]["picture"]: (176, 156)}
    mask = entries["wide"]["mask"]
    assert mask["size"] == [1200, 1600]
    reduced = decode_mask(tuple(mask["size"]), mask["counts"])
    rows, columns = (np.arange(1200) * 2.5 + 1).astype(int), (np.arange(1600) * 2.5 + 1).astype(int)
    true = wide[rows][:, columns]
    assert (reduced & true).sum() / (reduced | true).sum() > 0.995


def test_a_box_that_is_far_outside_is_drawn_near(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(table, str(out))
    boxes = {entry["weak"]: entry["box"] for entry in page_data(out) if entry["outcome"] == "failed"}
    assert boxes == {"box (5, 5, -35, 35)": [-8, 5, 5, 35], "box (20, 10, 1e+09, 5)": [20, 5, 88, 10]}


def test_the_page_needs_nothing_else_and_trusts_nothing(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(table, str(out))
    text = out.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|<link|<iframe", text)
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    trusted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:;"), "no browser fetches what might slip in"
    assert f"script-src 'sha256-{trusted}'" in policy, "or runs it"
    assert HOSTILE not in text
    assert {entry["category"] for entry in page_data(out)} == {HOSTILE}


def test_what_is_left_out_is_said(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert write_report(table, str(out), limit=4) == 4
    assert "4 of 9 prompts: the worst" in out.read_text()
    assert write_report(table, str(out), images_max=1) == 3
    assert "3 of 9 prompts: the worst" in out.read_text()


def test_a_large_table_is_shown_by_its_worst_and_a_random_sample(tmp_path: Path) -> None:
    uri = picture(tmp_path / "images/one.png", 40, 30)
    names = [f"p{k:03}" for k in range(100)]
    prompts = [Prompt(prompt_id=name, image_id="1", image_uri=uri, box_xyxy=(5, 5, 20, 20)) for name in names]
    answers = [answer(name, predicted_iou=k / 100, route="accept") for k, name in enumerate(names)]
    table = publish_night(tmp_path, prompts, answers)
    out = tmp_path / "report.html"

    def sample(seed: int) -> tuple[list[str], list[str]]:
        assert write_report(table, str(out), limit=20, seed=seed) == 20
        entries = page_data(out)
        return [entry["id"] for entry in entries], [
            entry["id"] for entry in sorted(entries, key=lambda entry: entry["draw"])
        ][:5]

    shown, drawn = sample(0)
    worst = [name for name in names if name not in drawn][:15]
    assert shown == sorted([*worst, *drawn])
    assert np.mean([int(name[1:]) for name in drawn]) > 20, "the sample is not of the worst"
    assert sample(0) == (shown, drawn), "the same again with the same seed"
    assert sample(1)[1] != drawn


def test_what_the_newest_run_changed_is_measured_and_shown(tmp_path: Path) -> None:
    uri = picture(tmp_path / "images/one.png", 40, 30)
    left, right = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    left[5:25, 5:20] = True
    right[5:25, 10:20] = True
    names = [f"p{k:03}" for k in range(40)]

    def night(x1: float) -> list[Prompt]:
        boxes = [(5.0, 5.0, x1 if name in ("p030", "p031") else 20.0, 25.0) for name in names]
        return [
            Prompt(prompt_id=name, image_id="1", image_uri=uri, box_xyxy=box)
            for name, box in zip(names, boxes, strict=True)
        ]

    first = [answer(name, left, predicted_iou=k / 40, route="accept") for k, name in enumerate(names)]
    publish_night(tmp_path, night(20), first)
    second = [answer("p030", right, predicted_iou=0.9, route="accept"), answer("p031", left, predicted_iou=0.9)]
    table = publish_night(tmp_path, night(21), second)
    out = tmp_path / "report.html"
    write_report(table, str(out), limit=8)
    entries = {entry["id"]: entry for entry in page_data(out)}
    assert entries["p030"]["change"] == pytest.approx(1 / 3)
    assert entries["p030"]["changed_from"] == 1
    before = entries["p030"]["before"]
    assert np.array_equal(decode_mask(tuple(before["size"]), before["counts"]), left)
    assert all("change" not in entry for name, entry in entries.items() if name not in ("p030", "p031"))
    write_report(table, str(out))
    assert {entry["id"]: entry["change"] for entry in page_data(out) if "change" in entry} == {
        "p030": pytest.approx(1 / 3),
        "p031": 0,
    }


def risk_of(table: str) -> RiskCoverage:
    with connected(table) as connection:
        return risk_coverage(connection)


def figures_of(table: str) -> Figures:
    with connected(table) as connection:
        return figures(connection)


def judged(tmp_path: Path, count: int, **fields: Any) -> str:
    uri = picture(tmp_path / "images/one.png", 8, 8)
    mask = np.ones((8, 8), bool)
    prompts, answers = [], []
    for k in range(count):
        prompts.append(
            Prompt(
                prompt_id=f"p{k:03}", image_id="1", image_uri=uri, box_xyxy=(0, 0, 8, 8),
                category="cat" if k % 4 else "dog",
            )
        )  # fmt: skip
        values = {name: value(k) if callable(value) else value for name, value in fields.items()}
        answers.append(answer(f"p{k:03}", mask, **values))
    return publish_night(tmp_path, prompts, answers)


def test_risk_and_coverage_of_ground_truth(tmp_path: Path) -> None:
    # predicted_iou sorts the ten bad masks last; prompt_stability sorts them first.
    table = judged(
        tmp_path,
        40,
        true_iou=lambda k: 0.9 if k < 30 else 0.5,
        predicted_iou=lambda k: 1 - k / 40,
        prompt_stability=lambda k: k / 40,
        box_agreement=lambda k: None if k == 3 else 0.5,
    )
    risk = risk_of(table)
    assert [curve.name for curve in risk.curves] == ["predicted_iou", "prompt_stability"]
    assert risk.measured
    assert "40 masks with a true mask" in risk.note
    good, bad = risk.curves
    assert good.points[29] == pytest.approx((0.75, 0))
    assert good.points[-1] == bad.points[-1] == pytest.approx((1, 0.25))
    assert bad.points[0] == pytest.approx((1 / 40, 1))
    assert good.area == pytest.approx(np.mean([0.0] * 30 + [k / (30 + k) for k in range(1, 11)]))


def test_risk_and_coverage_of_reviews(tmp_path: Path) -> None:
    table = judged(tmp_path, 24, predicted_iou=lambda k: 1 - k / 24)
    half = np.ones((8, 8), bool)
    half[:, 4:] = False
    uri = str(tmp_path / "images/one.png")
    prompts, answers = [], []
    for k in range(24):
        prompts.append(Prompt(prompt_id=f"p{k:03}", image_id="1", image_uri=uri, box_xyxy=(0, 0, 8, 7)))
        verdict, mask = (
            ("confirmed", np.ones((8, 8), bool)) if k < 12 else ("corrected", half) if k < 18 else ("rejected", None)
        )
        answers.append(answer(f"p{k:03}", mask, status="reviewed", verdict=verdict, route="accept"))
    publish_night(tmp_path, prompts, answers)
    [curve] = risk_of(table).curves
    assert curve.points[11] == pytest.approx((0.5, 0))
    assert curve.points[-1] == pytest.approx((1, 0.5))
    found = figures_of(table)
    assert found.counts["reviewed"] == 24
    assert found.verdicts == {"confirmed": 12, "corrected": 6, "rejected": 6}
    out = tmp_path / "report.html"
    write_report(table, str(out))
    assert {entry["verdict"] for entry in page_data(out)} == set(found.verdicts)
    assert "12 confirmed, 6 corrected, 6 rejected" in " ".join(out.read_text().split())


def test_without_truth_the_calibration_tells_what_to_expect_or_it_is_not_known(tmp_path: Path) -> None:
    table = judged(tmp_path / "calibrated", 4, quality=lambda k: [0.9, 0.2, 0.7, 0.6][k])
    risk = risk_of(table)
    assert not risk.measured
    assert [point[1] for point in risk.curves[0].points] == pytest.approx([0.1, 0.2, 0.8 / 3, 0.4])
    plain = risk_of(judged(tmp_path / "plain", 4))
    assert plain.curves == ()
    assert "only 0 masks have a true mask or a review, and it takes 20" in plain.note


def test_figures_are_of_the_whole_table(tmp_path: Path) -> None:
    table = judged(tmp_path, 40, predicted_iou=lambda k: k / 40 + 0.5, route=lambda k: "accept" if k < 30 else "reject")
    found = figures_of(table)
    assert (found.total, found.counts["accept"], found.counts["reject"]) == (40, 30, 10)
    [one] = found.distributions
    assert (one.score.column, one.prompts, one.median) == ("predicted_iou", 40, pytest.approx(0.9875))
    assert sum(prompts for prompts, _ in one.bins) == 40
    assert sum(doubtful for _, doubtful in one.bins) == 10
    assert one.bins[-1] == (21, 10), "a score above 1 counts as 1"
    by = {group.by: group.rows for group in found.groups}
    assert [(row["name"], row["prompts"]) for row in by["category"]] == [("cat", 30), ("dog", 10)]
    assert [(row["name"], row["prompts"]) for row in by["outcome"]] == [("accept", 30), ("reject", 10)]


def test_the_digest_cannot_be_broken_by_names(table: str) -> None:
    text = digest(table)
    assert text.startswith("9 prompts: ")
    assert HOSTILE not in text
    assert text.count("&lt;/script&gt;&lt;b&gt;thing&lt;/b&gt;") == 1 + 9
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + 1 + 2 + 9
    assert [" failed " in line for line in tables[5:]] == [True] * 2 + [False] * 7
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables[3:]} == {6}


def test_a_picture_that_is_gone_or_changed_is_replaced_by_the_reason(table: str, images: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(images, kept)
    (images / "photo0.png").unlink()
    (images / "photo1.png").write_bytes(b"not a picture")
    Image.new("RGB", (30, 20)).save(images / "photo2.png")
    out = tmp_path / "report.html"
    try:
        assert write_report(table, str(out)) == 9
    finally:
        shutil.copytree(kept, images, dirs_exist_ok=True)
    assert page_pictures(out) == {}
    notes = {Path(entry["image"]).name: entry["note"] for entry in page_data(out)}
    assert "photo0.png" in notes["photo0.png"]
    assert "not an image" in notes["photo1.png"]
    assert notes["photo2.png"] == "the image is now 30 x 20, the mask was made at 80 x 60"


def test_the_worst_masks_are_explained_by_the_model_that_made_them(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    tiny = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2))
    routes = query(table, "SELECT route FROM masks WHERE status = 'ok'").to_pylist()
    assert sum(row["route"] != "accept" for row in routes) > 1
    write_report(table, str(out), explain=1, config=tiny)
    entries = page_data(out)
    first = next(entry for entry in entries if entry["outcome"] != "failed")
    assert [entry["id"] for entry in entries if "explanation" in entry] == [first["id"]]
    drawn = Image.open(io.BytesIO(base64.b64decode(page_pictures(out)[first["explanation"]])))
    assert drawn.width > 1000
    assert not any("unexplained" in entry for entry in entries)

    plain = RunConfig(refiner=RefinerConfig(model="tiny", plugin=False))
    write_report(table, str(out), explain=1, config=plain)
    [note] = [entry["unexplained"] for entry in page_data(out) if "unexplained" in entry]
    assert re.fullmatch(
        r"expected the model .*, tiny\+plugin in float32, weights \w+; the report was given tiny in .*", note
    )


def test_an_explanation_decodes_the_image_as_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that stretches a wide photograph needs more of its rows than one that pads it."""
    monkeypatch.setitem(BASES, "tiny", replace(BASES["tiny"], fit="stretch"))
    Image.new("RGB", (400, 200), "white").save(tmp_path / "wide.jpg")
    seen: list[DecodedImage] = []
    monkeypatch.setattr(explanation, "explain", lambda *_, decoded: seen.append(decoded))
    monkeypatch.setattr(drawing, "draw", lambda _: np.zeros((8, 8, 3), np.uint8))
    refiner = Refiner(RefinerConfig(model="tiny"))
    row = dict.fromkeys(SHARD_SCHEMA.names) | asdict(refiner.identity) | {
        "prompt_id": "a", "image_id": "w", "image_uri": str(tmp_path / "wide.jpg"), "box_xyxy": [5.0, 5.0, 99.0, 99.0],
        "points_xy": [], "point_labels": [], "status": "ok", "route": "review",
    }  # fmt: skip
    found = explanations([row], 1, RunConfig(refiner=refiner.config))
    assert not found.missing
    assert [decoded.scale for decoded in seen] == [1]


def test_a_report_without_explanations_needs_no_torch(table: str, tmp_path: Path) -> None:
    code = (
        "import sys; from stable_sam.report.write import write_report;"
        f"write_report({table!r}, {str(tmp_path / 'report.html')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_no_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="expected a masks table"):
        write_report(str(tmp_path / "nothing"), str(tmp_path / "report.html"))
