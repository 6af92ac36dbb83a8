"""What the decoder looks at, and its picture, on the tiny random model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli import main
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, PromptError
from stable_sam.explain.drawing import LARGEST_RADIUS, MARGIN, OWN_RGB, PANEL_SIDE, SAMPLED_RGB, TITLE_HEIGHT, draw
from stable_sam.explain.explanation import Explanation, attention_weights, explain
from stable_sam.images.frames import Frame
from stable_sam.records import Prompt
from stable_sam.refining.refiner import Refiner

BOX = {"box_xyxy": (5.0, 5.0, 40.0, 30.0)}
POINTS = {"points_xy": ((20.0, 10.0), (50.0, 35.0)), "point_labels": (1, 0)}
ONE_POINT = {"points_xy": ((20.0, 10.0),), "point_labels": (1,)}
HEIGHT, WIDTH = 40, 60


def prompt_of(**parts) -> Prompt:
    return Prompt(prompt_id="7", image_id="i", image_uri="u", **parts)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(RefinerConfig(model="tiny", jitter_count=2))


@pytest.fixture(scope="module")
def explanation(refiner, pixels) -> Explanation:
    return explain(refiner, pixels, prompt_of(**BOX))


@pytest.mark.parametrize("parts", [BOX, POINTS, ONE_POINT, {**BOX, **POINTS}])
def test_both_answers_are_the_rows_that_the_pipeline_would_write_after_the_first_pass(refiner, pixels, parts):
    prompt = prompt_of(**parts)
    found = explain(refiner, pixels, prompt)
    once = Refiner(refiner.config.model_copy(update={"second_pass": "off"}))
    assert [found.stable_sam.refined] == once.refine_image(pixels, [prompt])
    plain = Refiner(RefinerConfig(model="tiny", jitter_count=2, plugin=False))
    assert [found.sam.refined] == plain.refine_image(pixels, [prompt])
    assert found.stable_sam.refined.dsp_weight == pytest.approx(found.alpha[0])
    assert found.sam.mask.shape == (HEIGHT, WIDTH)
    assert found.sam.mask.sum() == found.sam.refined.area


def test_a_small_object_is_explained_in_its_tile(refiner, monkeypatch):
    monkeypatch.setattr(Frame, "leaves_window", lambda frame, logits: False)  # the random model's masks are everywhere
    image = np.random.default_rng(1).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    prompt = prompt_of(box_xyxy=(140.0, 90.0, 152.0, 99.0))
    found = explain(refiner, image, prompt)
    once = Refiner(refiner.config.model_copy(update={"second_pass": "off"}))
    assert [found.stable_sam.refined] == once.refine_image(image, [prompt])
    x, y, width, height = found.stable_sam.refined.tile_xywh
    np.testing.assert_array_equal(found.pixels, image[y : y + height, x : x + width])
    assert found.stable_sam.mask.shape == (height, width)
    assert found.stable_sam.mask.sum() == found.stable_sam.refined.area
    assert found.prompt.box_xyxy == (140 - x, 90 - y, 152 - x, 99 - y)
    assert draw(found).size
    inside = found.positions_xy().reshape(-1, 2)
    assert inside.min() >= 0
    assert (inside.max(axis=0) <= (width, height)).all()


@pytest.mark.parametrize("parts", [BOX, ONE_POINT])
def test_the_attention_is_what_the_module_used(refiner, pixels, parts):
    passes = []
    attention = refiner.model.host.attention
    handle = attention.register_forward_hook(lambda m, _, inputs, out: passes.append((inputs, out)), with_kwargs=True)
    try:
        found = explain(refiner, pixels, prompt_of(**parts))
    finally:
        handle.remove()
    for answer in (found.sam, found.stable_sam):
        assert answer.attention.sum() == pytest.approx(1, abs=1e-5)
        rows = []
        for inputs, out in passes:
            if len(out) > 1:  # the jittered prompts
                continue
            weights = attention_weights(attention, inputs["q"], inputs["k"])
            values = attention.v_proj(inputs["v"]).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            again = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
            torch.testing.assert_close(again, out)
            rows += list(weights[0].mean(dim=0).flatten(1))
        assert any(np.allclose(row.detach().numpy(), answer.attention.ravel()) for row in rows)
    assert not np.allclose(found.sam.attention, found.stable_sam.attention)


def test_the_attention_is_that_of_the_token_whose_mask_is_returned(refiner, pixels, monkeypatch):
    seen = []
    original = attention_weights

    def numbered(module, q, k):
        weights = original(module, q, k)
        marked = torch.arange(weights.shape[2], dtype=weights.dtype)[None, None, :, None].expand_as(weights)
        seen.append(marked)
        return marked

    monkeypatch.setattr("stable_sam.explain.explanation.attention_weights", numbered)
    assert explain(refiner, pixels, prompt_of(**BOX)).sam.attention.max() == 1, "the single-mask token"
    assert explain(refiner, pixels, prompt_of(**ONE_POINT)).sam.attention.max() in (2, 3, 4), "a multimask token"
    assert len(seen) == 4


def test_the_model_is_left_as_it_was(refiner, pixels):
    host = refiner.model.host
    host.enabled = False
    try:
        explain(refiner, pixels, prompt_of(**BOX))
        assert not host.enabled
    finally:
        host.enabled = True
    with pytest.raises(PromptError, match="expected a box, points, or both"):
        explain(refiner, pixels, prompt_of())
    assert host.enabled
    assert not host.attention._forward_hooks


def test_without_a_plugin_there_is_nothing_to_compare(pixels):
    with pytest.raises(ConfigError, match="expected a plugin to compare tiny with, got none"):
        explain(Refiner(RefinerConfig(model="tiny", plugin=False)), pixels, prompt_of(**BOX))


def test_positions_are_original_pixels(explanation):
    places = explanation.positions_xy()
    assert places.shape == (4, 4, 2)
    # 64 x 64 input pixels, 60 x 40 picture in the upper 64 x 43, cells of 16.
    np.testing.assert_allclose(places[1, 2], (40 * 60 / 64, 24 * 40 / 43))
    assert places[3, 0, 1] > HEIGHT, "the last row of cells lies in the padding"
    offsets = np.zeros((2, 4, 4), np.float32)
    offsets[0, 1, 2], offsets[1, 1, 2], offsets[0, 0, 3] = 0.5, -1, 9
    moved = explanation.positions_xy(offsets)
    np.testing.assert_allclose(moved[1, 2] - places[1, 2], (8 * 60 / 64, -16 * 40 / 43))
    np.testing.assert_allclose(moved[0, 3], places[0, 3], err_msg="outside the grid the border is read")


PANEL_HEIGHT = PANEL_SIDE * HEIGHT // WIDTH


def panel(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    y = MARGIN + row * (TITLE_HEIGHT + PANEL_HEIGHT + MARGIN) + TITLE_HEIGHT
    x = MARGIN + column * (PANEL_SIDE + MARGIN)
    return picture[y : y + PANEL_HEIGHT, x : x + PANEL_SIDE]


def test_six_different_panels(explanation):
    picture = draw(explanation)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * (PANEL_HEIGHT + TITLE_HEIGHT) + 3 * MARGIN, 3 * PANEL_SIDE + 4 * MARGIN, 3)
    panels = [panel(picture, row, column) for row in range(2) for column in range(3)]
    assert len({content.tobytes() for content in panels}) == 6
    assert all(content.std() > 5 for content in panels)
    assert (picture[MARGIN : MARGIN + TITLE_HEIGHT] < 128).any(), "titles"


def test_a_plugin_that_does_nothing_gives_sams_picture(explanation):
    picture = draw(replace(explanation, alpha=(0.0, 1.0), stable_sam=explanation.sam))
    np.testing.assert_array_equal(panel(picture, 1, 2), panel(picture, 1, 1))
    np.testing.assert_array_equal(panel(picture, 0, 2), panel(picture, 0, 1))


def extent(content: np.ndarray, rgb: tuple[int, int, int]) -> int:
    """Columns that circles of a colour cover, by its hue."""
    strongest = int(np.argmax(rgb))
    others = np.delete(content.astype(int), strongest, axis=2)
    return int((content[..., strongest] > others.max(axis=2) + 20).any(axis=0).sum())


def test_radius_and_place_follow_attention_and_alpha(explanation):
    attention = np.zeros((4, 4), np.float32)
    attention[1, 2] = 1
    halved = attention / 2
    sam, stable_sam = explanation.sam, explanation.stable_sam
    black = replace(
        explanation,
        pixels=np.zeros_like(explanation.pixels),
        prompt=prompt_of(**ONE_POINT),
        sam=replace(sam, attention=attention, mask=np.zeros_like(sam.mask)),
        stable_sam=replace(stable_sam, attention=halved, mask=np.zeros_like(sam.mask)),
        alpha=(0.75, 0.25),
        offsets=np.stack([np.full((4, 4), -2, np.float32), np.zeros((4, 4), np.float32)]),
    )
    picture = draw(black)
    diameter = 2 * LARGEST_RADIUS * PANEL_SIDE
    assert extent(panel(picture, 1, 1), OWN_RGB) == pytest.approx(diameter, abs=3)
    assert extent(panel(picture, 1, 1), SAMPLED_RGB) == 0
    assert extent(panel(picture, 1, 2), OWN_RGB) == pytest.approx(diameter / 8, abs=3)
    assert extent(panel(picture, 1, 2), SAMPLED_RGB) == pytest.approx(diameter * 3 / 8, abs=3)
    x = black.positions_xy()[1, 2, 0] / WIDTH * PANEL_SIDE
    two_cells = 32 / 64 * PANEL_SIDE
    left = panel(picture, 1, 2)[:, : round(x - two_cells / 2)]
    assert extent(left, OWN_RGB) == 0
    assert extent(left, SAMPLED_RGB) > 0


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (90, 60)])
def test_pictures_of_any_shape(refiner, size):
    pixels = np.full((*size, 3), 90, np.uint8)
    prompt = prompt_of(box_xyxy=(0.0, 0.0, float(size[1]), float(size[0])))
    assert draw(explain(refiner, pixels, prompt)).std() > 0


@pytest.fixture
def photo(tmp_path, pixels) -> Path:
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stable-sam", "explain", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.parametrize(("name", "kind"), [("seen.png", "PNG"), ("seen.jpg", "JPEG")])
def test_the_command_writes_the_picture(monkeypatch, capsys, photo, tmp_path, name, kind):
    out = tmp_path / name
    prompt = ("--box", 5, 5, 40, 30, "--point", 20, 10, 1)
    assert run(monkeypatch, photo, *prompt, "--model", "tiny", "--out", out) == 0
    assert capsys.readouterr().out.startswith("alpha_1 0.")
    with Image.open(out) as written:
        assert written.format == kind
        assert np.asarray(written).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "--model", "tiny"], "expected a box, points, or both, got neither"),
        (["photo.png", "--point", "5", "6"], "--point: expected X Y LABEL, three numbers, got"),
        (["none.jpg", "--box", "5", "5", "40", "30"], "none.jpg"),
        (["photo.png", "--box", "5", "5", "40", "30", "--config", "plain.yaml"], "expected a plugin to compare tiny"),
        (["photo.png", "--box", "5", "5", "40", "30", "--out", "seen.tif"], "expected the name of a .png or .jpg file"),
    ],
)
def test_mistakes_get_one_line(monkeypatch, capsys, photo, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text("refiner: {model: tiny, plugin: false}\n")
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert not Path("explain.png").exists()
