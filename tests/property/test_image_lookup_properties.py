"""Names of images as other machines write them: the image that was meant, or a reason, and never a file outside."""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.image_names import same_image
from stable_sam.storage.files import write_bytes

folders = st.lists(st.sampled_from(["a", "b", "labels", "images", "é"]), max_size=3)
names = st.builds(
    lambda path, stem, ending: "/".join([*path, stem + ending]),
    folders,
    st.sampled_from(["x", "y", "é", "x.1"]),
    st.sampled_from([".jpg", ".PNG", ".txt"]),
)
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "on Windows": lambda name: f"C:\\set\\{name}".replace("/", "\\"),
    "from elsewhere": lambda name: f"../../set/{name}",
    "absolute": lambda name: f"/srv/set/{name}",
    "in a bucket": lambda name: f"s3://lake/set/{name}",
    "as a URL": lambda name: f"https://host/set/{name}?key=1#top",
    "decomposed": lambda name: f"set/{unicodedata.normalize('NFD', name)}",
}


def folder_of(paths: list[str]) -> ImageFolder:
    uri = f"memory://{uuid.uuid4().hex}"
    for path in paths:
        write_bytes(f"{uri}/{path}", b"x")
    return ImageFolder(uri)


@settings(max_examples=60, deadline=None)
@given(paths=st.lists(names, min_size=1, max_size=12, unique=True), written=st.sampled_from(sorted(WRITTEN)))
def test_a_whole_path_is_found_however_it_is_written(paths: list[str], written: str) -> None:
    folder = folder_of(paths)
    lookup = ImageLookup(folder, "elsewhere/boxes.json", "boxes.json")
    for path in paths:
        assert lookup.find(WRITTEN[written](path)).image_id == path


@settings(max_examples=100, deadline=None)
@given(
    paths=st.lists(names, min_size=1, max_size=12, unique=True),
    name=st.one_of(
        names, st.text(max_size=12), st.builds("/".join, st.lists(st.sampled_from(["..", ".", "a", "x.jpg", "x", ""])))
    ),
    below=folders,
)
def test_a_name_gives_an_image_of_the_folder_or_a_reason(paths: list[str], name: str, below: list[str]) -> None:
    folder = folder_of(paths)
    file = "/".join([*below, "boxes.json"])
    found = ImageLookup(folder, f"{folder.uri}/{file}", file).find(name)
    if found.problem is None:
        assert found.uri == f"{folder.uri}/{found.image_id}"
        assert found.image_id in paths
        last = name.replace("\\", "/").rstrip("/.").rpartition("/")[2]
        assert (
            same_image(last, found.image_id.rpartition("/")[2])
            or "?" in name
            or "%" in name
            or "#" in name
            or ".." in name
        )
    else:
        assert found.uri == ""
        assert "\n" not in found.problem or "\n" in name
