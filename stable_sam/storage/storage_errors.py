"""Turns the errors of fsspec, s3fs and botocore into `StorageError`s of one line that begins with the URI."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError

from stable_sam.errors import CredentialsError, NotFoundError, StableSamError, StorageError, one_line
from stable_sam.storage import s3


@contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Turn the errors of the block into `StorageError` and its subclasses.

    The messages begin with "`uri`: cannot `action`".
    """
    try:
        yield
    except StableSamError:
        raise
    except s3.NO_CREDENTIALS_ERRORS as error:
        raise CredentialsError(
            f"{uri}: cannot {action}: no S3 credentials ({_reason(error)}); "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except FileNotFoundError as error:
        if web_failure(error) is not None:
            raise StorageError(f"{uri}: cannot {action}: {web_failure(error)}") from error
        missing = "no such bucket" if s3.error_code(error) == "NoSuchBucket" else "not found"
        raise NotFoundError(f"{uri}: cannot {action}: {missing}") from error
    except (OSError, BotoCoreError, ValueError, ImportError) as error:
        if s3.is_s3(uri) and (
            s3.http_status(error) in (401, 403) or s3.error_code(error) in s3.REFUSED_CREDENTIALS_CODES
        ):
            raise CredentialsError(
                f"{uri}: cannot {action}: the store refused the credentials: {_reason(error)}"
            ) from error
        raise StorageError(f"{uri}: cannot {action}: {_reason(error)}") from error
    except Exception as error:
        if s3.is_broken_answer(error):
            raise StorageError(f"{uri}: cannot {action}: {_reason(error)}") from error
        raise


def web_failure(error: FileNotFoundError) -> str | None:
    """Return why a web server did not answer, which fsspec reports as a missing file; None for a missing file."""
    cause = error.__cause__
    if cause is None:
        return None
    from aiohttp import ClientError, ClientResponseError  # imported here because it takes a third of a second

    missing = isinstance(cause, ClientResponseError) and cause.status in (404, 410)
    return _reason(cause) if isinstance(cause, ClientError) and not missing else None


def explained_file(file: Any, uri: str) -> io.RawIOBase:
    """Wrap an open file of fsspec so that reading it raises `StorageError` and its subclasses."""
    return _ExplainedFile(file, uri)


class _ExplainedFile(io.RawIOBase):
    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with explained(self._uri, "read"):
            data = s3.whole(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return error.strerror
    return one_line(error)
