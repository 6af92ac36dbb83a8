"""Files of other tools to prompts: VOC, YOLO, LabelMe, Label Studio, CVAT, Open Images and LVIS."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stable_sam.config import SourceConfig
from stable_sam.data import storage
from stable_sam.data.annotations import read_prompt_batches, read_prompts
from stable_sam.data.schema import prompt_from_row
from stable_sam.errors import AnnotationError, StableSamError
from stable_sam.formats.write_brush_rle import encode_brush
from stable_sam.records import Prompt

WIDTH, HEIGHT = 100, 80


class Dataset:
    """A folder of pictures of 100 x 80 pixels, and annotation files beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        picture = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT)).save(picture, "JPEG")
        for name in ("a.jpg", "b.jpg", "train/c.jpg", "1.jpg"):
            self.write(f"images/{name}", picture.getvalue())
        self.write("secret.jpg", picture.getvalue())

    def uri(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, content: Any) -> str:
        data = content.encode() if isinstance(content, str) else content
        storage.write_bytes(self.uri(name), data if isinstance(data, bytes) else json.dumps(data).encode())
        return self.uri(name)

    def read(self, annotations: str, images: str = "images", **settings: Any) -> list[Prompt]:
        """By both ways, which must agree. `annotations`: path below the root, or several."""
        uri = ",".join(
            f"{name}{equals}{self.uri(path)}"
            for name, equals, path in (e.rpartition("=") for e in annotations.split(","))
        )
        where: dict[str, Any] = {"images_uri": self.uri(images), "source": SourceConfig(**settings)}
        prompts = list(read_prompts(uri, **where))
        rows = [row for batch in read_prompt_batches(uri, **where) for row in batch.to_pylist()]
        assert [prompt_from_row(row) for row in rows] == prompts
        return prompts


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def only(prompts: list[Prompt]) -> Prompt:
    [prompt] = prompts
    return prompt


def voc(*objects: str, name: str = "a.jpg", size: str = "<width>100</width><height>80</height>") -> str:
    return f"<annotation><filename>{name}</filename><size>{size}</size>{''.join(objects)}</annotation>"


def voc_object(box: str = "1 2 30 40", name: str = "cat", more: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    values = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    return f"<object><name>{name}</name>{more}<bndbox>{values}</bndbox></object>"


def test_voc_counts_pixels_from_one_and_includes_the_last(data: Dataset) -> None:
    more = "<difficult>1</difficult><truncated>0</truncated><occluded>1</occluded><pose>Left</pose><score>0.5</score>"
    data.write("xml/a.xml", voc(voc_object("1 1 100 80", more=more), voc_object("5 6 5 6")))
    whole, pixel = data.read("xml")
    assert whole == Prompt(
        prompt_id="a:0",
        image_id="a.jpg",
        image_uri=data.uri("images/a.jpg"),
        image_size=(80, 100),
        box_xyxy=(0, 0, 100, 80),
        category="cat",
        score=0.5,
        attributes='{"difficult": 1, "occluded": 1, "pose": "Left", "truncated": 0}',
    )
    assert pixel.box_xyxy == (4, 5, 5, 6)


def test_voc_images_are_found_by_name_beside_or_by_the_files_own_name(data: Dataset) -> None:
    data.write("xml/train/c.xml", voc(voc_object(), name="c.jpg"))
    data.write("xml/b.xml", voc(voc_object(), name="C:\\somewhere\\other.png"))
    data.write("xml/z.xml", voc(voc_object(), name="../secret.jpg"))
    own_name, beside, nowhere = data.read("xml")
    assert (beside.prompt_id, beside.image_id, beside.error) == ("train/c:0", "train/c.jpg", None)
    assert (own_name.image_id, own_name.error) == ("b.jpg", None)
    assert nowhere.image_uri == ""
    assert "z.xml: object 0: " in (nowhere.error or "")
    assert "leads out of it" in (nowhere.error or "")


def test_xml_in_another_encoding(data: Dataset) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!-- <annotations> -->' + voc(voc_object(name="K\u00e4fer"))
    data.write("a.xml", text.encode("utf-16"))
    assert only(data.read("a.xml")).category == "K\u00e4fer"


def test_labelmes_older_xml(data: Dataset) -> None:
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((5, 6), (9, 2), (7, 20)))
    polygon = f"<object><name>a</name><deleted>0</deleted><polygon>{points}</polygon></object>"
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
    segment = f"<object><name>b</name><segm><box>{corners}</box></segm></object>"
    size = "<imagesize><nrows>80</nrows><ncols>100</ncols></imagesize>"
    deleted = polygon.replace("<deleted>0", "<deleted>1")
    text = f"<annotation><filename>a.jpg</filename>{polygon}{deleted}{size}{segment}</annotation>"
    data.write("xml/a.xml", text)
    first, second = data.read("xml")
    assert (first.box_xyxy, first.image_size) == ((5, 2, 9, 20), (80, 100))
    assert (second.prompt_id, second.box_xyxy) == ("a:2", (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (voc(voc_object("1 2 x 40")), "expected a box of 4 numbers (XYXY)"),
        (voc("<object><name>cat</name></object>"), "expected a box, points, or both, got neither"),
        (voc(voc_object("1 2 nan 40")), "expected a box of 4 numbers"),
        (voc(voc_object("50 2 30 40")), "the box is inverted"),
    ],
)
def test_a_bad_voc_object_is_a_failed_prompt(data: Dataset, content: str, problem: str) -> None:
    data.write("xml/a.xml", content)
    data.write("xml/b.xml", voc(voc_object(), name="b.jpg"))
    bad, good = data.read("xml")
    assert good.error is None
    assert (bad.error or "").startswith(f"{data.uri('xml/a.xml')}: object 0: ")
    assert problem in (bad.error or "")


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><filename>&b;</filename></annotation>"
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><filename>&x;</filename></annotation>"
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (BOMB, "expected XML without entities of its own"),
        (OUTSIDE, "expected XML without entities of its own"),
        ("<annotation><object>", "not valid XML: no element found"),
        ("<annotation>" + "<a>" * 1000, "expected at most 100 levels of XML"),
        ("<annotation><x/></other>", "not valid XML: mismatched tag"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "not valid XML: unknown encoding"),
    ],
)
def test_hostile_xml_is_one_line(data: Dataset, content: str, problem: str) -> None:
    data.write("a.xml", content)
    with pytest.raises(AnnotationError, match=problem) as raised:
        data.read("a.xml", format="voc")
    assert str(raised.value).startswith(data.uri("a.xml"))
    # One among others: it is one failed prompt.
    data.write("xml/a.xml", content)
    data.write("xml/b.xml", voc(voc_object(), name="b.jpg"))
    bad, good = data.read("xml")
    assert (bad.prompt_id, good.error) == ("a", None)
    assert problem in (bad.error or "")


def test_a_folder_of_another_format_is_refused(data: Dataset) -> None:
    for number in range(20):
        data.write(f"xml/{number}.xml", "<annotations/>")
    with pytest.raises(AnnotationError, match=r"0\.xml: expected XML of <annotation>, got <annotations>"):
        data.read("xml", format="voc")


def test_yolo_boxes_and_polygons_are_pixels_of_the_image(data: Dataset) -> None:
    lines = ["1 0.5 0.5 0.2 0.5", "", "0 0.5 0.5 0.2 0.5 0.75", "0 0.1 0.2 0.3 0.2 0.3 0.4", "7 0 0 1 0 1 1 0 1 0.5"]
    data.write("labels/a.txt", "\n".join(lines))
    data.write("data.yaml", "names: [cat, dog]\nnc: 2\n")
    box, scored, polygon, corners = data.read("labels")
    assert (box.prompt_id, box.category_id, box.category, box.image_size) == ("a:0", 1, "dog", (80, 100))
    assert box.box_xyxy == pytest.approx((40, 20, 60, 60))
    assert (scored.prompt_id, scored.score, scored.category) == ("a:1", 0.75, "cat")
    assert polygon.box_xyxy == pytest.approx((10, 16, 30, 32))
    assert corners.box_xyxy == pytest.approx((0, 0, 100, 80))
    assert (corners.score, corners.category_id, corners.category) == (0.5, 7, None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5", "expected a class and 4 numbers or more"),
        ("cat 0.5 0.5 x 0.1", "expected a class and numbers"),
        ("0 40 20 60 60", "expected shares of the image's size, from 0 to 1"),
        ("0 nan 0.5 0.1 0.1", "expected a class and numbers"),
        ("0 0.5 0.5 0 0.1", "the box is empty"),
    ],
)
def test_a_bad_yolo_line_is_a_failed_prompt(data: Dataset, line: str, problem: str) -> None:
    data.write("labels/a.txt", f"{line}\n0 0.5 0.5 0.2 0.2\n")
    bad, good = data.read("labels")
    assert good.error is None
    assert (bad.error or "").startswith(f"{data.uri('labels/a.txt')}: line 1: ")
    assert problem in (bad.error or "")


@pytest.mark.parametrize(
    ("labels", "images", "names"),
    [
        ("labels/train/c.txt", "images", "classes.txt"),
        ("labels/c.txt", "images/train", "labels/obj.names"),
        ("images/train/c.txt", "images", "data.yaml"),
        ("set/labels/1.txt", "images", "set/data.yaml"),
        ("train/c.txt", "images", "train/classes.txt"),
    ],
)
def test_yolo_layouts(data: Dataset, labels: str, images: str, names: str) -> None:
    data.write(labels, "0 0.5 0.5 0.2 0.5\n")
    data.write(names, "names: {0: cat}" if names.endswith("yaml") else "cat\n")
    prompt = only(data.read(labels.rpartition("/")[0], images))
    assert (prompt.error, prompt.category) == (None, "cat")


def test_yolo_lists_among_the_labels_are_no_labels_unless_an_image_is_called_so(data: Dataset) -> None:
    for name in ("classes.txt", "train.txt", "README.txt"):
        data.write(f"labels/{name}", "data/a.jpg\n")
    data.write("labels/a.txt", "0 0.5 0.5 0.2 0.5\n")
    assert [prompt.prompt_id for prompt in data.read("labels")] == ["a:0"]
    data.write("images/train.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    assert [prompt.prompt_id for prompt in data.read("labels")] == ["a:0", "train:0"]


def test_yolo_without_image_or_with_one_that_cannot_be_read(data: Dataset) -> None:
    data.write("images/broken.jpg", b"no picture")
    for name in ("broken", "nowhere"):
        data.write(f"labels/{name}.txt", "0 0.5 0.5 0.2 0.5\n")
    broken, nowhere = data.read("labels")
    assert "broken.jpg: its size is needed, expected an image, got bytes that begin with b'no pictu'" in (
        broken.error or ""
    )
    assert "no image file nowhere.* is below" in (nowhere.error or "")


def test_sizes_are_those_of_the_upright_image_also_behind_a_long_header(data: Dataset) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    picture.save(data.uri("images/turned.jpg"), exif=turned.tobytes(), icc_profile=bytes(200_000))
    data.write("labels/turned.txt", "0 0.5 0.5 1 1\n")
    prompt = only(data.read("labels"))
    assert (prompt.image_size, prompt.box_xyxy) == ((100, 80), (0, 0, 80, 100))


def test_yolo_pose(data: Dataset) -> None:
    data.write("data.yaml", "names: [cat]\nkpt_shape: [2, 3]\n")
    data.write("labels/a.txt", "0 0.5 0.5 0.2 0.5 0.4 0.5 2 0.6 0.5 1\n")
    assert only(data.read("labels")).points_xy == ()
    prompt = only(data.read("labels", keypoints=True))
    assert (prompt.points_xy, prompt.point_labels) == (((40, 40),), (1,))
    assert prompt.box_xyxy == pytest.approx((40, 20, 60, 60))


def labelme(*shapes: Any, path: Any = "a.jpg") -> dict[str, Any]:
    return {"version": "5", "flags": {}, "shapes": list(shapes), "imagePath": path, "imageData": None} | {
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def shape(kind: str, *points: list[Any], **more: Any) -> dict[str, Any]:
    return {"label": "cat", "shape_type": kind, "points": list(points), "group_id": None, "flags": {}} | more


def test_labelme_shapes(data: Dataset) -> None:
    data.write(
        "json/a.json",
        labelme(
            shape("rectangle", [30, 40], [10, 20], score=0.5, description="left"),
            shape("polygon", [1, 2], [9, 4], [5, 30]),
            shape("circle", [50, 40], [53, 44]),
            shape("point", [5, 6]),
            shape("mask", [5, 6], [9, 9]),
            shape("polygon", [1, 2], [3, 4], [1, 4], group_id=1),
            shape("linestrip", [1, 2], [3, 4]),
            shape("polygon", [50, 20], [60, 40], [50, 40], group_id=1),
            shape("point", [55, 30], group_id=1),
            shape("polygon", [1, "x"]),
            "nonsense",
        ),
    )
    prompts = data.read("json")
    assert [prompt.prompt_id for prompt in prompts] == [f"a:{n}" for n in (0, 1, 2, 3, 4, 5, 6, 9, 10)]
    assert [prompt.box_xyxy for prompt in prompts[:6]] == [
        (10, 20, 30, 40),
        (1, 2, 9, 30),
        (45, 35, 55, 45),
        None,
        (5, 6, 10, 10),
        (1, 2, 60, 40),
    ]
    assert (prompts[3].points_xy, prompts[3].point_labels) == (((5, 6),), (1,))
    assert prompts[5].points_xy == ((55, 30),)
    assert (prompts[0].score, prompts[0].category, prompts[0].image_size) == (0.5, "cat", (80, 100))
    assert prompts[0].attributes == '{"description": "left", "shape_type": "rectangle"}'
    assert [prompt.error is None for prompt in prompts] == [True] * 6 + [False] * 3
    assert "shape 6: a 'linestrip' is no box, polygon or point" in (prompts[6].error or "")


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("../images/b.jpg", "b.jpg"),
        ("..\\images\\train\\c.jpg", "train/c.jpg"),
        ("b.jpg", "b.jpg"),
        ("C:\\pictures\\b.jpg", "a.jpg"),
        ("../secret.jpg", "a.jpg"),
        ("../images/../secret.jpg", "a.jpg"),
        ("/etc/passwd", "a.jpg"),
        (None, "a.jpg"),
        (7, "a.jpg"),
    ],
)
def test_labelme_images_stay_in_the_folder(data: Dataset, path: Any, image_id: str) -> None:
    data.write("json/a.json", labelme(shape("rectangle", [10, 20], [30, 40]), path=path))
    prompt = only(data.read("json"))
    assert (prompt.error, prompt.image_id, prompt.image_uri) == (None, image_id, data.uri(f"images/{image_id}"))


def task(*results: Any, image: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 5, "data": {"image": image}, "annotations": [{"id": 7, "result": list(results)}]} | more


def region(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"id": "r", "type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": value} | more


def test_label_studio_regions_are_per_cent_of_the_image(data: Dataset) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 30:60] = mask[40, 5] = True
    box = {"x": 10, "y": 25, "width": 20, "height": 50}
    results = [
        region("rectanglelabels", box | {"rectanglelabels": ["cat"]}, id="a", score=0.5),
        region("polygonlabels", {"points": [[1, 50], [3, 100], [2, 75]], "polygonlabels": ["dog"]}, id="b"),
        region("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 25}, id="c"),
        region("keypointlabels", {"x": 50, "y": 25, "width": 1, "keypointlabels": ["cat"]}, id="d"),
        region("brushlabels", {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["cat"]}, id="e"),
        region("rectangle", box | {"rotation": 90}, id="f"),
        region("labels", box | {"labels": ["horse", "grey"]}, id="f"),
        region("choices", {"choices": ["good"]}, id="f", from_name="mood"),
        region("choices", {"choices": ["blurred"]}, id="g"),
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    data.write("tasks.json", [task(*results)])
    prompts = data.read("tasks.json")
    assert [prompt.prompt_id for prompt in prompts] == [f"5:7:{name}" for name in "abcdef"]
    assert [prompt.error for prompt in prompts] == [None] * 6
    assert [prompt.box_xyxy for prompt in prompts] == [
        (10, 20, 30, 60),
        (1, 40, 3, 80),
        (40, 20, 60, 60),
        None,
        (5, 10, 60, 41),
        pytest.approx((0, 20, 10, 40)),
    ]
    assert (prompts[3].points_xy, prompts[3].point_labels) == (((50, 20),), (1,))
    assert [prompt.category for prompt in prompts] == ["cat", "dog", None, "cat", "cat", "horse"]
    assert (prompts[0].score, prompts[0].image_size, prompts[0].annotation_id) == (0.5, (80, 100), "a")
    assert json.loads(prompts[5].attributes or "") == {"labels": ["horse", "grey"], "mood": ["good"]}


def test_label_studio_takes_annotations_before_predictions_and_none_that_was_cancelled(data: Dataset) -> None:
    box = {"x": 10, "y": 25, "width": 20, "height": 50}
    made = {name: [{"id": name, "result": [region("rectangle", box)]}] for name in ("annotations", "predictions")}
    cancelled = [{"id": "no", "was_cancelled": True, "result": [region("rectangle", box)]}]
    tasks = [
        task(id=1, **made),
        task(id=2, annotations=cancelled, predictions=made["predictions"]),
        task(id=3, annotations=[]),
        "nonsense",
        {"id": 9},
    ]
    data.write("tasks.json", tasks)
    prompts = data.read("tasks.json")
    assert [prompt.prompt_id for prompt in prompts] == ["1:annotations:r", "2:predictions:r", "task-3", "task-4"]
    assert [prompt.error is None for prompt in prompts] == [True, True, False, False]


def test_a_label_studio_target_storage(data: Dataset) -> None:
    value = {"x": 10, "y": 25, "width": 20, "height": 50, "rectanglelabels": ["cat"]}
    for number in (1, 2):
        inner = {"id": number, "data": {"image": "a.jpg"}}
        document = {"id": 10 + number, "result": [region("rectanglelabels", value)], "task": inner}
        data.write(f"target/{number}", document)
    assert [prompt.prompt_id for prompt in data.read("target/*")] == ["1/1:11:r", "2/2:12:r"]


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("/data/local-files/?d=sets/images/a.jpg", True),
        ("/data/upload/3/0a1b2c3d-a.jpg", True),
        ("s3://lake/images/a.jpg", True),
        ("https://example.org/a.jpg?token=x", True),
        ("/data/local-files/?d=../secret.jpg", False),
        ("../secret.jpg", False),
        ("https://example.org/secret.jpg", False),
        ("x.jpg", False),
        ("http://[", False),
    ],
)
def test_label_studio_images(data: Dataset, reference: str, found: bool) -> None:
    value = {"x": 10, "y": 25, "width": 20, "height": 50}
    data.write("tasks.json", [task(region("rectangle", value), image=reference)])
    prompt = only(data.read("tasks.json"))
    assert (prompt.image_uri == data.uri("images/a.jpg"), prompt.error is None) == (found, found)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (region("rectangle", {"x": "10", "y": 25, "width": 20, "height": 50}), "as numbers"),
        (region("rectangle", None), "expected a region with a value"),
        (region("rectangle", {"x": 1, "y": 1, "width": 5, "height": 5}, image_rotation=90), "an image that was not"),
        (region("polygon", {"points": "x"}), "got neither"),
        (region("polygon", {"points": [[1, None]]}), "expected a box of 4 numbers"),
        (region("brush", {"format": "rle", "rle": [0] * 20}), "expected brush strokes on 100 x 80 pixels, got 0"),
        (region("brush", {"format": "rle", "rle": [0, 0, 125, 0, 63, 0, 0]}), "got a part of them"),
        (region("brush", {"format": "rle", "rle": "AAA"}), "as a list of bytes"),
        (region("brush", {"format": "png"}), "as rle"),
        (region("brush", {"rle": encode_brush(np.zeros((HEIGHT, WIDTH), bool))}), "got neither"),
        (region("keypoint", {"x": 10, "y": 25}, is_positive=False), "background points only"),
        (region("ellipse", {"x": 1e400, "y": 1, "radiusX": 5, "radiusY": 5}), "as numbers"),
        ("nonsense", "expected a region with a value"),
    ],
)
def test_a_bad_label_studio_region_is_a_failed_prompt(data: Dataset, result: Any, problem: str) -> None:
    data.write("tasks.json", [task(result)])
    prompt = only(data.read("tasks.json"))
    assert problem in (prompt.error or "")
    assert (prompt.error or "").startswith(f"{data.uri('tasks.json')}: task 5, region ")


def test_label_studio_without_sizes_reads_the_header(data: Dataset) -> None:
    data.write("tasks.json", [task({"type": "rectangle", "value": {"x": 10, "y": 25, "width": 20, "height": 50}})])
    prompt = only(data.read("tasks.json"))
    assert (prompt.prompt_id, prompt.box_xyxy, prompt.image_size) == ("5:7:0", (10, 20, 30, 60), (80, 100))


def cvat(*shapes: str, **image: Any) -> str:
    given = {"id": 0, "name": "a.jpg", "width": 100, "height": 80} | image
    attributes = " ".join(f'{name}="{value}"' for name, value in given.items())
    return f"<annotations><version>1.1</version><meta/><image {attributes}>{''.join(shapes)}</image></annotations>"


def test_cvat_shapes(data: Dataset) -> None:
    shapes = [
        '<box label="cat" occluded="1" z_order="2" xtl="1" ytl="2" xbr="30" ybr="40"><attribute name="age">3'
        "</attribute></box>",
        '<tag label="outside"/>',
        '<polygon label="cat" points="1,2;9,4;5,30"/>',
        '<points label="cat" points="1,2;9,4"/>',
        '<mask label="cat" rle="1,2" left="3" top="4" width="5" height="6"/>',
        '<ellipse label="cat" cx="50" cy="40" rx="10" ry="5"/>',
        '<box label="cat" xtl="40" ytl="30" xbr="60" ybr="40" rotation="90.0"/>',
        '<skeleton label="cat"><points label="1" points="5,6" occluded="0" outside="0"/>'
        '<points label="2" points="7,8" occluded="1" outside="0"/></skeleton>',
        '<polygon label="cat" group_id="3" points="1,2;3,4;1,4"/>',
        '<polyline label="cat" points="1,2;9,4"/>',
        '<polygon label="cat" group_id="3" points="50,20;60,40;50,40"/>',
        '<box label="cat" xtl="1" ytl="2" xbr="x" ybr="40"/>',
        '<polygon label="cat" points="1;2"/>',
    ]
    data.write("cvat.xml", cvat(*shapes))
    prompts = data.read("cvat.xml")
    assert [prompt.prompt_id for prompt in prompts] == [f"a.jpg:{n}" for n in range(11)]
    assert [prompt.box_xyxy for prompt in prompts[:8]] == [
        (1, 2, 30, 40),
        (1, 2, 9, 30),
        None,
        (3, 4, 8, 10),
        (40, 35, 60, 45),
        pytest.approx((45, 25, 55, 45)),
        None,
        (1, 2, 60, 40),
    ]
    assert [prompts[n].points_xy for n in (2, 6)] == [((1, 2), (9, 4)), ((5, 6),)]
    assert [prompt.error is None for prompt in prompts] == [True] * 8 + [False] * 3
    assert json.loads(prompts[0].attributes or "") == {"age": "3", "occluded": 1, "shape": "box", "z_order": 2}
    assert "polyline a.jpg:8: a polyline is no box, polygon or points" in (prompts[8].error or "")


def test_cvat_of_projects_and_of_videos(data: Dataset) -> None:
    box = '<box label="cat" xtl="1" ytl="2" xbr="30" ybr="40"/>'
    data.write("cvat.xml", cvat(box, name="c.jpg", subset="train"))
    assert only(data.read("cvat.xml")).image_id == "train/c.jpg"
    data.write("cvat.xml", "<annotations><track id='0'/></annotations>")
    with pytest.raises(AnnotationError, match=r"expected CVAT for images, got CVAT for video"):
        data.read("cvat.xml")


HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def test_open_images(data: Dataset) -> None:
    data.write("class-descriptions.csv", "/m/1,Cat\n/m/2,Dog\n")
    rows = [
        "a,xclick,/m/1,1,0.1,0.3,0.25,0.75,1,0,1,0,-1",
        "c,xclick,/m/3,0.7,0,1,0,1,-1,-1,-1,-1,-1",
        "a,xclick,/m/2,1,0,1,0,1,0,0,0,0,0",
        "x,xclick,/m/2,1,0,1,0,1,0,0,0,0,0",
        "a,xclick,/m/2,1,10,30,1,2,0,0,0,0,0",
        "a,xclick",
    ]
    data.write("boxes.csv", "\n".join([HEADER, *rows]))
    prompts = data.read("boxes.csv")
    assert [prompt.prompt_id for prompt in prompts] == ["a:0", "c:0", "a:1", "x:0", "a:2", "a:3"]
    first, second, *_ = prompts
    assert first.box_xyxy == pytest.approx((10, 20, 30, 60))
    assert (first.iscrowd, first.category, first.score, first.image_size) == (True, "Cat", 1, (80, 100))
    assert json.loads(first.attributes or "") == {
        "LabelName": "/m/1",
        "Source": "xclick",
        "IsOccluded": True,
        "IsTruncated": False,
        "IsGroupOf": True,
        "IsDepiction": False,
    }
    assert (second.image_id, second.category, second.iscrowd) == ("train/c.jpg", "/m/3", False)
    assert [prompt.error is None for prompt in prompts] == [True] * 3 + [False] * 3
    assert "boxes.csv: line 5: no image file x.* is below" in (prompts[3].error or "")


def test_open_images_segments_and_other_tables(data: Dataset) -> None:
    columns = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    data.write("segments.csv", f"{columns}\nm.png,a,/m/1,0f,0.1,0.3,0.25,0.75,0.5,\n")
    prompt = only(data.read("segments.csv"))
    assert (prompt.prompt_id, prompt.box_xyxy) == ("a:0f", pytest.approx((10, 20, 30, 60)))
    data.write("other.csv", "image,x,y\na.jpg,1,2\n")
    with pytest.raises(AnnotationError, match=r"other\.csv: expected Open Images boxes .* got image, x, y"):
        data.read("other.csv")
    data.write("long.csv", HEADER + "\n" + "a" * 2**21)
    with pytest.raises(AnnotationError, match=r"long\.csv: line 2: expected a line below"):
        data.read("long.csv")


def test_lvis_names_images_by_their_url(data: Dataset) -> None:
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/train/c.jpg", "neg_category_ids": [4]},
        {"id": 2, "coco_url": "http://images.cocodataset.org/val2017/a.jpg", "not_exhaustive_category_ids": [3]},
        {"id": 3},
    ]
    records = [{"id": n, "image_id": n, "category_id": 3, "bbox": [1, 2, 30, 40]} for n in (1, 2, 3)]
    document = {"images": images, "annotations": records, "categories": [{"id": 3, "name": "cat", "synset": "cat.n"}]}
    data.write("lvis.json", document)
    prompts = data.read("lvis.json", format="lvis")
    assert [prompt.image_uri for prompt in prompts[:2]] == [data.uri("images/train/c.jpg"), data.uri("images/a.jpg")]
    assert prompts == data.read("lvis.json")
    assert "expected the name of an image file, got None" in (prompts[2].error or "")


def test_coco_keypoints_are_points_when_asked_for(data: Dataset) -> None:
    record = {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40], "keypoints": [5, 6, 2, 7, 8, 1, 0, 0, 0, 9, 9, 2]}
    odd = {"id": 2, "image_id": 1, "bbox": [1, 2, 30, 40], "keypoints": "x", "points": [[3, 4, 0]]}
    data.write("coco.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [record, odd]})
    assert [prompt.points_xy for prompt in data.read("coco.json")] == [(), ((3, 4),)]
    prompts = data.read("coco.json", keypoints=True)
    assert [prompt.points_xy for prompt in prompts] == [((5, 6), (9, 9)), ((3, 4),)]
    assert [prompt.point_labels for prompt in prompts] == [(1, 1), (0,)]


def detections(score: float) -> dict[str, Any]:
    record = {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40], "score": score, "category_id": 3}
    return {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [record], "categories": []}


def test_several_detectors_of_one_image(data: Dataset) -> None:
    data.write("night/yolo.json", detections(0.5))
    data.write("night/rcnn.json", detections(0.25))
    lines = [{"image": "a.jpg", "prompt_id": "1", "box_xyxy": [1, 2, 3, 4], "source": "own"}, {"image": "a.jpg"}]
    data.write("night/more.jsonl", "\n".join(map(json.dumps, lines)))
    data.write("night/README.json", "{}")
    expected = {"more/1", "more/a.jpg:1", "rcnn/1", "yolo/1"}
    for several in ("night", "night/*n*", "night/yolo.json,night/rcnn.json,night/more.jsonl"):
        prompts = data.read(several)
        assert {prompt.prompt_id for prompt in prompts} == expected
        assert all(
            json.loads(prompt.attributes or "")["annotation_source"] == prompt.prompt_id.partition("/")[0]
            for prompt in prompts
        )
    assert json.loads(data.read("night/*n*")[0].attributes or "")["source"] == "own"
    named = data.read("new=night/yolo.json,old=night/rcnn.json")
    assert [(prompt.prompt_id, prompt.score) for prompt in named] == [("new/1", 0.5), ("old/1", 0.25)]
    assert only(data.read("a.b-c=night/yolo.json")).prompt_id == "a.b-c/1"
    assert only(data.read("night/yolo.json")).prompt_id == "1"


def test_detectors_with_a_file_for_each_image(data: Dataset) -> None:
    data.write("one/labels/a.txt", "0 0.5 0.5 0.2 0.5\n")
    data.write("two/a.xml", voc(voc_object()))
    prompts = data.read("one=one/labels,two=two")
    assert [prompt.prompt_id for prompt in prompts] == ["one/a:0", "two/a:0"]
    assert [prompt.error for prompt in prompts] == [None, None]


def test_sources_that_cannot_be_told_apart_are_refused(data: Dataset) -> None:
    for folder in ("one", "two"):
        data.write(f"{folder}/boxes.json", detections(0.5))
    with pytest.raises(AnnotationError, match=r"expected sources of different names, got two called 'boxes'"):
        data.read("one/boxes.json,two/boxes.json")
    assert {prompt.prompt_id for prompt in data.read("*/boxes.json")} == {"one/boxes/1", "two/boxes/1"}
    data.write("one/a.xml", voc(voc_object()))
    with pytest.raises(AnnotationError, match=r"expected annotation files of one format, found boxes.json, a.xml"):
        data.read("one")
    assert only(data.read("one", format="voc")).prompt_id == "a:0"


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("nothing.json", "no such annotation file"),
        ("no*thing", "expected annotation files, found none"),
        ("images", "expected annotation files, found none"),
        ("a.json,,b.json", "got an empty name"),
    ],
)
def test_missing_sources(data: Dataset, annotations: str, message: str) -> None:
    data.write("a.json", detections(0.5))
    with pytest.raises(AnnotationError, match=message):
        read_prompts(annotations if ",," in annotations else data.uri(annotations), images_uri=data.uri("images"))


def test_a_format_that_the_file_has_not_is_refused(data: Dataset) -> None:
    data.write("a.json", detections(0.5))
    with pytest.raises(StableSamError, match=r"a\.json: expected format labelstudio, got coco"):
        data.read("a.json", format="labelstudio")
    with pytest.raises(AnnotationError, match=r"a\.json: expected LabelMe JSON with a list of shapes"):
        data.read("a.json", format="labelme")


def test_names_with_commas_and_equal_signs_are_names(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write("day=1/a,b.json", detections(0.5))
    monkeypatch.chdir(data.root)
    [prompt] = read_prompts("day=1/a,b.json", images_uri="images")
    assert prompt.prompt_id == "1"


def test_an_empty_format_is_told(data: Dataset) -> None:
    data.write("labels/a.txt", "\n")
    with pytest.raises(AnnotationError, match=r"labels: expected at least one annotation, got none"):
        data.read("labels")
