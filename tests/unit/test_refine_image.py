"""`stable-sam refine-image`, through the command line's own entry point."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import main
from stable_sam.config import RefinerConfig
from stable_sam.records import Prompt
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stable-sam", "refine-image", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_writes_the_refiners_mask_and_an_overlay_and_prints_the_scores(monkeypatch, capsys, photo, tmp_path):
    out = tmp_path / "mask.png"
    prompt = ("--box", 5, 5, 40, 30, "--point", 20, 10, 1, "--point", 50, 35, 0)
    assert run(monkeypatch, photo, *prompt, "--model", "tiny", "--out", out, "--prompt-id", "7") == 0
    printed = capsys.readouterr().out
    expected = Refiner(RefinerConfig(model="tiny")).refine_image(
        Image.open(photo),
        [
            Prompt(
                prompt_id="7",
                image_id="i",
                image_uri="u",
                box_xyxy=(5, 5, 40, 30),
                points_xy=((20, 10), (50, 35)),
                point_labels=(1, 0),
            )
        ],
    )[0]
    assert f"{expected.prompt_stability:.3f}" in printed
    assert f"{expected.predicted_iou:.3f}" in printed
    mask = np.array(Image.open(out))
    np.testing.assert_array_equal(mask, decode_mask(expected.mask_size, expected.mask_counts) * np.uint8(255))
    assert np.array(Image.open(tmp_path / "mask_overlay.png")).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny"], "expected a box, points, or both, got neither"),
        (["--model", "tiny", "--box", "0.1", "0.1", "0.5", "0.5"], "the box looks normalised"),
        (["--model", "tiny", "--box", "70", "5", "90", "30"], "expected a box in 60 x 40 pixels"),
        (["--model", "tiny", "--point", "5", "6"], "--point: expected X Y LABEL, three numbers, got"),
        (["--model", "huge", "--box", "5", "5", "40", "30"], "refiner.model"),
        (["--model", "vit_b", "--box", "5", "5", "40", "30"], "run: stable-sam models get vit_b"),
    ],
)
def test_mistakes_get_one_line(monkeypatch, capsys, photo, tmp_path, arguments, message):
    assert run(monkeypatch, photo, "--out", tmp_path / "mask.png", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "mask.png").exists()


@pytest.mark.parametrize("point", [("5", "6"), ("5,6",), ()])
def test_an_incomplete_point_takes_nothing_else_with_it(monkeypatch, capsys, photo, tmp_path, point):
    after = ("--point", *point, "--out", tmp_path / "mask.png", "--model", "tiny")
    assert run(monkeypatch, photo, *after) == 2
    expected = f"error: --point: expected X Y LABEL, three numbers, got {' '.join(point)!r}\n"
    assert capsys.readouterr().err == expected
    assert run(monkeypatch, "--out", tmp_path / "mask.png", "--point", *point, photo) == 2
    assert capsys.readouterr().err == expected


def test_a_point_may_be_written_with_commas(monkeypatch, photo, tmp_path):
    out = tmp_path / "mask.png"
    assert run(monkeypatch, "--point", "5,6,1", "--point", "-0.0 7", "0", photo, "--model", "tiny", "--out", out) == 0
    assert out.exists()


def test_a_missing_photo_and_a_lossy_mask_are_refused(monkeypatch, capsys, photo, tmp_path):
    box = ("--box", 5, 5, 40, 30, "--model", "tiny")
    assert run(monkeypatch, tmp_path / "none.jpg", *box, "--out", tmp_path / "mask.png") == 2
    assert "none.jpg" in capsys.readouterr().err
    assert run(monkeypatch, photo, *box, "--out", tmp_path / "mask.jpg") == 2
    assert "mask.jpg: expected the name of a .png file" in capsys.readouterr().err
