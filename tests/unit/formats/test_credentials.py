"""Credentials in URIs are refused, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.errors import StorageError, shown
from stable_sam.storage import files as storage
from tests.unit.formats.hostile import coco, read

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


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
