"""URIs as texts: one spelling for each place, and where a table or another output may lie. Nothing is opened here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fsspec.core import split_protocol

from stable_sam.errors import ConfigError
from stable_sam.storage import s3

_NO_TABLE_PATH = re.compile(r"[#?\[\]\\^|\x00-\x1f]|%[0-9A-Fa-f]{2}")


def join(uri: str, *parts: str) -> str:
    """Join a URI and the parts of a path below it, with exactly one slash between them."""
    base = uri if uri.endswith("://") else uri.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def absolute_uri(uri: str) -> str:
    """Return the one spelling of a URI that rows and hashes hold, for processes in another working folder.

    A local path becomes absolute, without `~`, `.`, `..` and `file://`; `s3a://` becomes `s3://`. A URI has no slash at
    its end. Links are not followed, because names may be looked up by the name of a link.

    Raises `ConfigError` for an empty path, for one that is not valid Unicode, which no table can hold, and for a `~` of
    an unknown user.
    """
    if not uri:
        raise ConfigError("expected a path or a URI, got an empty one")
    protocol, path = split_protocol(uri)
    if protocol not in (None, "file", "local"):
        return join(f"{'s3' if s3.is_s3(uri) else protocol}://", path.rstrip("/")) if path.strip("/") else uri
    bare = path.removeprefix("file:") if protocol is None and path.startswith("file:/") else path
    bare = bare.removeprefix("localhost") if protocol is not None and bare.startswith("localhost/") else bare
    # POSIX allows two slashes at the beginning a meaning of their own, which Linux does not use.
    try:
        absolute = Path(f"/{bare.lstrip('/')}" if bare.startswith("/") else bare).expanduser().absolute()
        str(absolute).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{absolute}: expected a path in UTF-8, got one in another encoding; rename it") from None
    except RuntimeError:
        raise ConfigError(f"{uri}: expected the home folder of a user, found no such user") from None
    if ".." not in absolute.parts:
        return str(absolute)
    # The folder above a link's target is not the folder above the link, so this part of the path has to be resolved.
    after = len(absolute.parts) - absolute.parts[::-1].index("..")
    return str(Path(*absolute.parts[:after]).resolve().joinpath(*absolute.parts[after:]))


def is_content_version(uri: str) -> bool:
    """Tell whether `file_version` of files there depends on their content alone, as an etag does; a local file's does
    not."""
    return s3.is_s3(uri)


def is_inside(uri: str, folder_uri: str) -> bool:
    """Tell whether a URI is a folder or a place below it, by their spelling."""
    if "://" not in uri and "://" not in folder_uri:
        uri, folder_uri = os.path.normpath(uri), os.path.normpath(folder_uri)
    return (uri.rstrip("/") + "/").startswith(folder_uri.rstrip("/") + "/")


def check_outside(uri: str, table_uri: str) -> None:
    """Raise `ConfigError` when `uri` is in the folder of a table, where only the table's own files may be written."""
    if is_inside(uri, table_uri):
        raise ConfigError(
            f"{uri}: expected a place outside of the table's folder, got one inside of {table_uri}: the files there "
            "belong to the table"
        )


def check_table_uri(uri: str) -> None:
    """Raise `ConfigError` for a folder that the Delta library would take for another one, or lose its log.

    It reads paths as URLs: `#` and `?` end them, `%20` is a blank, a backslash a slash.
    """
    _, path = split_protocol(uri)
    if found := _NO_TABLE_PATH.search(path):
        raise ConfigError(
            f"{uri}: expected a folder for a table whose path has none of # ? % with two digits, [ ] \\ ^ | and no "
            f"control characters, got {found[0]!r}"
        )
