"""Pascal VOC, and LabelMe's older XML, to prompts; XML of strangers."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.errors import AnnotationError
from stable_sam.records import Prompt
from tests.unit.formats.dataset import Dataset, only, voc, voc_object


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


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "Shift_JIS", "euc-kr", "big5", "windows-1252", "iso-8859-15"])
def test_xml_in_the_encoding_that_it_declares(data: Dataset, encoding: str) -> None:
    word = {"euc-kr": "\uace0\uc591\uc774", "windows-1252": "K\u00e4fer", "iso-8859-15": "\u20ac"}.get(
        encoding, "\u82b1"
    )
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + voc(voc_object(name=word), *[voc_object()] * 500)
    data.write("xml/a.xml", text.encode(encoding))
    prompts = data.read("xml")
    assert (len(prompts), prompts[0].category, prompts[0].error) == (501, word, None)


def test_voc_corners_may_be_swapped_and_boxes_turned(data: Dataset) -> None:
    turned = "".join(
        f"<{n}>{v}</{n}>" for n, v in zip(("cx", "cy", "w", "h", "angle"), (50, 40, 40, 20, 1.5707963), strict=True)
    )
    polygon = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(((5, 6), (9, 2), (7, 20)), 1))
    data.write(
        "xml/a.xml",
        voc(
            voc_object("30 40 1 2"),
            f"<object><type>robndbox</type><name>cat</name><robndbox>{turned}</robndbox></object>",
            f"<object><name>cat</name><polygon>{polygon}</polygon></object>",
        ),
    )
    swapped, upright, around = data.read("xml")
    assert swapped.box_xyxy == (0, 1, 30, 40)
    assert upright.box_xyxy == pytest.approx((40, 20, 60, 60), abs=1e-4)
    assert around.box_xyxy == (5, 2, 9, 20)


def test_a_voc_root_is_told_from_the_lists_and_notes_beside_it(data: Dataset) -> None:
    data.write("VOC/Annotations/a.xml", voc(voc_object()))
    data.write("VOC/JPEGImages/a.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    for name in ("ImageSets/Main/train.txt", "ImageSets/Main/cat_train.txt", "notes.txt", "labelmap.txt"):
        data.write(f"VOC/{name}", "2007_000032  1\n")
    data.write("VOC/.meta.json", {"made": "by hand"})
    data.write("VOC/sizes.csv", "name,size\na,1\n")
    data.write("VOC/Annotations/._a.xml", b"\0\5\x16\7")
    prompt = only(data.read("VOC", "VOC"))
    assert (prompt.prompt_id, prompt.image_id, prompt.error) == ("Annotations/a:0", "JPEGImages/a.jpg", None)


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
        (voc(voc_object("30 2 x 40")), "expected a box of 4 numbers"),
        (voc("<object><robndbox><cx>1</cx><w>2</w><h>3</h><angle>0</angle></robndbox></object>"), "4 numbers"),
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
        (BOMB, "expected XML that defines no entities"),
        (OUTSIDE, "expected XML that defines no entities"),
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
