"""The HTML page of a real table: tiny model, three photographs, one prompt that failed."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.data.annotations import read_prompts
from stable_sam.data.planning import plan_run
from stable_sam.data.query import query
from stable_sam.data.table import publish
from stable_sam.errors import NotFoundError
from stable_sam.identity import model_identity
from stable_sam.refiner import Refiner
from stable_sam.report import write_report
from stable_sam.shard_job import refine_shard


class Page(HTMLParser):
    """Cards in order, each with its outcome and its pictures, and every address the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[tuple[str, int]] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "article":
            self.cards.append(((values["class"] or "").removeprefix("card "), 0))
        if tag == "img" and self.cards:
            outcome, pictures = self.cards[-1]
            self.cards[-1] = (outcome, pictures + 1)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value is not None]


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
        "categories": [{"id": 1, "name": "<b>thing</b>"}],
    }
    document["annotations"][0]["bbox"] = [5, 5, -40, 30]
    document["annotations"][3]["bbox"] = [20, 10, 1e9, -5]
    annotations = images.parent / "annotations.json"
    annotations.write_text(json.dumps(document))
    config = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2))
    manifest = plan_run(
        read_prompts(str(annotations), images_uri=str(images)),
        annotations_uri=str(annotations),
        images_uri=str(images),
        output_uri=str(images.parent / "table"),
        config=config,
        model=model_identity(config.refiner),
        logical_date=None,
    )
    assert manifest is not None
    refiner = Refiner(config.refiner, config.routing)
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)
    return manifest.output_uri


def test_every_prompt_has_a_card_worst_first(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert write_report(table, str(out)) == 9
    page = Page(out.read_text())
    outcomes = [outcome for outcome, _ in page.cards]
    assert outcomes == sorted(outcomes, key=["failed", "reject", "review", "accept"].index)
    assert page.cards[:2] == [("failed", 1)] * 2, "a failed row shows its weak prompt without a mask"
    assert [pictures for _, pictures in page.cards[2:]] == [2] * 7
    reason = query(table, "SELECT error FROM masks WHERE status = 'failed'").to_pylist()[0]["error"]
    assert reason.split(",")[0] in out.read_text()


def box_pixels(address: str) -> int:
    """Yellow pixels: JPEG thins the colour of the dashed line, but nothing else in these pictures has any of it."""
    data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    red, green, blue = np.moveaxis(np.array(Image.open(io.BytesIO(data))).astype(int), 2, 0)
    return int((np.minimum(red, green) - blue > 40).sum())


def test_the_box_of_a_failed_row_is_drawn(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(table, str(out))
    pictures = Page(out.read_text()).addresses
    failed, with_box = pictures[:2], query(table, "SELECT box_xyxy FROM masks WHERE status = 'failed'").to_pylist()
    assert [row["box_xyxy"] for row in with_box] == [[5, 5, -35, 35], [20, 10, 1e9 + 20, 5]]
    assert all(box_pixels(picture) > 50 for picture in failed)
    assert box_pixels(pictures[3]) < 10, "the colour is the box's alone: a mask's picture has none"


def test_the_page_needs_nothing_else_and_trusts_nothing(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(table, str(out))
    text = out.read_text()
    assert all(address.startswith("data:image/jpeg;base64,") for address in Page(text).addresses)
    assert not re.search(r"url\(|@import|<script", text)
    assert "default-src 'none'" in text, "no browser runs or fetches what might slip in"
    assert "<b>thing</b>" not in text
    assert "&lt;b&gt;thing&lt;/b&gt;" in text


def test_what_is_left_out_is_said(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert write_report(table, str(out), limit=4) == 4
    assert "4 of 9 prompts shown" in out.read_text()
    assert write_report(table, str(out), images_max=1) == 3
    assert "3 of 9 prompts shown" in out.read_text()


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
    assert {pictures for _, pictures in Page(out.read_text()).cards} == {0}
    assert out.read_text().count("No picture: ") == 9


def test_the_worst_masks_are_explained_by_the_model_that_made_them(table: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    tiny = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=2))
    routes = query(table, "SELECT route FROM masks WHERE status = 'ok'").to_pylist()
    assert sum(row["route"] != "accept" for row in routes) > 1
    write_report(table, str(out), explain=1, config=tiny)
    cards = Page(out.read_text()).cards
    first_with_mask = sum(outcome == "failed" for outcome, _ in cards)
    assert [pictures for _, pictures in cards[first_with_mask:]] == [3] + [2] * (len(cards) - first_with_mask - 1)
    assert "Not explained" not in out.read_text()

    plain = RunConfig(refiner=RefinerConfig(model="tiny", plugin=False))
    write_report(table, str(out), explain=1, config=plain)
    assert max(pictures for _, pictures in Page(out.read_text()).cards) == 2
    [note] = re.findall(r"Not explained: (.*?)</div>", out.read_text())
    assert re.fullmatch(r"tiny\+plugin in float32, weights \w+ made this mask, and .* given tiny in .*", note)


def test_a_report_without_explanations_needs_no_torch(table: str, tmp_path: Path) -> None:
    code = (
        "import sys; from stable_sam.report import write_report;"
        f"write_report({table!r}, {str(tmp_path / 'report.html')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_no_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="expected a masks table"):
        write_report(str(tmp_path / "nothing"), str(tmp_path / "report.html"))
