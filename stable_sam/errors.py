"""Everything this library raises on purpose.

    StableSamError                 base: the message is one line, made for the user who has to act on it
    ├── InputError                 an annotation file, an image or an option is not what was expected
    │   ├── AnnotationError        the annotation file as a whole cannot be read (missing, unknown format, invalid JSON)
    │   ├── PromptError            one prompt cannot be used (empty, inverted, NaN, outside, normalised box ...)
    │   └── ImageError             one image cannot be used (missing, truncated, decompression bomb ...)
    ├── ConfigError                a configuration file or value is wrong
    ├── WeightsError               a checkpoint is missing, has other keys or shapes, or belongs to another base
    └── StorageError               an object store or folder cannot be read or written
        ├── NotFoundError          nothing lies at the URI
        ├── CredentialsError       no or refused credentials
        └── ConservationError      the rows to publish are not exactly the prompts that were planned

In the pipeline `PromptError` and `ImageError` become failed rows; the others end the run before or between shards.
"""


class StableSamError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line for the user."""


class InputError(StableSamError):
    """Something the user handed in is not what was expected."""


class AnnotationError(InputError):
    """An annotation file as a whole cannot be read."""


class PromptError(InputError):
    """One prompt cannot be used."""


class ImageError(InputError):
    """One image cannot be used."""


class ConfigError(StableSamError):
    """A configuration file or value is wrong."""


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
    """What another library's error says, on one line; its type when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
