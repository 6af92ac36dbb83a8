"""Storage on an S3 server, and on servers that misbehave the way real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from stable_sam.errors import CredentialsError, NotFoundError, StorageError
from stable_sam.storage import files as storage
from stable_sam.storage import uris

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def test_what_is_written_is_read_listed_and_versioned(s3: str) -> None:
    folder = uris.join(s3, "storage")
    first, second = uris.join(folder, "b/x y#é::%20?.bin"), uris.join(folder, "a.bin")
    storage.write_bytes(first, b"one")
    storage.write_bytes(second, b"")
    assert storage.read_bytes(first) == b"one"
    assert storage.list_files(folder) == [second, first]
    assert storage.list_versions(folder + "/")[first] == storage.file_version(first)
    assert storage.exists(first)
    assert storage.exists(uris.join(folder, "b"))
    assert not storage.exists(uris.join(folder, "c"))
    assert storage.list_files(uris.join(s3, "nothing")) == []
    before = storage.file_version(first)
    storage.write_bytes(first, b"other")
    assert storage.file_version(first) != before


def test_folder_markers_and_neighbours_are_not_listed(s3: str) -> None:
    client = boto3.client("s3", region_name="us-east-1")
    bucket = s3.removeprefix("s3://")
    for key in ("marked/", "marked/a.jpg", "marked-too/b.jpg"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    assert storage.list_files(uris.join(s3, "marked")) == [uris.join(s3, "marked/a.jpg")]


def test_of_many_creators_one_wins(s3: str) -> None:
    uri = uris.join(s3, "race/commit.json")
    tokens = [b"%d" % number for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda token: storage.create_bytes(uri, token), tokens))
    assert [token for token, mine in zip(tokens, won, strict=True) if mine] == [storage.read_bytes(uri)]


def test_check_output_leaves_nothing(s3: str) -> None:
    storage.check_output(uris.join(s3, "probed"))
    assert storage.list_files(uris.join(s3, "probed")) == []


def test_missing_bucket_and_object(s3: str) -> None:
    with pytest.raises(NotFoundError, match=r"^s3://no-such-bucket/x: cannot write below: no such bucket$"):
        storage.check_output("s3://no-such-bucket/x")
    with pytest.raises(NotFoundError, match=r"missing\.json: cannot read: not found$"):
        storage.read_bytes(uris.join(s3, "missing.json"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[App], App]], str]]:
    """Starts an S3 server whose answers pass through the given wrapper; gives the URI of its bucket."""
    servers = []

    def start(wrap: Callable[[App], App]) -> str:
        app = DomainDispatcherApplication(create_backend_app)
        wrapped: list[App] = [app]
        server = make_server("127.0.0.1", 0, lambda environ, reply: wrapped[0](environ, reply), threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="misbehaving")
        wrapped[0] = wrap(app)
        return "s3://misbehaving"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


pytestmark = pytest.mark.usefixtures("s3")


def test_a_store_that_ignores_the_condition_is_refused(serve: Callable[..., str]) -> None:
    def ignore_condition(app: App) -> App:
        def ignoring(environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            return app(environ, reply)

        return ignoring

    bucket = serve(ignore_condition)
    with pytest.raises(StorageError, match="If-None-Match"):
        storage.check_output(uris.join(bucket, "table"))


def test_a_refusal_without_details_is_still_a_refusal(serve: Callable[..., str]) -> None:
    """Ceph answers 412 without naming the condition that failed, which s3fs reports as an invalid argument."""

    def terse(app: App) -> App:
        def answering(environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
            statuses: list[str] = []

            def note(status: str, headers: list[tuple[str, str]], *rest: Any) -> None:
                statuses.append(status)
                if not status.startswith("412"):
                    reply(status, headers, *rest)

            body = app(environ, note)
            if not statuses[0].startswith("412"):
                return body
            text = b"<?xml version='1.0'?><Error><Code>PreconditionFailed</Code></Error>"
            reply(statuses[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
            return [text]

        return answering

    bucket = serve(terse)
    assert storage.create_bytes(uris.join(bucket, "x"), b"owner 1")
    assert not storage.create_bytes(uris.join(bucket, "x"), b"owner 2")
    assert storage.create_bytes(uris.join(bucket, "x"), b"owner 1")
    storage.check_output(uris.join(bucket, "table"))


def test_an_object_whose_answer_was_lost_is_ours(serve: Callable[..., str]) -> None:
    """The write arrives, the answer does not; the client repeats it and hears that the object exists already."""
    lost: list[str] = []

    def lose_first_answer(app: App) -> App:
        def losing(environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] == "PUT" and not lost:
                lost.append(environ["PATH_INFO"])
                list(app(environ, lambda *answer: None))
                reply("500 Internal Server Error", [("Content-Length", "0")])
                return []
            return app(environ, reply)

        return losing

    bucket = serve(lose_first_answer)
    assert storage.create_bytes(uris.join(bucket, "x"), b"owner 1")
    assert len(lost) == 1
    assert not storage.create_bytes(uris.join(bucket, "x"), b"owner 2")


def test_two_writes_that_meet_are_repeated(serve: Callable[..., str]) -> None:
    conflicts: list[str] = []

    def conflict_once(app: App) -> App:
        def conflicting(environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] == "PUT" and not conflicts:
                conflicts.append(environ["PATH_INFO"])
                environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                text = b"<?xml version='1.0'?><Error><Code>ConditionalRequestConflict</Code></Error>"
                reply("409 Conflict", [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
                return [text]
            return app(environ, reply)

        return conflicting

    bucket = serve(conflict_once)
    assert storage.create_bytes(uris.join(bucket, "x"), b"owner 1")
    assert len(conflicts) == 1
    assert storage.read_bytes(uris.join(bucket, "x")) == b"owner 1"


def test_an_answer_that_breaks_off_is_asked_for_again(serve: Callable[..., str]) -> None:
    broken: list[str] = []
    limit = [4]

    def break_off(app: App) -> App:
        def breaking(environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
            body = b"".join(app(environ, reply))
            if environ["REQUEST_METHOD"] == "GET" and len(broken) < limit[0]:
                broken.append(environ["PATH_INFO"])
                return [body[: len(body) // 2]]
            return [body]

        return breaking

    bucket = serve(break_off)
    uri = uris.join(bucket, "x")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    limit[0] = 8
    assert storage.list_files(bucket) == [uri]
    limit[0] = 12
    with storage.open_stream(uri) as stream:
        assert stream.read() == b"0123456789"
    assert len(broken) == 12
    limit[0] = 100
    with pytest.raises(StorageError, match=r"^s3://misbehaving/x: cannot read: .*payload is not completed"):
        storage.read_bytes(uri)


def test_refused_credentials_are_told_apart(serve: Callable[..., str]) -> None:
    def refuse(app: App) -> App:
        def refusing(environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            text = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>Unknown key</Message></Error>"
            reply("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else text]

        return refusing

    bucket = serve(refuse)
    for act in (storage.check_output, storage.read_bytes, storage.exists, storage.list_files):
        with pytest.raises(CredentialsError, match=r"^s3://misbehaving/x: cannot .* refused the credentials"):
            act(uris.join(bucket, "x"))
