"""Finds the files that `--annotations` names: one file, a folder, a pattern, or several of these with commas between.

s3://lake/weak.json                     a file
s3://lake/labels                        a folder: the annotation files below it, at any depth
s3://lake/nights/*/boxes.json           a pattern: * and ? stand for part of a name, ** for any number of folders
yolo=s3://lake/a.json,rcnn=s3://lake/b  several sources, here with names of their own
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from stable_sam.errors import AnnotationError, ConfigError, NotFoundError, StorageError
from stable_sam.formats.class_names import find_class_names
from stable_sam.formats.image_folder import ALLOW_LINKS
from stable_sam.formats.reading import AnnotationFile, AnnotationSource
from stable_sam.formats.recognise import holds_annotations
from stable_sam.formats.registry import READERS
from stable_sam.storage import files as storage
from stable_sam.storage import uris
from stable_sam.storage.listing import StoredFile

MAX_NAME_CHARS = 200
"""Longest name of a source, because the id of each of its prompts begins with it."""
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
_WILD = re.compile(r"[*?]")
_KINDS = (("json", "jsonl", "ndjson", "parquet"), ("xml",), ("txt",), ("csv",))
"""Endings of annotation files; those of one kind may lie in a folder together."""
_CLASS_NAMES = frozenset(name for reader in READERS.values() for name in reader.class_names)
_PACKED_FILE = re.compile(r"\.(jsonl?|ndjson|parquet|xml|txt|csv)\.(gz|bz2|xz|zst)$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(zip|gz|tgz|tar|bz2|xz|zst|7z|rar)$", re.IGNORECASE)
SAMPLE_FILES = 64
"""Number of files of each kind that are opened, in a folder with several kinds, to find the kind with annotations."""
_NO_ANNOTATIONS = re.compile(
    r"\._.*|(readme|license|licence)\b.*|.*class-descriptions.*\.csv|.*imagelabels.*\.csv|.*image_?ids.*\.csv"
    r"|.*images-with.*\.csv|.*object-segmentation.*\.csv|.*hierarchy.*\.json",
    re.IGNORECASE,
)
"""Names of files that lie beside annotations in published data sets and hold none themselves."""


def absolute_annotations(annotations: str) -> str:
    """Return `annotations` with absolute paths, for a process in another working directory; URIs stay as they are."""
    entries = map(_named, _entries(annotations))
    return ",".join((f"{name}=" if name else "") + uris.absolute_uri(uri) for name, uri in entries)


def annotation_places(annotations: str) -> list[str]:
    """Return the URI of the file or folder of each source; of a pattern, the folder before its first wildcard."""
    return [
        _WILD.split(uri)[0].rpartition("/")[0] if _WILD.search(uri) else uri
        for _, uri in map(_named, _entries(annotations))
    ]


def find_sources(annotations: str, file_format: str, *, follow_links: bool = False) -> list[AnnotationSource]:
    """Return the sources that `annotations` names, in this order, with their files.

    `file_format` is the format whose files are chosen from folders, or `auto`; `follow_links` is as in `SourceConfig`.
    Raises `AnnotationError` when a file does not exist, a folder holds files of more than one kind or an annotation
    file that is a link and is not followed, or two sources have one name, and `StorageError`.
    """
    entries = [_named(entry) for entry in _entries(annotations)]
    sources = [_source(name, uri, len(entries) > 1, file_format, follow_links) for name, uri in entries]
    labels = [source.label for source in sources if source.label is not None]
    for label in labels:
        if labels.count(label) > 1:
            raise AnnotationError(
                f"{annotations}: expected sources of different names, got two called {label!r}: name them, as in "
                f"first={sources[0].entry},second=..."
            )
    return sources


def annotations_version(annotations: str, *, follow_links: bool = False) -> str | None:
    """Return a version that changes when a file of the sources or of their class names is changed, added or removed.

    Returns None when one of the sources does not exist. Raises `StorageError`.
    """
    try:
        return ",".join(_version(uri, follow_links) for _, uri in map(_named, _entries(annotations)))
    except NotFoundError:
        return None


def annotations_modified_since(annotations: str, moment: datetime, *, follow_links: bool = False) -> bool:
    """Whether a file of the sources was modified at `moment` or later."""
    for _, uri in map(_named, _entries(annotations)):
        if _WILD.search(uri):
            if any(file.modified >= moment for file in _listed(uri, follow_links)[1]):
                return True
        elif storage.modified_since(uri, moment, follow_links=follow_links):
            return True
    return False


def check_annotations(annotations: str, *, follow_links: bool = False) -> None:
    """Raise `AnnotationError` when a source does not exist or its pattern matches no file."""
    for _, uri in map(_named, _entries(annotations)):
        there = any(True for _ in _listed(uri, follow_links)[1]) if _WILD.search(uri) else storage.exists(uri)
        if not there:
            raise AnnotationError(f"{uri}: no such annotation file")


def check_apart(annotations: str, written_uri: str) -> None:
    """Raise `ConfigError` when what is written to `written_uri` would be taken for annotations by the next night."""
    for _, uri in map(_named, _entries(annotations)):
        fixed, *wild = _WILD.split(uri, maxsplit=1)
        # Only a pattern with ** reaches the files of a folder that it does not name.
        folder = fixed.rpartition("/")[0] if wild and "**" in uri else uri
        if uris.is_inside(written_uri, folder):
            raise ConfigError(
                f"{written_uri}: expected a place outside of the annotations' folder, got one inside of {folder}: the "
                "files there are read as annotations"
            )


def _entries(annotations: str) -> list[str]:
    if "," in annotations and _is_there(annotations):
        return [annotations]
    entries = [entry.strip() for entry in annotations.split(",")]
    if not all(entries):
        raise AnnotationError(f"{annotations!r}: expected annotation files with commas between, got an empty name")
    return entries


def _named(entry: str) -> tuple[str | None, str]:
    """Return the name and the URI of an entry. An existing file whose own name has a `=` is an entry without a name."""
    found = _NAMED.fullmatch(entry)
    if found is None or _is_there(entry):
        return None, entry
    if len(found[1]) > MAX_NAME_CHARS:
        raise AnnotationError(f"{entry}: expected a name of at most {MAX_NAME_CHARS} characters, got a longer one")
    return found[1], found[2]


def _is_there(uri: str) -> bool:
    with suppress(StorageError):  # text that is no URI names no file
        return storage.exists(uri)
    return False


def _source(name: str | None, uri: str, several: bool, file_format: str, follow_links: bool) -> AnnotationSource:
    try:
        folder = bool(_WILD.search(uri)) or storage.is_folder(uri)
    except NotFoundError as error:
        raise AnnotationError(f"{uri}: no such annotation file") from error
    if not folder:
        folder_uri, _, own_name = uri.rpartition("/")
        label = name or (AnnotationFile(uri=uri, name=own_name).stem if several else None)
        return AnnotationSource(entry=uri, folder_uri=folder_uri, label=label, alone=True, names=(own_name,))
    base, listed = _listed(uri, follow_links)
    found = [file.path for file in listed]
    names = _wanted(uri, base, found, file_format)
    _check_links(uri, base, names, follow_links)
    packed = next(
        (name for name in _of_interest(found) if _PACKED_FILE.search(name) or (not names and _ARCHIVE.search(name))),
        None,
    )
    if packed is not None:
        raise AnnotationError(f"{uri}: expected annotation files, found {packed:.200}: unpack it")
    if not names:
        raise AnnotationError(f"{uri}: expected annotation files, found none{_of(file_format)}")
    label = name or (base.rstrip("/").rpartition("/")[2] if several else None)
    return AnnotationSource(entry=uri, folder_uri=base, label=label, alone=False, names=tuple(sorted(names)))


def _of(file_format: str) -> str:
    return "" if file_format == "auto" else f" of format {file_format} ({', '.join(READERS[file_format].endings)})"


def _check_links(uri: str, folder: str, names: list[str], follow_links: bool) -> None:
    """Raise `AnnotationError` for a link that is not followed and has the ending of one of the files `names`.

    Without `names`, a link to a folder, or to a file that may hold annotations, raises it. A file whose name is not
    UTF-8, which no listing has, counts as such a link.
    """
    pattern = _pattern_below(uri)
    kinds = {name.rpartition(".")[2].lower() for name in names} or {ending for kind in _KINDS for ending in kind}
    for link in storage.links_left_out(folder, follow_links=follow_links):
        alike = _of_interest([link.path]) and link.path.rpartition(".")[2].lower() in kinds
        wanted = pattern.fullmatch(link.path) if pattern else alike and link.path.rpartition("/")[2] not in _CLASS_NAMES
        if wanted or (link.folder and not names):
            said = "to nothing: fetch the file that it stands for" if link.broken else f"out of it: {ALLOW_LINKS}"
            raise AnnotationError(f"{uri}: expected annotation files, got {link.path}, a link that leads {said}")
    for path in storage.misnamed(folder):
        if (pattern.fullmatch(path) if pattern else path.rpartition(".")[2].lower() in kinds) or not names:
            raise AnnotationError(f"{uri}: expected files whose names are UTF-8, got {path}: rename it")


def _version(uri: str, follow_links: bool) -> str:
    if _WILD.search(uri) or storage.is_folder(uri):
        folder, files = _listed(uri, follow_links)
        endings = set()
        total = 0
        for file in files:
            endings.add(file.path.rpartition(".")[2].lower())
            # Exclusive or gives the same total for the same files in any order, so that none has to be kept.
            total ^= int.from_bytes(hashlib.sha256(f"{file.path}\0{file.version}".encode()).digest()[:16])
        version = f"{total:032x}"
    else:
        folder, endings = uri.rpartition("/")[0], {uri.rpartition(".")[2].lower()}
        version = storage.file_version(uri)
    for reader in READERS.values():
        if not endings.isdisjoint(reader.endings) and (names_uri := find_class_names(folder, reader.class_names)):
            version += f" {names_uri} {storage.file_version(names_uri)}"
    return version


def _listed(uri: str, follow_links: bool) -> tuple[str, Iterator[StoredFile]]:
    """Return the folder of an entry that is a folder or a pattern, and the files that it names there."""
    pattern = _pattern_below(uri)
    if pattern is None:
        return uri, storage.iter_files(uri, follow_links=follow_links)
    base, slash, _ = _WILD.split(uri, maxsplit=1)[0].rpartition("/")
    folder = base or ("/" if slash else ".")
    files = storage.iter_files(folder, follow_links=follow_links)
    return folder, (file for file in files if pattern.fullmatch(file.path))


def _pattern_below(uri: str) -> re.Pattern[str] | None:
    """Return the regular expression for the paths of a pattern below its folder; None when `uri` is no pattern."""
    if not _WILD.search(uri):
        return None
    base, slash, _ = _WILD.split(uri, maxsplit=1)[0].rpartition("/")
    return _pattern(uri[len(base) + len(slash) :])


def _pattern(text: str) -> re.Pattern[str]:
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", text)
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _wanted(uri: str, folder: str, found: list[str], file_format: str) -> list[str]:
    """Return the annotation files among the files of a folder, or those that a pattern matches."""
    of_interest = _of_interest(found)
    if _WILD.search(uri):
        return of_interest or found
    if file_format != "auto":
        return _with_endings(of_interest, READERS[file_format].endings)
    kinds = {kind: names for kind in _KINDS if (names := _with_endings(of_interest, kind))}
    if len(kinds) > 1:
        # Lists of images, notes and config files may lie beside annotations.
        kinds = {kind: names for kind, names in kinds.items() if _holds_annotations(folder, names)} or kinds
    if len(kinds) > 1:
        examples = ", ".join(names[0] for names in kinds.values())
        raise AnnotationError(
            f"{uri}: expected annotation files of one format, found {examples:.300}: name the format with --format, or "
            "the files by a pattern such as *.xml"
        )
    return next(iter(kinds.values()), [])


def _holds_annotations(folder: str, names: list[str]) -> bool:
    step = -(-len(names) // SAMPLE_FILES)
    return any(holds_annotations(uris.join(folder, name)) for name in names[::step])


def _of_interest(names: list[str]) -> list[str]:
    return [name for name in names if not _NO_ANNOTATIONS.fullmatch(name.rpartition("/")[2])]


def _with_endings(names: list[str], endings: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2].lower() in endings]
