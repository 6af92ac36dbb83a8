"""Files as tools and people leave them: what is read of each, what is told, and what counts as deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stable_sam.errors import AnnotationError
from stable_sam.formats.export_records import SENT
from stable_sam.formats.labelstudio.brush_rle import encode_brush
from stable_sam.formats.polygons import one_ring, polygon_parts
from stable_sam.formats.registry import REVIEW_READERS
from stable_sam.formats.review_files import Sent, open_files
from stable_sam.formats.review_records import Answer, SentImage, collect
from stable_sam.rle import decode_mask, encode_mask

SIZE = (8, 10)


def square(x: int, y: int, side: int = 3) -> np.ndarray:
    mask = np.zeros(SIZE, np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def read(form: str, path: Path, sent: Path | None = None) -> tuple[dict[str, np.ndarray | None], list[str]]:
    answers, problems = collect(REVIEW_READERS[form](open_files(str(path), None if sent is None else str(sent))))
    return {answer.prompt_id: mask_of(answer) for answer in answers}, problems


def mask_of(answer: Answer) -> np.ndarray | None:
    return None if answer.mask is None else decode_mask(answer.mask.size_hw, answer.mask.counts)


def write_sent(folder: Path, **objects: dict[str, Any]) -> None:
    sent = [{"prompt_id": prompt_id, "revision": 1, **place} for prompt_id, place in objects.items()]
    image = {"image_uri": "/x/a.jpg", "name": "a.jpg", "size": list(SIZE), "sent": sent}
    (folder / SENT).write_text(json.dumps({"format": "?", "images": [image]}))


def same(found: np.ndarray | None, expected: np.ndarray) -> bool:
    return found is not None and np.array_equal(found, expected)


def test_coco_as_other_tools_write_it(tmp_path: Path) -> None:
    def annotation(number: int, segmentation: Any, **more: Any) -> dict[str, Any]:
        return {"id": number, "image_id": 1, "segmentation": segmentation, **more}

    uncompressed = {"size": list(SIZE), "counts": [8, 2, 70]}
    document = {
        "annotations": [
            annotation(1, uncompressed, prompt_id="runs"),
            annotation(2, [[1, 1, 4, 1, 4, 4, 1, 4], [6, 6, 8, 6, 8, 8, 6, 8]], attributes={"prompt_id": "parts"}),
            annotation(3, [[1, 1, 4, 1]], prompt_id="line"),
            annotation(4, {"size": [9, 9], "counts": [81]}, prompt_id="other-size"),
            annotation(5, [[1, 1, 4, 1, 4, 4]]),
        ],
        "images": [{"id": 1, "file_name": "images/a.jpg", "height": 8, "width": 10}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    write_sent(tmp_path, runs={}, parts={}, line={}, gone={}, **{"other-size": {}})
    found, problems = read("coco", tmp_path)
    runs = np.zeros(SIZE, np.bool_)
    runs[:2, 1] = True
    assert same(found["runs"], runs)
    assert same(found["parts"], square(1, 1) | square(6, 6, 2))
    # The last annotation may be the one that seems to be deleted.
    assert found.keys() == {"runs", "parts"}
    assert [problem.rpartition("annotation ")[2].rpartition("a.json: ")[2] for problem in problems] == [
        "3: prompt line: expected a polygon of at least 3 corners",
        "4: prompt other-size: expected a mask of its image's size [8, 10], got [9, 9]",
        "5: a new object without a prompt_id",
        "image 1: 1 mask without an answer, which cannot be told to be deleted (prompts gone): they may be among the "
        "image's objects whose prompts are not known",
    ]
    document["annotations"].pop()
    (tmp_path / "a.json").write_text(json.dumps(document))
    found, problems = read("coco", tmp_path)
    assert (found["gone"], len(found), len(problems)) == (None, 3, 2)


def test_an_image_that_did_not_come_back_has_lost_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": []}))
    write_sent(tmp_path, p1={}, p2={})
    assert read("coco", tmp_path) == ({}, [])


def test_cvat_as_people_leave_it(tmp_path: Path) -> None:
    def shape(kind: str, prompt_id: str | None, **attributes: str) -> str:
        own = "".join(f' {name}="{value}"' for name, value in attributes.items())
        attribute = "" if prompt_id is None else f'<attribute name="prompt_id">{prompt_id}</attribute>'
        return f"<{kind} label='x'{own}>{attribute}</{kind}>"

    shapes = (
        shape("polygon", "two", points="1,1;4,1;4,4;1,4"),
        shape("polygon", "two", points="6,4;8,4;8,6;6,6", group_id="1"),
        shape("mask", "runs", rle="1, 3, 2", left="2", top="3", width="3", height="2"),
        shape("mask", "short", rle="1, 3", left="2", top="3", width="3", height="2"),
        shape("mask", "outside", rle="6", left="9", top="3", width="3", height="2"),
        shape("box", "box", xtl="1", ytl="1", xbr="2", ybr="2"),
        shape("mask", None, rle="0, 6", left="2", top="3", width="3", height="2"),
        "<tag label='x'/>",
    )
    xml = f"<annotations><image id='0' name='Train/a.jpg' width='10' height='8'>{''.join(shapes)}</image></annotations>"
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "annotations.xml").write_text(xml)
    write_sent(tmp_path, **{name: {"id": name} for name in ("two", "runs", "short", "outside", "box", "gone")})
    found, problems = read("cvat", tmp_path / "back", sent=tmp_path)
    runs = np.zeros(SIZE, np.bool_)
    runs[3, 3:5] = runs[4, 2] = True
    assert same(found["two"], square(1, 1) | square(6, 4, 2))
    assert same(found["runs"], runs)
    assert len(found) == 2
    told = "expected a mask inside its image, with run lengths that add up to its box"
    assert [problem.rpartition("a.jpg: ")[2] for problem in problems] == [
        f"mask 3: prompt short: {told}",
        f"mask 4: prompt outside: {told}",
        "box 5: prompt box: expected a mask or a polygon, got a box",
        "mask 6: a new object without a prompt_id",
        "1 mask without an answer, which cannot be told to be deleted (prompts gone): they may be among the image's "
        "objects whose prompts are not known",
    ]
    xml = xml.replace(shapes[6], "")
    (tmp_path / "back" / "annotations.xml").write_text(xml)
    assert read("cvat", tmp_path / "back", sent=tmp_path)[0]["gone"] is None
    # Without the list nothing counts as deleted.
    assert "gone" not in read("cvat", tmp_path / "back")[0]


def test_label_studio_as_annotators_leave_it(tmp_path: Path) -> None:
    def region(name: str, value: Any, **more: Any) -> dict[str, Any]:
        return {"id": name, "type": "?", "original_width": 10, "original_height": 8, "value": value, **more}

    polygon = {"points": [[10, 12.5], [40, 12.5], [40, 50], [10, 50]]}
    results = [
        region("brush", {"format": "rle", "rle": encode_brush(square(2, 2))}),
        region("polygon#Xy1", polygon),
        region("turned", polygon, image_rotation=90),
        region("box", {"x": 1, "y": 1, "width": 10, "height": 10}, type="rectanglelabels"),
        region("new", polygon),
        region("erased", {"format": "rle", "rle": encode_brush(np.zeros(SIZE, np.bool_))}),
    ]
    sent = {name: {"prompt_id": f"p-{name}", "revision": 1}
            for name in ("brush", "polygon", "turned", "box", "erased", "gone")}  # fmt: skip
    other = [region("brush", {"rle": encode_brush(square(0, 0))})]
    task = {"id": 7, "data": {"stable_sam": {"sent": sent}}}
    annotations = [{"id": 1, "result": results}, {"id": 2, "was_cancelled": True, "result": other}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps([{**task, "annotations": annotations}]))
    found, problems = read("labelstudio", path)
    assert same(found["p-brush"], square(2, 2))
    assert same(found["p-polygon"], square(1, 1))
    assert (found["p-erased"], len(found)) == (None, 3)
    assert "(prompts p-gone)" in problems.pop()
    assert [problem.partition("region ")[2].partition(",")[0] for problem in problems] == [
        "turned: prompt p-turned: expected an image that is not rotated: a mask on a rotated image does not fit the "
        "file",
        "box: prompt p-box: expected a brush mask or a polygon",
        "new: a new object without a prompt_id",
    ]
    # Two annotators who do not agree.
    path.write_text(json.dumps([{**task, "annotations": [annotations[0], {"id": 3, "result": other}]}]))
    found, problems = read("labelstudio", path)
    assert found.keys() == {"p-gone", "p-erased"}
    assert f"prompt p-brush: two different masks: {path}: task 7, annotation 1, region brush" in "\n".join(problems)
    assert "prompt p-polygon: a mask in one and deleted in the other" in "\n".join(problems)


def test_yolo_lines_in_any_order(tmp_path: Path) -> None:
    masks = {"a": square(0, 0), "b": square(5, 1, 4)}
    changed = square(5, 1, 4) | square(8, 2, 2)
    write_sent(tmp_path, **{name: {"class": 0, "mask": encode_mask(mask).counts} for name, mask in masks.items()})

    def line(mask: np.ndarray) -> str:
        return "0 " + " ".join(map(str, (one_ring(polygon_parts(mask)) / SIZE[::-1]).ravel()))

    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text(f"{line(changed)}\n\n{line(masks['a'])}\n")
    found, problems = read("yolo", tmp_path)
    assert same(found["a"], masks["a"])
    assert same(found["b"], changed)
    assert problems == []
    (labels / "a.txt").write_text(line(changed))
    assert read("yolo", tmp_path)[0]["a"] is None
    # What is like nothing that was sent may be the missing one: then nothing is deleted.
    (labels / "a.txt").write_text(f"{line(changed)}\n{line(square(0, 6, 2))}\n")
    found, problems = read("yolo", tmp_path)
    assert found.keys() == {"b"}
    assert "expected one line for each mask that was sent, with an IoU of at least 0.1" in problems[0]


@pytest.mark.parametrize(("form", "name"), [("png", "a.png"), ("yolo", "a.txt")])
def test_formats_without_ids_need_the_list(form: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(AnnotationError, match=f"expected {SENT} beside the files, or --sent"):
        read(form, tmp_path)
    (tmp_path / SENT).write_text('{"images": [{"name": "a.jpg"}]}')
    with pytest.raises(AnnotationError, match="expected the list of an export"):
        read(form, tmp_path)


def test_images_are_found_by_the_end_of_their_names_when_that_is_clear() -> None:
    def image(name: str) -> SentImage:
        return SentImage(name=name, size_hw=SIZE, objects=())

    sent = Sent({name: image(name) for name in ("x/a.jpg", "y/a.jpg", "y/b.jpg", "y/c.jpg", "y/c.png")})
    for name, expected in {
        "x/a.jpg": "x/a.jpg",
        "images/y/a.jpg": "y/a.jpg",
        "b.jpg": "y/b.jpg",
        "a.jpg": None,
        "frames/y/b.png": "y/b.jpg",
        "y\\b": "y/b.jpg",
        "c.png": "y/c.png",
        "c.webp": None,
        "": None,
    }.items():
        found = sent.find(name)
        assert (None if found is None else found.name) == expected


def coco_of(*masks: np.ndarray, **ids: str) -> dict[str, Any]:
    """A file of one image, whose annotations carry no prompts but those of `ids`, given by position."""
    annotations = [
        {"id": n + 1, "image_id": 1, "segmentation": {"size": list(SIZE), "counts": encode_mask(mask).counts}}
        | ({"prompt_id": ids[f"n{n}"]} if f"n{n}" in ids else {})
        for n, mask in enumerate(masks)
    ]
    return {"images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}], "annotations": annotations}


def read_coco(folder: Path, document: dict[str, Any], **sent: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    (folder / "a.json").write_text(json.dumps(document))
    write_sent(folder, **{name: {"mask": encode_mask(mask).counts} for name, mask in sent.items()})
    return read("coco", folder)


SENT_MASKS = {"a": square(0, 0), "b": square(5, 1, 4), "c": square(0, 4)}


def test_a_mask_without_its_prompt_goes_to_the_sent_mask_that_it_is_like(tmp_path: Path) -> None:
    changed = square(5, 1, 4) | square(8, 2, 2)
    found, problems = read_coco(tmp_path, coco_of(changed, square(0, 4), square(0, 0), n1="c"), **SENT_MASKS)
    assert problems == []
    assert same(found["a"], square(0, 0))
    assert same(found["b"], changed)
    assert same(found["c"], square(0, 4))


def test_absence_is_a_deletion_only_where_each_object_has_its_prompt_or_exactly_its_mask(tmp_path: Path) -> None:
    redrawn = square(5, 1, 4)
    redrawn[4, 8] = False
    for masks, deleted in {
        (0, 1): {"c"},
        (0,): {"b", "c"},
        (): {"a", "b", "c"},
        (2, 3): set(),  # a redrawn one
        (0, 4): set(),  # one that is like none
    }.items():
        every = (*SENT_MASKS.values(), redrawn, square(7, 6, 2))
        found, problems = read_coco(tmp_path, coco_of(*(every[n] for n in masks)), **SENT_MASKS)
        assert {name for name, mask in found.items() if mask is None} == deleted
        assert ("cannot be told to be deleted" in "".join(problems)) == (not deleted)


def test_a_tool_that_draws_every_mask_anew_deletes_none(tmp_path: Path) -> None:
    redrawn = [square(x, y, side + 1) for x, y, side in ((0, 0, 3), (5, 1, 4))]
    lines = ["0 " + " ".join(map(str, (one_ring(polygon_parts(m)) / SIZE[::-1]).ravel())) for m in redrawn]
    write_sent(tmp_path, **{name: {"mask": encode_mask(mask).counts} for name, mask in SENT_MASKS.items()})
    (tmp_path / "a.txt").write_text("\n".join(lines))
    found, problems = read("yolo", tmp_path)
    assert found.keys() == {"a", "b"}
    assert "drew every mask anew" in problems[0]


def test_files_without_masks_beside_the_masks_delete_nothing(tmp_path: Path) -> None:
    """As datumaro writes them: a list of images, and panoptic annotations."""
    document = coco_of(*SENT_MASKS.values(), n0="a", n1="b", n2="c")
    panoptic = {"image_id": 1, "file_name": "a.png", "segments_info": []}
    (tmp_path / "image_info.json").write_text(json.dumps(document | {"annotations": []}))
    (tmp_path / "panoptic.json").write_text(json.dumps(document | {"annotations": [panoptic]}))
    found, problems = read_coco(tmp_path, document, **SENT_MASKS)
    assert problems == []
    assert all(same(found[name], mask) for name, mask in SENT_MASKS.items())


def test_labels_are_found_without_the_folders_of_their_images(tmp_path: Path) -> None:
    write_sent(tmp_path, a={"mask": encode_mask(square(0, 0)).counts})
    listed = (tmp_path / SENT).read_text()
    (tmp_path / SENT).write_text(listed.replace('"a.jpg"', '"sub/images/a.jpg"'))
    line = "0 " + " ".join(map(str, (one_ring(polygon_parts(square(0, 0))) / SIZE[::-1]).ravel()))
    for place in ("a.txt", "labels/a.txt", "labels/sub/images/a.txt", "images/sub/labels/a.txt"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
        assert same(read("yolo", tmp_path)[0]["a"], square(0, 0)), place
        path.unlink()
    (tmp_path / "b.txt").write_text(line)
    (tmp_path / "train.txt").write_text("./images/a.jpg")
    found, problems = read("yolo", tmp_path)
    assert (found, len(problems)) == ({}, 1)
    assert "b.txt: expected the labels of one image in the list" in problems[0]


def test_prompts_that_changed_places_go_back_to_theirs(tmp_path: Path) -> None:
    document = coco_of(*SENT_MASKS.values(), n0="b", n1="c", n2="a")
    found, problems = read_coco(tmp_path, document, **SENT_MASKS)
    assert problems == []
    assert all(same(found[name], mask) for name, mask in SENT_MASKS.items())
    # Who draws one mask over another one means it.
    found, _ = read_coco(tmp_path, coco_of(square(5, 1, 4), square(5, 1, 4), n0="a", n1="b"), **SENT_MASKS)
    assert same(found["a"], square(5, 1, 4))
    assert same(found["b"], square(5, 1, 4))


def test_a_prompt_that_was_not_sent_with_its_image_is_told(tmp_path: Path) -> None:
    found, problems = read_coco(tmp_path, coco_of(*SENT_MASKS.values(), square(7, 6, 2), n3="z"), **SENT_MASKS)
    assert found.keys() == SENT_MASKS.keys()
    assert problems[0].endswith("annotation 4: an object of prompt z, which was not sent")
