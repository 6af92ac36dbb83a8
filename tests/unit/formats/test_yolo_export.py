"""A YOLO export as Ultralytics finds it: the rules are those that its documentation gives for data.yaml and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from stable_sam.errors import ConfigError
from stable_sam.formats.export_records import ExportCategory, ExportImage, ExportObject, Split, Target
from stable_sam.formats.yolo.write import write_yolo
from stable_sam.rle import encode_mask

NAMES = (
    "a b.jpg",
    "train/images/a b.jpg",
    "valid/images/a b.jpg",
    "images/x.jpg",
    "é#1 100%.jpg",
    "images.png",
    "plain",
)
CATEGORIES = (ExportCategory(number=1, name="one", index=0), ExportCategory(number=7, name="two", index=1))


def exported(folder: Path, split: Split | None = None) -> None:
    """Write an export whose images have two objects each, at `folder`."""
    mask = encode_mask(np.asfortranarray(np.eye(6, 8, dtype=np.bool_)))
    target = Target(uri=str(folder), categories=CATEGORIES, polygons=True, header={}, copies=True, split=split)
    with write_yolo(target) as add:
        for name in NAMES:
            objects = tuple(
                ExportObject(
                    prompt_id=f"{name}:{c.index}", number=1, revision=1, category=c, iscrowd=False, mask=mask,
                    box_xyxy=None, score=0.5, details={},
                )
                for c in CATEGORIES
            )  # fmt: skip
            target.write(f"images/{name}", b"")
            add(
                ExportImage(image_uri=f"/{name}", number=1, name=name, size_hw=(6, 8), objects=objects, reference=name),
                None,
            )


def images_of(folder: Path, place: str) -> list[Path]:
    """The images of one part of data.yaml: a folder, or a list of files that begin with ./, beside the list."""
    path = folder / place
    if path.is_dir():
        return [each for each in path.rglob("*") if each.is_file() and each.suffix != ".txt"]
    return [folder / line.removeprefix("./") for line in path.read_text().splitlines()]


def labels_of(image: Path) -> list[str]:
    """The lines of the file that has the image's path with the last folder `images` replaced by `labels`."""
    above, below = str(image).rsplit("/images/", 1)
    labels = Path(f"{above}/labels/{below}")
    return labels.with_suffix(".txt").read_text().splitlines()


@pytest.mark.parametrize("split", [None, "0.5/0.5", "0.4/0.3/0.3"])
def test_every_object_is_found_from_any_folder(split: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "export"
    exported(folder, None if split is None else Split.parse(split))
    dataset = yaml.safe_load((folder / "data.yaml").read_text())
    # A key `path` would be taken from the working folder, or from the folder of all data sets.
    assert "path" not in dataset
    assert dataset["names"] == {0: "one", 1: "two"}
    parts = [images_of(folder, dataset[part]) for part in ("train", "val", "test") if part in dataset]
    found = [image for part in (parts if split else parts[:1]) for image in part]
    assert sorted(found) == sorted(folder / "images" / name for name in NAMES)
    assert all([line.split()[0] for line in labels_of(image)] == ["0", "1"] for image in found)


def test_an_image_stays_in_its_part() -> None:
    split = Split.parse("0.8/0.2")
    names = [f"sub/{number}.jpg" for number in range(2000)]
    parts = [split.part(name) for name in names]
    assert 0.77 < parts.count("train") / len(parts) < 0.83
    assert [split.part(name) for name in reversed(names)] == parts[::-1]
    assert {split.part(name) for name in names if Split.parse("0.6/0.4").part(name) == "train"} == {"train"}
    assert {Split.parse("0.8/0.1/0.1").part(name) for name in names} == {"train", "val", "test"}


@pytest.mark.parametrize("text", ["", "0.8", "0.8/0.3", "1/0", "1.2/-0.2", "a/b", "0.25/0.25/0.25/0.25", "nan/nan"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="split: expected the shares"):
        Split.parse(text)
