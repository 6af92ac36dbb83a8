"""Annotation files, folders, images and weights of strangers: one line or one failed row each, and nothing else."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stable_sam.errors import AnnotationError, ImageError
from stable_sam.formats.prompt_table import read as prompt_table
from stable_sam.formats.prompt_table import rows as prompt_rows
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.images.decode import decode_image
from stable_sam.records import Prompt
from stable_sam.storage import files as storage
from stable_sam.storage.json_stream import MAX_ELEMENT_CHARS
from tests.unit.formats.hostile import coco, read

OUTSIDE = [
    "../outside/private.jpg",
    "deep/../../outside/private.jpg",
    "..\\outside\\private.jpg",
    "/etc/passwd",
    "//etc/passwd",
    "C:/Windows/win.ini",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "https://example.invalid/a.jpg",
    "s3://other-bucket/a.jpg",
    "github://org:repo@main/a.jpg",
    "simplecache::file:///etc/passwd",
    "zip://a.jpg::file:///tmp/x.zip",
    "memory://a.jpg",
    "~/a.jpg",
    "$HOME/a.jpg",
    "a.jpg\0.png",
    "%2e%2e/outside/private.jpg",
    "\uff0e\uff0e/outside/private.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_image_folder(root: Path, name: str) -> None:
    [by_coco] = read(root, coco(name))
    [by_table] = read(root, {"image": name, "box_xyxy": [1, 2, 30, 40]})
    for prompt in (by_coco, by_table):
        if prompt.error is None:  # by the end of its name
            assert (prompt.image_uri, name.rpartition("/")[2]) == (f"{root}/images/a.jpg", "a.jpg")
        else:
            assert prompt.image_uri == ""
            assert "image file" in prompt.error


@pytest.mark.parametrize(
    "suffix", ["/../outside/private.jpg", "/../images2/a.jpg", "2/a.jpg", "/deep/../../outside/private.jpg"]
)
def test_no_uri_leads_out_of_the_image_folder(root: Path, suffix: str) -> None:
    (root / "images2").mkdir()
    (root / "images2" / "a.jpg").write_bytes(b"")
    [prompt] = read(root, {"image": f"file://{root}/images{suffix}", "box_xyxy": [1, 2, 30, 40]})
    # What it names inside, if anything, is found by the end of the name.
    expected = f"{root}/images/a.jpg" if suffix.endswith("/a.jpg") else ""
    assert (prompt.image_uri, prompt.error is None) == (expected, bool(expected))


def test_links_that_lead_out_of_the_folder_are_no_images(root: Path) -> None:
    images = root / "images"
    (images / "passwd.jpg").symlink_to("/etc/passwd")
    (images / "out").symlink_to(root / "outside")
    (images / "up").symlink_to(root)
    (images / "circle").symlink_to(images)
    (images / "inside.jpg").symlink_to(images / "a.jpg")
    (images / "beside").symlink_to("deep")
    os.mkfifo(images / "pipe.jpg")
    found = {uri.removeprefix(f"{images}/") for uri in storage.list_files(str(images))}
    own = {"a.jpg", "deep/b.jpg", "inside.jpg"}
    assert found == own | {"beside/b.jpg"} | {f"circle/{name}" for name in own}
    [prompt] = read(root, coco("out/private.jpg"))
    assert "links that lead out of it are not followed" in (prompt.error or "")


def test_many_links_to_each_other_are_listed_once(root: Path) -> None:
    for number in range(30):
        (root / "images" / f"link{number}").symlink_to(root / "images")
    assert len(storage.list_files(str(root / "images"))) == 2 * 31


def test_the_folder_itself_may_be_a_link(root: Path) -> None:
    (root / "linked").symlink_to(root / "images")
    assert storage.list_files(str(root / "linked")) == [f"{root}/linked/a.jpg", f"{root}/linked/deep/b.jpg"]


def test_names_that_are_no_unicode_are_left_out(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root / "images") + b"/\xff.jpg")).write_bytes(b"")
    assert len(storage.list_files(str(root / "images"))) == 2


@pytest.mark.parametrize("field", ["id", "image_id", "category_id", "note", "score"])
def test_names_of_megabytes_are_short_in_tables_and_errors(root: Path, field: str) -> None:
    [prompt] = read(root, coco(**{field: "x" * 3_000_000}))
    assert len(repr(prompt)) < 4000
    [other] = read(root, coco(**{field: "x" * 2_999_999}))
    if field == "id":
        assert prompt.prompt_id != other.prompt_id


def test_a_file_name_of_megabytes(root: Path) -> None:
    name = "y" * 3_000_000
    prompts = read(root, coco(name)) + read(root, {"image": name, "box_xyxy": [1, 2, 30, 40]})
    prompts += read(root, {"image": "a.jpg", "k" * 3_000_000: 1, "box_xyxy": [1, 2, 30, 40], "category": name})
    assert all(len(repr(prompt)) < 4000 for prompt in prompts)
    assert [prompt.error is None for prompt in prompts] == [False, False, True]


def test_a_crowd_of_attributes_is_cut(root: Path) -> None:
    [prompt] = read(root, coco(**{f"field{number}": number for number in range(10_000)}))
    assert len(json.loads(prompt.attributes or "")) == 100


def test_a_crowd_of_points_is_refused(root: Path) -> None:
    [prompt] = read(root, coco(points=[[5, 5, 1]] * 5000))
    assert "expected at most 1000 points, got 5000" in (prompt.error or "")
    assert prompt.points_xy == ()


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;title\x07", "\u202egnp.exe", "line\nbreak\r", "\x9b31m", "\u2028"])
def test_control_characters_do_not_reach_the_terminal(root: Path, text: str) -> None:
    prompts = read(root, coco(text)) + read(root, coco(id=text, bbox=[0, 0, 0, 0])) + read(root, coco(image_id=text))
    prompts += read(root, {"image": text, "prompt_id": text})
    for prompt in prompts:
        assert prompt.error is not None
        assert prompt.error.isprintable()
    with pytest.raises(AnnotationError) as raised:
        read(root, {text: 1})
    assert str(raised.value).isprintable()


DEEP = 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * DEEP, "not valid JSON: maximum recursion"),
        (b'{"a":' * DEEP, "not valid JSON: maximum recursion"),
        (b'{"images": [], "annotations": [' + b"[" * DEEP, "not valid JSON: maximum recursion"),
        (b'{"image": "a.jpg", "x": ' + b"[" * DEEP + b"\n", "line 1: not valid JSON"),
        (b'[{"image_id": 1' + b"0" * 5000 + b"}]", "not valid JSON: Exceeds the limit"),
        (b'{"images": [], "images": [], "annotations": []}', "expected one list under 'images', got two"),
        (b'{"categories": [], "images": [], "annotations": [], "images": []}', "expected one list under 'images'"),
        (b'{"images": [], "annotations": []} {', "not valid JSON: Extra data at line 1, column 35"),
        (b'{"images": [],\n "annotations": [\n {"id": 1}, x]}', "Expecting value at line 3, column 13"),
        (b'{"images": [],\n "categories": [],\n "annotations": [1,\n x]}', "Expecting value at line 4, column 2"),
        (b'{"images": [], "annotations": [{"id": "' + b"x" * (MAX_ELEMENT_CHARS + 10), "more than 16777216 characters"),
        (b'{"image": "' + b"x" * (prompt_table.MAX_LINE_BYTES + 10), "line 1: expected a line below"),
        (b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1', "not valid JSON: Expecting ',' "),
        ('{"images": []'.encode("utf-16"), "byte 0: expected text in UTF-8, got the byte 0xff"),
        ('{"k\u00f6'.encode()[:-1], "unexpected end of data"),
    ],
)
def test_malicious_json_is_one_line(root: Path, content: bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as raised:
        read(root, content)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 2100


@pytest.mark.parametrize("order", [["images", "categories", "annotations"], ["annotations", "categories", "images"]])
def test_elements_across_the_borders_of_blocks(root: Path, order: list[str]) -> None:
    count = 12_000
    document = {
        "images": [{"id": n, "file_name": "a.jpg", "url": "é" * n} for n in range(300)],
        "annotations": [
            {"id": n, "image_id": n % 300, "category_id": 1, "bbox": [n, 0.25, 7.125, 9], "segmentation": [[n] * 20]}
            for n in range(count)
        ],
        "categories": [{"id": 1, "name": "ü"}],
    }
    (root / "x.json").write_text(json.dumps({key: document[key] for key in order}, ensure_ascii=False))
    where = {"images_uri": str(root / "images")}
    batches = list(read_prompt_batches(str(root / "x.json"), **where))
    assert [batch.num_rows for batch in batches] == [10_000, 2000]
    rows = pa.Table.from_batches(batches)
    assert rows["prompt_id"].to_pylist() == [str(n) for n in range(count)]
    assert rows["box_xyxy"].to_pylist() == [[n, 0.25, n + 7.125, 9.25] for n in range(count)]
    assert set(rows["category"].to_pylist()) == {"ü"}


def test_plain_rows_are_never_read_one_by_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": ["a.jpg"] * 4, "box_xyxy": [[1.0, 2.0, 30.0, 40.0]] * 3 + [[5.0, 2.0, 3.0, 40.0]]})
    pq.write_table(table, root / "x.parquet")
    read_one_by_one: list[int] = []
    real = prompt_rows._prompt

    def spy(where: str, *args: Any) -> Prompt:
        read_one_by_one.append(int(where.rpartition(" ")[2]))
        return real(where, *args)

    monkeypatch.setattr(prompt_rows, "_prompt", spy)
    [batch] = read_prompt_batches(str(root / "x.parquet"), images_uri=str(root / "images"))
    assert batch.column("prompt_id").to_pylist() == [f"a.jpg:{n}" for n in range(4)]
    assert read_one_by_one == [4]


def test_long_lists_are_read_in_small_batches(root: Path) -> None:
    mask = pa.array([[0] * 1000] * 30, pa.list_(pa.int64()))
    table = pa.table({"image": ["a.jpg"] * 30, "box_xyxy": [[1.0, 2.0, 30.0, 40.0]] * 30, "mask": mask})
    pq.write_table(table, root / "x.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_table, "MAX_BATCH_BYTES", 85_000)
        batches = list(read_prompt_batches(str(root / "x.parquet"), images_uri=str(root / "images")))
    assert [batch.num_rows for batch in batches] == [10, 10, 10]


def test_damaged_column_metadata_do_not_end_the_process(root: Path) -> None:
    """Asked for the metadata of such a column, pyarrow aborts."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": ["a.jpg"], "box_xyxy": [[1.0, 2.0, 30.0, 40.0]]}), sink)
    data = bytes(sink.getvalue())
    texts = [position for position, byte in enumerate(data) if byte == 12]  # a column of texts, as Thrift writes it
    for position in texts:
        with suppress(AnnotationError):
            read(root, data[:position] + b"\0" + data[position + 1 :])  # a column of booleans


NOT_UTF8 = {
    "a.json": json.dumps({"images": [{"id": 1, "file_name": "k\u00f6.jpg"}], "annotations": []}, ensure_ascii=False),
    "a.jsonl": '{"image": "k\u00f6.jpg", "box_xyxy": [1, 2, 30, 40]}',
    "a.csv": "ImageID,XMin,XMax,YMin,YMax\nk\u00f6,0.1,0.2,0.1,0.2\n",
    "classes.txt": "k\u00f6\n",
    "data.yaml": "names: [k\u00f6]\n",
}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("name", NOT_UTF8)
def test_text_in_another_encoding_is_named_as_such(root: Path, name: str, encoding: str) -> None:
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 .5 .5 .2 .2")
    (root / "labels" / name).write_bytes(NOT_UTF8[name].encode(encoding))
    given = root / "labels" if name in ("classes.txt", "data.yaml") else root / "labels" / name
    byte = {"latin-1": "f6", "utf-16": "ff"}[encoding]
    with pytest.raises(AnnotationError, match=rf"{name}.*expected text in UTF-8, got the byte 0x{byte}; save the file"):
        list(read_prompts(str(given), images_uri=str(root / "images")))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.xml", "a.parquet"])
def test_an_empty_file_is_said_to_be_empty(root: Path, name: str) -> None:
    (root / name).write_bytes(b"")
    with pytest.raises(AnnotationError, match=f"{name}: the file is empty"):
        list(read_prompts(str(root / name), images_uri=str(root / "images")))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.json", "a.xml", "a.csv", "a.txt", "a.parquet"])
def test_a_pointer_of_git_lfs_is_named_as_such(root: Path, name: str) -> None:
    (root / name).write_bytes(POINTER)
    with pytest.raises(
        AnnotationError, match=rf"{name}: expected annotations, got a pointer of Git LFS.* git lfs pull"
    ):
        list(read_prompts(str(root / name), images_uri=str(root / "images")))


def test_an_image_that_is_a_pointer_of_git_lfs_is_named_as_such(root: Path) -> None:
    (root / "images" / "p.jpg").write_bytes(POINTER)
    (root / "p.txt").write_text("0 .5 .5 .2 .2")
    [prompt] = read_prompts(str(root / "p.txt"), images_uri=str(root / "images"))
    assert "p.jpg: cannot read the image's size: expected an image, got a pointer of Git LFS" in (prompt.error or "")
    with pytest.raises(ImageError, match="got a pointer of Git LFS .*git lfs pull"):
        decode_image(POINTER, name="p.jpg", max_pixels=100)
