"""Which image a name in an annotation file means: the same for every format."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from stable_sam.errors import AnnotationError, NotFoundError
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.read import read_prompts
from tests.unit.formats.dataset import Dataset, only, voc, voc_object


def coco(*names: str) -> dict[str, Any]:
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, "bbox": [1, 2, 30, 40]} for n in range(len(names))],
    }


def found(folder: Path, given: Any, file: str = "labels.json", **links: bool) -> str | None:
    """The path below `folder` of the image that `given` means in a file beside the folder, or the problem."""
    lookup = ImageLookup(ImageFolder(str(folder), **links), str(folder.parent / file), file)
    image = lookup.find(given)
    return image.uri.removeprefix(f"{folder}/") or image.problem


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("x.jpg", "1/x.jpg"),
        ("images\\1\\x.jpg", "1/x.jpg"),
        ("../../media/1/x.jpg", "1/x.jpg"),
        ("/data/upload/1/x.jpg", "1/x.jpg"),
        ("C:\\Users\\ann\\1\\x.jpg", "1/x.jpg"),
        ("https://host/1/x.jpg?token=a#b", "1/x.jpg"),
        ("s3://lake/nights/1/x.jpg", "1/x.jpg"),
        ("gs://lake/1/x%2Ejpg", "1/x.jpg"),
        ("/data/local-files/?d=sets%5C1%5Cx.jpg", "1/x.jpg"),
        ("images/0a1b2c3d-x.jpg", "1/x.jpg"),
        ("1/x", "1/x.jpg"),
        ("x", "1/x.jpg"),
        ("1/x.JPG", "1/x.jpg"),
        ("frame_000000", "frame_000000.PNG"),
        ("imgs/sub/y.jpg", "images/sub/y.jpg"),
        ("./1//x.jpg", "1/x.jpg"),
    ],
)
def test_an_image_is_found_by_the_end_of_its_name(tmp_path: Path, given: str, name: str) -> None:
    folder = fill(
        tmp_path / "pictures", "1/x.jpg", "frame_000000.PNG", "images/sub/y.jpg", "1/x.txt", "frame_000000.xml"
    )
    assert found(folder, given) == name


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_another_unicode_form_is_the_same_name(tmp_path: Path, form: Any) -> None:
    stored, other = (
        unicodedata.normalize(f, "d\u00e9j\u00e0 vu.jpg") for f in (form, {"NFC": "NFD", "NFD": "NFC"}[form])
    )
    folder = fill(tmp_path / "images", f"a/{stored}")
    assert found(folder, f"a/{other}") == found(folder, other) == f"a/{stored}"


def test_a_whole_path_goes_before_the_end_of_another_one(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "x.jpg", "old/x.jpg", "b/x.jpg", "c/b/x.jpg", "x.jpg.png")
    assert found(folder, "x.jpg") == found(folder, "images/x.jpg") == "x.jpg"
    assert found(folder, "b/x.jpg") == "b/x.jpg"
    assert found(folder, "/data/c/b/x.jpg") == "c/b/x.jpg"
    assert found(folder, "c/../x.jpg") == "x.jpg"
    assert found(folder, "/data/x.jpg") == "x.jpg"
    folder = fill(tmp_path / "frames", "frame_1.PNG", "old/frame_1.PNG")
    assert found(folder, "frame_1") == "frame_1.PNG"


def test_two_images_that_fit_are_a_problem_that_names_both(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "one/x.jpg", "two/x.jpg", "y.jpg", "y.png", *(f"{n}/z.jpg" for n in range(200)))
    assert f"may be one/x.jpg or two/x.jpg below {folder}: name it by its path there" in (found(folder, "x.jpg") or "")
    assert "may be y.jpg or y.png below" in (found(folder, "y") or "")
    assert "and 198 others" not in (found(folder, "z.jpg") or "")
    assert "may be 0/z.jpg or 1/z.jpg or" in (found(folder, "z.jpg") or "")
    assert found(folder, "/data/117/z.jpg") == "117/z.jpg"
    assert found(folder, "x.jpg", "annotations/instances_two.json") == "two/x.jpg", "the file's name tells which"


def test_an_image_of_another_folder_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", "train/a.jpg", "valid/b.jpg", "valid/cam/c.jpg")
    assert found(root, "train/b.jpg") == (
        f"image file 'train/b.jpg' is not below {root} (valid/b.jpg has its name, but another path)"
    )
    assert "is not below" in (found(root, "b.jpg", "set/train/coco.json") or ""), "the file's own folder has images"
    assert found(root, "valid/b.jpg", "set/train/coco.json") == "valid/b.jpg"
    assert found(root, "b.jpg", "set/notes/coco.json") == "valid/b.jpg"


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("set/train/coco.json", "train/a.jpg"),
        ("set/train/meta/coco.json", "train/a.jpg"),
        ("set/valid/labels/coco.json", "valid/images/a.jpg"),
        ("set/annotations/test/coco.json", "images/test/a.jpg"),
        ("other/test/coco.json", "images/test/a.jpg"),
    ],
)
def test_a_name_is_looked_for_in_the_folder_that_matches_the_annotation_files(
    tmp_path: Path, file: str, image: str
) -> None:
    root = fill(tmp_path / "set", "train/a.jpg", "valid/images/a.jpg", "images/test/a.jpg")
    lookup = ImageLookup(ImageFolder(str(root)), str(tmp_path / file), file.partition("/")[2])
    assert lookup.find("a.jpg").image_id == image


def test_splits_with_their_images_beside_them(data: Dataset) -> None:
    for split in ("train", "valid"):
        data.write(f"ds/{split}/_annotations.coco.json", coco("shot.jpg"))
        data.write(f"ds/{split}/shot.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    prompts = data.read("ds", "ds")
    assert [prompt.image_uri for prompt in prompts] == [
        data.uri(f"ds/{split}/shot.jpg") for split in ("train", "valid")
    ]


CVAT = '<annotations><image id="0" name="{name}"><box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/></image></annotations>'
SHAPES = [{"label": "a", "shape_type": "rectangle", "points": [[1, 2], [30, 40]]}]
VALUE = {"x": 1, "y": 2, "width": 30, "height": 40}
READERS: dict[str, tuple[str, Any]] = {
    "coco": ("a.json", lambda name: coco(name)),
    "detections": ("a.json", lambda name: [{"image_id": 1, "file_name": name, "bbox": [1, 2, 30, 40]}]),
    "table": ("a.jsonl", lambda name: {"image": name, "box_xyxy": [1, 2, 30, 40]}),
    "voc": ("z.xml", lambda name: voc(voc_object(), name=name)),
    "labelme": ("z.json", lambda name: {"shapes": SHAPES, "imagePath": name, "imageHeight": 80, "imageWidth": 100}),
    "labelstudio": (
        "a.json",
        lambda name: [
            {"id": 1, "data": {"image": name}, "annotations": [{"result": [{"type": "rectangle", "value": VALUE}]}]}
        ],
    ),
    "cvat": ("a.xml", lambda name: CVAT.format(name=name)),
}


@pytest.mark.parametrize(
    "name", ["images\\train\\c.jpg", "../../media/c.jpg", "/data/upload/train/c.jpg", "s3://lake/train/c.jpg"]
)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_an_image_alike(data: Dataset, reader: str, name: str) -> None:
    file, write = READERS[reader]
    data.write("images/train/e\u0301.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    data.write(file, write(name))
    prompt = only(data.read(file, format=reader))
    assert (prompt.image_uri, prompt.error) == (data.uri("images/train/c.jpg"), None)
    data.write(file, write("\u00e9.jpg"))
    assert only(data.read(file, format=reader)).error is None


def test_detections_name_their_images_themselves_or_by_an_id_without_ending(data: Dataset) -> None:
    records = [
        {"image_id": "x", "file_name": "train/c.jpg"},
        {"image_id": 7, "file_name": "a.jpg"},
        {"image_id": 7, "file_name": "b.jpg"},
        {"image_id": "b"},
        {"image_id": 1},
        {"image_id": "nowhere", "file_name": 7},
    ]
    data.write("found.json", [{"bbox": [1, 2, 30, 40]} | record for record in records])
    prompts = data.read("found.json")
    names = ["train/c.jpg", "a.jpg", "b.jpg", "b.jpg", "1.jpg"]
    assert [prompt.image_uri for prompt in prompts] == [*(data.uri(f"images/{name}") for name in names), ""]
    assert [prompt.prompt_id for prompt in prompts] == ["x:0", "7:0", "7:1", "b:0", "1:0", "nowhere:0"]
    assert "expected a number as image_id, a file_name or an image index, got image_id 'nowhere'" in (
        prompts[-1].error or ""
    )


def test_an_image_index_names_images_beside_itself(data: Dataset) -> None:
    for split in ("train", "valid"):
        data.write(f"ds/{split}/index.json", coco("shot.jpg"))
        data.write(f"ds/{split}/shot.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    detections = data.write("found.json", [{"image_id": 0, "bbox": [1, 2, 30, 40]}])
    where = {"images_uri": data.uri("ds"), "image_index_uri": data.uri("ds/valid/index.json")}
    assert only(list(read_prompts(detections, **where))).image_uri == data.uri("ds/valid/shot.jpg")


def test_links_out_of_the_folder_are_followed_when_that_is_allowed(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "ab12", "more/c.jpg")
    folder = fill(tmp_path / "images", "b.jpg")
    (folder / "a.jpg").symlink_to("../store/ab12")
    (folder / "gone.jpg").symlink_to("../store/gone")
    (folder / "out").symlink_to(store / "more")
    assert found(folder, "b.jpg", follow_links=False) == "b.jpg"
    assert "(a.jpg is a link, and links that lead out of it are not followed: --follow-links" in (
        found(folder, "/x/a.jpg") or ""
    )
    assert "(gone.jpg is a link to nothing: fetch the file" in (found(folder, "gone.jpg") or "")
    assert "(out is a link" in (found(folder, "out/c.jpg") or "")
    assert "(out is a link to a folder" in (found(folder, "elsewhere.jpg") or "")
    assert found(folder, "a.jpg", follow_links=True) == "a.jpg"
    assert found(folder, "c.jpg", follow_links=True) == "out/c.jpg"
    assert "gone.jpg is a link to nothing" in (found(folder, "gone.jpg", follow_links=True) or "")
    assert found(folder, "elsewhere.jpg", follow_links=True) == f"image file 'elsewhere.jpg' is not below {folder}"


def test_a_link_that_is_not_followed_is_not_replaced_by_another_image_of_its_name(data: Dataset) -> None:
    data.write("ds/train/shot.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    annotations = data.write("ds/valid/coco.json", coco("shot.jpg"))
    Path(data.uri("ds/valid/shot.jpg")).symlink_to("../../images/a.jpg")
    [prompt] = read_prompts(annotations, images_uri=data.uri("ds"))
    assert "valid/shot.jpg is a link, and links that lead out of it are not followed" in (prompt.error or "")


@pytest.mark.parametrize(
    ("file", "linked"),
    [
        ("set/labels/valid/coco.json", ["images/valid/a.jpg"]),
        ("set/labels/valid/coco.json", ["images/valid"]),
        ("set/labels/valid/coco.json", ["images/valid/part"]),
        ("set/valid/coco.json", ["valid/a.jpg", "valid/b.jpg"]),
        ("other/valid/coco.json", ["valid/a.jpg"]),
    ],
)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("above", [True, False])
def test_a_matching_folder_of_links_is_not_replaced_by_another_part(
    tmp_path: Path, file: str, linked: list[str], there: bool, above: bool
) -> None:
    root = fill(tmp_path / "set", "images/train/a.jpg", "train/a.jpg", *["a.jpg"] * above)
    for path in linked:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        store = fill(tmp_path / "store", "1/a.jpg", "2") if there else tmp_path / "store"
        (root / path).symlink_to(store / ("2" if path.endswith(".jpg") else "1"))
    lookup = ImageLookup(ImageFolder(str(root)), str(tmp_path / file), file.partition("/")[2])
    for name in ("a.jpg", "/data/a.jpg"):
        assert f"{linked[0]} is a link" in (lookup.find(name).problem or ""), name
    if there and not above:
        followed = ImageLookup(ImageFolder(str(root), follow_links=True), str(tmp_path / file), file.partition("/")[2])
        assert followed.find("a.jpg").image_id.startswith(linked[0])


def test_no_word_of_links_where_there_are_none(tmp_path: Path) -> None:
    assert found(fill(tmp_path / "images", "a.jpg"), "b.jpg") == f"image file 'b.jpg' is not below {tmp_path}/images"


def test_a_folder_without_images_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(NotFoundError, match="found no file there"):
        ImageFolder(str(folder))
    (folder / "a.jpg").symlink_to("../ab12")
    with pytest.raises(NotFoundError, match="a.jpg is one to nothing: fetch the files"):
        ImageFolder(str(folder))
    fill(tmp_path, "ab12")
    with pytest.raises(NotFoundError, match="only links that lead out of it, such as a.jpg: --follow-links"):
        ImageFolder(str(folder))
    assert len(ImageFolder(str(folder), follow_links=True)) == 1


def test_annotation_files_that_are_links_are_not_passed_over(data: Dataset) -> None:
    data.write("labels/a.xml", voc(voc_object()))
    data.write("store/ff00", voc(voc_object(), name="b.jpg"))
    Path(data.uri("labels/b.xml")).symlink_to("../store/ff00")
    with pytest.raises(AnnotationError, match="got b.xml, a link that leads out of it: --follow-links"):
        data.read("labels")
    assert [prompt.error for prompt in data.read("labels", follow_links=True)] == [None, None]
    Path(data.uri("labels/b.xml")).rename(data.uri("labels/notes.txt"))
    assert only(data.read("labels")).prompt_id == "a:0"
    Path(data.uri("labels/a.xml")).unlink()
    with pytest.raises(AnnotationError, match="got notes.txt, a link that leads out of it"):
        data.read("labels")


def test_json_lines_find_images_for_rows_without_ids_by_the_name_as_given(data: Dataset) -> None:
    rows = [{"image": name, "box_xyxy": [1, 2, 30, 40]} for name in ("/data/a.jpg", "a.jpg", "./a.jpg")]
    data.write("rows.jsonl", "\n".join(map(json.dumps, rows)))
    prompts = data.read("rows.jsonl")
    assert [prompt.prompt_id for prompt in prompts] == ["/data/a.jpg:0", "a.jpg:0", "a.jpg:1"]
    assert {prompt.image_uri for prompt in prompts} == {data.uri("images/a.jpg")}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sub/a.jpg", "image file 'sub/a.jpg' is not below {} (sub/a.PNG has its name, but another ending)"),
        ("sub\\a.tif", "image file 'sub\\\\a.tif' is not below {} (sub/a.PNG has its name, but another ending)"),
        ("other/a.png", "image file 'other/a.png' is not below {} (sub/a.PNG has its name, but another path)"),
        ("sub/../b.jpg", "image file 'sub/../b.jpg' is not below {}"),
    ],
)
def test_a_missing_image_names_the_one_that_is_nearly_it(given: str, said: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "sub/a.PNG", "c.jpg")
    assert found(folder, given) == said.format(folder)


def test_images_that_are_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(NotFoundError, match=r"images.zip: expected a folder of images, found a file: images that lie"):
        ImageFolder(str(tmp_path / "images.zip"))


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    images, labels = fill(tmp_path / "images", "a.jpg"), fill(tmp_path / "labels", "a.txt")
    (images / os.fsdecode(b"k\xf6.jpg")).write_bytes(b"")
    said = (
        f"image file 'k\u00f6.jpg' is not below {images} (names that are not UTF-8 are left out, such as k\\udcf6.jpg)"
    )
    assert found(images, "k\u00f6.jpg") == said
    (images / "a.jpg").unlink()
    with pytest.raises(
        NotFoundError, match=r"images: expected a folder of images, found only names that are not UTF-8"
    ):
        ImageFolder(str(images))
    (labels / os.fsdecode(b"k\xf6.txt")).write_bytes(b"")
    for given in (labels, labels / "*.txt"):
        with pytest.raises(AnnotationError, match=r"expected files whose names are UTF-8, got k\\udcf6.txt: rename it"):
            list(read_prompts(str(given), images_uri=str(fill(images, "a.jpg"))))
