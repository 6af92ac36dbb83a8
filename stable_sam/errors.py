"""The errors that this library raises on purpose, and how text is prepared for messages.

    StableSamError                 base: the message is one line, made for the user who has to act on it
    ├── InputError                 an annotation file, an image or an option is not what was expected
    │   ├── AnnotationError        the annotation file as a whole cannot be read (missing, unknown format, invalid JSON)
    │   ├── PromptError            one prompt cannot be used (empty, inverted, NaN, outside, normalised box ...)
    │   └── ImageError             one image cannot be used (missing, truncated, decompression bomb ...)
    ├── ConfigError                a config file or value is wrong
    ├── WeightsError               a checkpoint is missing, has other keys or shapes, or belongs to another base
    └── StorageError               an object store or folder cannot be read or written
        ├── NotFoundError          nothing lies at the URI
        ├── CredentialsError       credentials are missing or refused
        └── ConservationError      the rows to publish are not exactly the prompts that were planned

In the pipeline `PromptError` and `ImageError` become failed rows; the others end the run before or between shards.
Messages quote other people's files, so `shown` makes every message printable, limits its length and hides credentials.
"""

import re

MAX_MESSAGE_CHARS = 2000
_CREDENTIALS = (
    # User and password in a URI: user:password@host.
    re.compile(r"((?<=://))[^/@\s'\"]*(?=@)"),
    # Query parameters that sign a URL.
    re.compile(
        r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:\w*_)?token|\w*key)=)"
        r"[^&\s'\"<)]+"
    ),
    # Keys and tokens that stores and clients quote in their error messages.
    re.compile(r"(?i)((?:access_?key_?id|secret_?access_?key|session_?token)\W{1,4})[\w/+=]{12,}"),
    re.compile(r"()\b(?:AKIA|ASIA)[0-9A-Z]{12,}"),
)


def without_credentials(text: str) -> str:
    """Replace what looks like credentials in `text` by `***`."""
    for pattern in _CREDENTIALS:
        text = pattern.sub(r"\1***", text)
    return text


def shown(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Make `text` safe for a message, a log or a table: printable, at most `limit` characters, without credentials.

    Unprintable characters are escaped, because a terminal obeys control codes and right-to-left marks mislead readers.
    """
    text = without_credentials(text[: 2 * limit])
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class StableSamError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line for the user."""

    def __str__(self) -> str:
        return shown(super().__str__())


class InputError(StableSamError):
    """Something the user handed in is not what was expected."""


class AnnotationError(InputError):
    """An annotation file as a whole cannot be read."""


class PromptError(InputError):
    """One prompt cannot be used."""


class ImageError(InputError):
    """One image cannot be used."""


class ConfigError(StableSamError):
    """A config file or value is wrong."""


class WeightsError(StableSamError):
    """A checkpoint is missing, does not fit the model, or belongs to another base."""


class StorageError(StableSamError):
    """An object store or folder cannot be read or written."""


class NotFoundError(StorageError):
    """Nothing lies at the URI."""


class CredentialsError(StorageError):
    """Credentials are missing or refused."""


class ConservationError(StorageError):
    """The rows to publish are not exactly the prompts that were planned."""


def one_line(error: BaseException) -> str:
    """Return the message of another library's error on one line, or its type when it has no message."""
    if isinstance(error, UnicodeDecodeError) and error.reason.startswith("invalid") and error.encoding == "utf-8":
        return f"expected text in UTF-8, got the byte 0x{error.object[error.start]:02x}; save the file as UTF-8"
    return " ".join(str(error).split()) or type(error).__name__
