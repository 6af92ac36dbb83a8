"""Annotation files, folders, images and weights of strangers: one line or one failed row each, and nothing else."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stable_sam.config import RefinerConfig
from stable_sam.errors import AnnotationError, ImageError, StorageError, WeightsError, shown
from stable_sam.formats.prompt_table import read as prompt_table
from stable_sam.formats.prompt_table import rows as prompt_rows
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.images.decode import decode_image
from stable_sam.modeling.load import load_model
from stable_sam.records import Prompt
from stable_sam.storage import files as storage
from stable_sam.storage.json_stream import MAX_ELEMENT_CHARS

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    (tmp_path / "images" / "deep" / "b.jpg").write_bytes(b"")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private.jpg").write_bytes(b"")
    return tmp_path


def read(root: Path, content: Any, name: str = "x.json") -> list[Prompt]:
    (root / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return list(read_prompts(str(root / name), images_uri=str(root / "images")))


def coco(file_name: Any = "a.jpg", **fields: Any) -> dict[str, Any]:
    record = {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 40]} | fields
    return {"images": [{"id": 1, "file_name": file_name}], "annotations": [record], "categories": []}


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
        ('{"images": []'.encode("utf-16"), "not valid JSON: 'utf-8' codec"),
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


def png(width: int, height: int, body: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    others = b"".join(chunk(*part) for part in extra)
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000, b""),
        png(10_001, 10_000, zlib.compress(b"\0")),
        png(16, 16, b"", (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 50_000_000))),
        png(16, 16, b"", (b"iCCP", b"a\0\0" + zlib.compress(b"x" * 50_000_000))),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",",
        b"P6 20000 20000 255\n",
        b"P1 99999999999999999999 1\n",
    ],
    ids=["20000^2", "a row above the limit", "text", "profile", "bmp", "gif", "ppm", "digits"],
)
def test_bombs_are_refused_in_little_memory(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError) as raised:
        decode_image(data, name="bomb", max_pixels=100_000_000)
    assert str(raised.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_pixels_beyond_the_header_are_never_unpacked() -> None:
    data = png(16, 16, zlib.compress(bytes(50_000_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(data, name="x", max_pixels=1000).shape == (16, 16, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024


def tiff(tile_side: int) -> bytes:
    """9 x 7 pixels in one tile."""
    tile = zlib.compress(bytes(1000))
    tags = {256: 9, 257: 7, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile_side, 323: tile_side, 324: 134, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tile


def test_a_tile_larger_than_its_image_is_never_unpacked() -> None:
    assert decode_image(tiff(16), name="x", max_pixels=1000).shape == (7, 9, 3)
    with pytest.raises(ImageError, match="expected tiles of at most 1000000 pixels, got 16384 x 16384 for an image of"):
        decode_image(tiff(16384), name="x", max_pixels=1_000_000)


DECODE = """
import resource, sys
from stable_sam.images.decode import decode_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = decode_image(open(sys.argv[1], "rb").read(), name="x", max_pixels=100_000_000)
assert pixels.shape == (10_000, 10_000, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_hundred_megapixels_take_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    Image.new("RGB", (10_000, 10_000), "teal").save(path, quality=50)
    done = subprocess.run([sys.executable, "-c", DECODE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 900, "MiB: 300 of the result, 400 of Pillow's own"


def test_strips_make_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    for mode in ("RGBA", "RGB", "L", "LA", "CMYK", "P"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGB" if mode == "CMYK" else mode).convert(mode).save(buffer, "TIFF")
        whole = decode_image(buffer.getvalue(), name="x", max_pixels=10_000)
        monkeypatch.setattr("stable_sam.images.decode.STRIP_PIXELS", 100)
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), name="x", max_pixels=10_000), whole)
        monkeypatch.undo()


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert storage.read_bytes(str(path), max_bytes=5) == b"12345"
    with pytest.raises(StorageError, match="x: cannot read: expected at most 4 bytes, got a larger file"):
        storage.read_bytes(str(path), max_bytes=4)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{KEY_ID}:{SECRET}@bucket/x.json",
        f"https://user:{SECRET}@example.invalid/x.json",
        f"https://example.invalid/x.json?X-Amz-Credential={KEY_ID}%2F2025&X-Amz-Signature={SECRET}",
        f"https://example.invalid/x.json?sv=1&sig={SECRET}",
        f"https://example.invalid/x.json?access_token={SECRET}#frag",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(root: Path, uri: str) -> None:
    for act in (storage.read_bytes, storage.open_stream, storage.list_files, storage.check_output, storage.exists):
        with pytest.raises(StorageError, match="expected a URI without credentials") as raised:
            act(uri)
        assert SECRET not in str(raised.value)
        assert KEY_ID not in str(raised.value)
    [by_coco] = read(root, coco(uri))
    [by_table] = read(root, {"image": uri, "box_xyxy": [1, 2, 30, 40]})
    assert SECRET not in f"{by_coco} {by_table}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"<Code>X</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>",
            "<Code>X</Code><AWSAccessKeyId>***</AWSAccessKeyId>",
        ),
        (f"aws_secret_access_key='{SECRET}'", "aws_secret_access_key='***'"),
        (f'{{"AccessKeyId": "{KEY_ID}", "SessionToken": "{SECRET}"}}', '{"AccessKeyId": "***", "SessionToken": "***"}'),
        ("s3://bucket/key=5/part@2.parquet", "s3://bucket/key=5/part@2.parquet"),
        ("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",) * 2,
        ("tab\there", "tab\\there"),
        ("x" * 5000, "x" * 1999 + "…"),
    ],
)
def test_what_is_shown_has_no_credentials(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert str(StorageError(text)) == expected


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("which", ["checkpoint_uri", "hq_uri"])
@pytest.mark.parametrize("archive", [True, False])
def test_weights_execute_no_code(tmp_path: Path, which: str, archive: bool) -> None:
    bad, executed = tmp_path / "bad.pth", tmp_path / "executed"
    if archive:
        torch.save({"weight": torch.zeros(1), "more": Payload(executed)}, bad)
    else:
        bad.write_bytes(pickle.dumps(Payload(executed), protocol=2))
    model = {"model": "vit_b"} if which == "checkpoint_uri" else {"model": "tiny"}
    with pytest.raises(WeightsError, match="bad.pth: expected"):
        load_model(RefinerConfig.from_dict({**model, which: str(bad), "device": "cpu"}))
    assert not executed.exists()


def test_a_pickle_is_no_safetensors_file(tmp_path: Path) -> None:
    bad, executed = tmp_path / "plugin.safetensors", tmp_path / "executed"
    bad.write_bytes(pickle.dumps(Payload(executed), protocol=2))
    with pytest.raises(WeightsError, match="expected a safetensors file"):
        load_model(RefinerConfig(model="nano", plugin_uri=str(bad), device="cpu"))
    assert not executed.exists()
