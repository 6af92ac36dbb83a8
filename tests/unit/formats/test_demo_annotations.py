"""The demo's weak annotations are usable as they are, and belong to the images that the wheel brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flows.commands.demo_images import IMAGES, demo_images
from stable_sam.formats.read import read_prompts
from stable_sam.storage.files import list_versions

ANNOTATIONS = Path(__file__).parents[3] / "configs" / "demo" / "annotations.json"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "images"
    demo_images(str(folder))
    return folder


def test_every_annotation_is_a_usable_prompt(images: Path) -> None:
    prompts = list(read_prompts(str(ANNOTATIONS), images_uri=str(images)))
    assert len(prompts) >= 40
    assert [prompt.error for prompt in prompts if prompt.error] == []
    assert {prompt.image_uri.rsplit("/", 1)[-1] for prompt in prompts} == set(IMAGES)


def test_all_kinds_of_prompts_and_of_weakness_are_there(images: Path) -> None:
    prompts = list(read_prompts(str(ANNOTATIONS), images_uri=str(images)))
    kinds = {(prompt.box_xyxy is not None, bool(prompt.points_xy), 0 in prompt.point_labels) for prompt in prompts}
    assert {(True, False, False), (False, True, False), (False, True, True), (True, True, True)} <= kinds
    weakness = {json.loads(prompt.attributes or "{}")["weakness"] for prompt in prompts}
    assert {"loose", "shifted", "too small", "wrong"} <= weakness


def test_sizes_are_those_of_the_images(images: Path) -> None:
    for image in json.loads(ANNOTATIONS.read_text())["images"]:
        with Image.open(images / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])


def test_images_that_are_there_keep_their_version(tmp_path: Path) -> None:
    demo_images(str(tmp_path))
    coins, cat = tmp_path / "coins.png", (tmp_path / "cat.png").read_bytes()
    versions = list_versions(str(tmp_path))
    demo_images(str(tmp_path))
    assert list_versions(str(tmp_path)) == versions
    coins.write_bytes(b"cut off")
    demo_images(str(tmp_path))
    changed = {uri for uri, version in list_versions(str(tmp_path)).items() if versions[uri] != version}
    assert changed == {str(coins)}
    assert coins.stat().st_size > len(b"cut off")
    assert (tmp_path / "cat.png").read_bytes() == cat
