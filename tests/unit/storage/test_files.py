"""Storage on local files, and everything that needs no server."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_sam.errors import ConfigError, CredentialsError, NotFoundError, StorageError
from stable_sam.storage import files as storage
from stable_sam.storage import uris


@pytest.mark.parametrize(
    ("uri", "parts", "expected"),
    [
        ("s3://bucket", ["a", "b.txt"], "s3://bucket/a/b.txt"),
        ("s3://bucket/a/", ["/b/", "c"], "s3://bucket/a/b/c"),
        ("folder", ["x"], "folder/x"),
        ("/", ["x"], "/x"),
        ("s3://", ["bucket", "x"], "s3://bucket/x"),
    ],
)
def test_join(uri: str, parts: list[str], expected: str) -> None:
    assert uris.join(uri, *parts) == expected


def test_the_home_folder_is_known_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert uris.absolute_uri("~/table") == f"{tmp_path}/table"
    assert uris.absolute_uri("table") == f"{tmp_path}/table"
    assert uris.absolute_uri("s3://bucket/~") == "s3://bucket/~"
    storage.write_bytes("~/a.txt", b"one")
    assert (tmp_path / "a.txt").read_bytes() == storage.read_bytes("~/a.txt") == b"one"
    assert storage.create_bytes("~/b.txt", b"two")
    assert storage.list_files("~") == ["~/a.txt", "~/b.txt"]


@pytest.fixture(params=["path", "file-uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "path" else tmp_path.as_uri()


def test_what_is_written_is_read_listed_and_versioned(folder: str) -> None:
    first, second = uris.join(folder, "b/deep/x y#é::%20.bin"), uris.join(folder, "a.bin")
    storage.write_bytes(first, b"one")
    storage.write_bytes(second, b"")
    assert storage.read_bytes(first) == b"one"
    assert storage.list_files(folder) == [second, first]
    assert storage.list_versions(folder)[first] == storage.file_version(first)
    assert storage.exists(first)
    assert storage.exists(uris.join(folder, "b"))
    assert not storage.exists(uris.join(folder, "c"))
    assert not storage.exists(uris.join(first, "below-a-file"))


def test_version_changes_with_the_content(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"one")
    before = storage.file_version(uri)
    storage.write_bytes(uri, b"other")
    assert storage.file_version(uri) != before


def test_missing_folder_lists_nothing(tmp_path: Path) -> None:
    assert storage.list_files(str(tmp_path / "missing")) == []


def test_create_refuses_what_exists_and_recognises_its_own(folder: str) -> None:
    uri = uris.join(folder, "commits/1.json")
    assert storage.create_bytes(uri, b"owner 1")
    assert not storage.create_bytes(uri, b"owner 2")
    assert storage.create_bytes(uri, b"owner 1")
    assert storage.read_bytes(uri) == b"owner 1"


def test_of_many_creators_one_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "commit.json")
    barrier = threading.Barrier(8)
    wins: list[bytes] = []

    def create(token: bytes) -> None:
        barrier.wait()
        if storage.create_bytes(uri, token):
            wins.append(token)

    threads = [threading.Thread(target=create, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins == [storage.read_bytes(uri)]


def test_a_write_that_dies_leaves_the_old_content_and_nothing_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"old")
    with monkeypatch.context() as patch:

        def killed(self: Path, target: Path) -> None:
            raise KeyboardInterrupt

        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", lambda self, missing_ok: None)
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(uri, b"new")
    assert len(list(tmp_path.iterdir())) == 2, "the partial file of the killed writer is still there"
    assert storage.list_files(str(tmp_path)) == [uri]
    assert storage.read_bytes(uri) == b"old"


def test_broken_links_are_not_listed_and_good_ones_are(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    target = tmp_path / "target"
    target.mkdir()
    (target / "x.jpg").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(target)
    assert storage.list_files(str(tmp_path)) == [str(tmp_path / "linked/x.jpg"), str(tmp_path / "target/x.jpg")]


def test_check_output_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    output = tmp_path / "new" / "table"
    storage.check_output(str(output))
    assert list(output.iterdir()) == []


def test_check_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    output = str(tmp_path / "file" / "table")
    with pytest.raises(StorageError, match=r"table: cannot write below: Not a directory") as raised:
        storage.check_output(output)
    assert str(raised.value).startswith(output)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("missing/x.json", NotFoundError, "missing/x.json: cannot read: not found"),
        (".", StorageError, ".: cannot read: Is a directory"),
        ("nonsense://x/y", StorageError, "nonsense://x/y: cannot read: Protocol not known: nonsense"),
    ],
)
def test_errors_are_one_line_with_the_uri(
    uri: str, error: type[StorageError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError) as raised:
        storage.read_bytes(uri)
    assert type(raised.value) is error
    assert str(raised.value) == message


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("act", [storage.check_output, storage.read_bytes, storage.list_files, storage.delta_options])
def test_missing_credentials_are_told(act: Callable[[str], object]) -> None:
    with pytest.raises(
        CredentialsError, match=r"^s3://bucket/x: cannot [a-z ]+: no S3 credentials .*AWS_ACCESS_KEY_ID"
    ):
        act("s3://bucket/x")


@pytest.mark.usefixtures("no_credentials")
def test_unknown_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "labelling")
    with pytest.raises(CredentialsError, match="labelling"):
        storage.read_bytes("s3://bucket/x")


def test_delta_options_carry_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
        "AWS_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    options = storage.delta_options("s3://bucket/table")
    assert options["aws_endpoint_url"] == "http://127.0.0.1:9000"
    assert options["aws_allow_http"] == "true"
    assert options["aws_region"] == "eu-central-1"
    assert (options["aws_access_key_id"], options["aws_secret_access_key"]) == ("key", "secret")
    assert options["aws_session_token"] == "token"
    assert storage.delta_options("/local/table") == {}


def test_object_systems_other_than_s3_go_the_same_way() -> None:
    storage.check_output("memory://storage-test")
    assert storage.create_bytes("memory://storage-test/x", b"1")
    assert not storage.create_bytes("memory://storage-test/x", b"2")
    assert storage.list_files("memory://storage-test") == ["memory://storage-test/x"]
    assert storage.read_bytes("memory://storage-test/x") == b"1"


def test_only_local_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert uris.absolute_uri("table") == str(tmp_path / "table")
    assert [uris.absolute_uri(uri) for uri in ("/a/b", "s3://bucket/a", "memory://a")] == [
        "/a/b",
        "s3://bucket/a",
        "memory://a",
    ]


@given(
    steps=st.lists(st.sampled_from(["./", "../root/", "deep/../", "/", "../root/./deep/../"]), max_size=5),
    beginning=st.sampled_from(["", "{root}/", "file://{root}/", "file:{root}/", "file://localhost{root}/", "/{root}/"]),
    end=st.sampled_from(["", "/", "/.", "//"]),
)
def test_every_spelling_of_a_folder_gives_one_uri(folders: Path, steps: list[str], beginning: str, end: str) -> None:
    way = "".join(steps) if beginning else "".join(steps).lstrip("/")
    spelled = f"{beginning.format(root=folders)}{way}images{end}"
    with contextlib.chdir(folders):
        assert uris.absolute_uri(spelled) == f"{folders}/images"
        assert uris.absolute_uri(uris.absolute_uri(spelled)) == f"{folders}/images"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spelled").resolve() / "root"
    (root / "deep").mkdir(parents=True)
    (root / "images").mkdir()
    return root


def test_the_folder_above_a_link_is_that_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "store/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "store/deep")
    assert uris.absolute_uri(f"{tmp_path}/link/../images") == f"{tmp_path}/store/images"
    assert uris.absolute_uri(f"{tmp_path}/link") == f"{tmp_path}/link"


@pytest.mark.parametrize("uri", ["s3://lake/images", "s3://lake/images/", "s3a://lake/images//"])
def test_every_spelling_of_a_folder_on_s3_gives_one_uri(uri: str) -> None:
    assert uris.absolute_uri(uri) == "s3://lake/images"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "expected a path or a URI, got an empty one"),
        ("~no-such-user/table", "found no such user"),
        (os.fsdecode(b"k\xf6tt"), r"k\\udcf6tt: expected a path in UTF-8"),
    ],
)
def test_a_path_that_no_table_can_hold_is_refused(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        uris.absolute_uri(uri)
