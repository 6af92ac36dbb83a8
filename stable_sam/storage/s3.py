"""Configures S3 from the usual AWS variables, alike for s3fs and deltalake, and interprets its errors."""

from __future__ import annotations

import os
from typing import Any

from botocore.exceptions import (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.session import Session
from fsspec.core import split_protocol

S3_PROTOCOLS = ("s3", "s3a")
NO_CREDENTIALS_ERRORS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    ProfileNotFound,
    TokenRetrievalError,
    SSOError,
)
REFUSED_CREDENTIALS_CODES = frozenset(
    {"AccessDenied", "AuthorizationHeaderMalformed", "ExpiredToken", "Forbidden", "InvalidAccessKeyId", "InvalidToken"}
    | {"SignatureDoesNotMatch", "UnauthorizedAccess", "401", "403"}
)

ANSWER_ATTEMPTS = 4
"""Attempts for an answer that breaks off in the middle, which the clients do not repeat by themselves. The clients' own
attempts come on top."""


def is_s3(uri: str) -> bool:
    """Tell whether a URI is one of S3."""
    return split_protocol(uri)[0] in S3_PROTOCOLS


def s3fs_options() -> dict[str, Any]:
    """Return the arguments of `s3fs.S3FileSystem`.

    They hold every environment variable that matters, because fsspec reuses an instance for equal arguments.
    """
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    given = {"key": key, "secret": secret, "token": os.environ.get("AWS_SESSION_TOKEN")} if key and secret else {}
    region = _region()
    return given | {
        "profile": os.environ.get("AWS_PROFILE"),
        "endpoint_url": _endpoint(),
        "client_kwargs": {"region_name": region} if region else {},
        # Other writers add and remove objects, so a cached listing would be wrong.
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 60,
            # botocore's newer retry modes do not repeat after status 429, with which some stores ask clients to wait.
            "retries": {"mode": "legacy", "total_max_attempts": 4},
            # Many S3-compatible stores refuse checksum trailers, which are botocore's newer default.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }


def deltalake_options() -> dict[str, str]:
    """Return the `storage_options` of deltalake; raises one of NO_CREDENTIALS_ERRORS, or botocore's other errors.

    The credentials are looked up here because deltalake itself would wait minutes when there are none.
    """
    session = Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    frozen = credentials.get_frozen_credentials()
    endpoint = _endpoint()
    options = {
        "aws_access_key_id": frozen.access_key,
        "aws_secret_access_key": frozen.secret_key,
        "aws_session_token": frozen.token,
        "aws_region": _region() or session.get_config_variable("region") or "us-east-1",
        "aws_endpoint_url": endpoint,
        "aws_allow_http": "true" if endpoint and endpoint.startswith("http://") else "false",
        "aws_conditional_put": "etag",
        "connect_timeout": "5s",
        "timeout": "60s",
    }
    return {name: value for name, value in options.items() if value}


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of s3fs or botocore; None when there was no answer."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def error_code(error: BaseException) -> str:
    """Return S3's error code, such as NoSuchBucket, behind an error of s3fs or botocore; empty when there is none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def is_broken_answer(error: BaseException) -> bool:
    """Tell whether an error means that an answer broke off in the middle.

    s3fs passes on the errors of aiohttp unchanged; deltalake has one class for all errors of stores, so its message
    decides.
    """
    return type(error).__module__.partition(".")[0] == "aiohttp" or "response body error" in str(error)


def whole(ask: Any, *arguments: Any, **options: Any) -> Any:
    """Call `ask` and return its result; call it again when the answer broke off in the middle."""
    for _ in range(ANSWER_ATTEMPTS - 1):
        try:
            return ask(*arguments, **options)
        except Exception as error:
            if not is_broken_answer(error):
                raise
    return ask(*arguments, **options)


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
