"""Finds the image that an annotation file names, by the same rules for every reader.

A name is read as it is written, then with forward slashes in place of backslashes, and a URL by its path. It is
searched

1. beside the annotation file and in the folders of images that match the annotation file's folder (`_places`),
2. below the image folder,
3. by its end: an image fits when its whole path ends the name (`/data/upload/a.jpg` for `a.jpg`), or when its path ends
   with the whole name (`a.jpg` for `train/a.jpg`). Where a folder of images matches the annotation file's, a name
   without folders is searched only there, because another part of a data set has images of the same names.

Whatever a name says, only the files of the image folder are searched. Two files that fit equally well are a problem
that names both.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from stable_sam.errors import ImageError, without_credentials
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.image_names import composed, same_image
from stable_sam.formats.source_annotation import id_text

WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")
PLAIN_NAME = re.compile(r"[^/.\\: \t\n][^/\\:]*(/[^/.\\:][^/\\:]*)*")
"""Names that are paths as they stand. All others are normalised by pathlib, which takes ten times as long."""
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""The prefix that Label Studio puts before the names of uploaded files, also in its exports to other formats."""
FOR_LABELS = frozenset({"labels", "annotations"})
FOR_IMAGES = ("images", "Images", "JPEGImages")
"""Names of the folders of images that correspond to folders of labels."""
SAY_NOTHING = frozenset(
    {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos"}
    | {"data", "files", "media", "upload", "uploads"}
)
"""Folders that a name may lack or have in addition, in lower case, because they do not distinguish images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image of the image folder, or the reason why none was found."""

    image_id: str
    """Path below the image folder; when there is no such image, the name that the annotation file gives."""
    uri: str = ""
    """URI of the image; empty when there is no such image."""
    problem: str | None = None
    """Why there is no such image; None when there is one."""


class ImageLookup:
    """Finds the images that one annotation file names."""

    def __init__(self, folder: ImageFolder, file_uri: str, file_name: str) -> None:
        """`file_name` is the annotation file's path below the source's folder; if it is the whole source, its name."""
        self.folder = folder
        self._file_folder = folder_of(file_uri)
        self._places = tuple(_places(folder, file_uri, file_name))
        home = self._places[0]
        self._home_of_links = "" if folder.names.holds_images(home) else home
        self._words = _words(file_name)

    def find(
        self, given: Any, *, first: Iterable[Any] = (), last: Iterable[Any] = (), missing: str | None = None
    ) -> FoundImage:
        """Return the image that the annotation file calls `given`, or the reason why none was found.

        `first` and `last` are other names of the same image, which are searched before and after `given`. `missing`
        is the message when there is no such image, instead of the usual one.
        """
        fitting: list[str] = []
        for name in (*first, given, *last):
            found = self._fitting(name)
            # Another name may decide which of several images is meant.
            found = [path for path in found if path in fitting] if fitting else found
            if len(found) == 1:
                return FoundImage(image_id=found[0], uri=self.folder.base + found[0])
            fitting = fitting or found
        image_id = without_credentials(id_text(given) or "")
        if fitting:
            return FoundImage(image_id=image_id, problem=self._several(given, fitting))
        return FoundImage(image_id=image_id, problem=self._missing(given, missing))

    def _fitting(self, given: Any) -> list[str]:
        if not isinstance(given, str) or not given.strip():
            return []
        names = self.folder.names
        if self._places == ("",) and given in names:
            return [given]
        readings = list(paths_of(given))
        for reading in readings:
            for path in self._as_written(reading):
                if path in names:
                    return self._unless_linked(reading, [path])
        found = next(
            (self._unless_linked(reading, by_end) for reading in readings if (by_end := self._by_end(reading))), []
        )
        # A link that is not followed at the place itself is meant, and not another image of the same name.
        if found and any(self.folder.left_out(path) for reading in readings for path in self._as_written(reading)):
            return []
        return found

    def _unless_linked(self, reading: str, found: list[str]) -> list[str]:
        """Return `found`, or nothing when only the file's name is that of `reading` and may also be a link at home."""
        parts, home = path_parts(reading), self._home_of_links
        if home and _shared(parts, found[0].split("/")) == 1 and self.folder.linked_image(home, parts[-1]):
            return []
        return found

    def _as_written(self, reading: str) -> Iterator[str]:
        inside = self.folder.inside(reading)
        if inside is not None:
            yield inside
        if "://" not in reading:
            scheme, separator, folder = self._file_folder.rpartition("://")
            beside = scheme + separator + posixpath.normpath(posixpath.join(folder, reading))
            if (inside := self.folder.inside(beside)) is not None:
                yield inside
        path = posixpath.normpath(reading)
        yield from (f"{place}/{path}" if place else path for place in self._places)
        parent, _, rest = path.partition("/")
        if parent == self.folder.own_name:  # many files are written relative to the folder above
            yield rest

    def _by_end(self, reading: str) -> list[str]:
        parts = path_parts(reading)
        fits: dict[str, tuple[int, bool, bool, int]] = {}
        for region in dict.fromkeys((self._places[0], "")):
            at_home = region == self._places[0]
            for name in self._candidates(parts, region):
                own = name[len(region) + 1 if region else 0 :].split("/")
                shared = _shared(parts, own)
                whole_given = at_home and _say_nothing(parts[: len(parts) - shared])
                whole_own = _say_nothing(own[: len(own) - shared])
                if shared and (whole_own or whole_given):
                    fits.setdefault(name, (shared, at_home, shared == len(own), _spelling(parts, own, shared)))
        most = max(fits.values(), default=None)
        best = [name for name, fit in fits.items() if fit == most]
        said = [name for name in best if not self._words.isdisjoint(name.split("/")[:-1])]
        return said if len(said) == 1 else best

    def _candidates(self, parts: Sequence[str], region: str) -> Iterator[str]:
        if not parts:
            return
        yield from self.folder.names.candidates(parts, region)
        # When very many files have one name, `names.candidates` may leave these out.
        ends = ("/".join((*filter(None, (region,)), *parts[at:])) for at in range(len(parts)))
        yield from (end for end in ends if end in self.folder.names)

    def _several(self, given: Any, fitting: Sequence[str]) -> str:
        more = f" or {len(fitting) - 2} others" if len(fitting) > 2 else ""
        return (
            f"image file {given!r:.200} may be {fitting[0]} or {fitting[1]}{more} below {self.folder.uri}: name it by "
            "its path there, or give a folder with only one of them as --images"
        )

    def _missing(self, given: Any, said: str | None) -> str:
        problem, name = f"image file {given!r:.200} is not below {self.folder.uri}", given
        if isinstance(given, str) and "://" in given:
            if self.folder.inside(given) is None:
                problem = f"expected an image file below the image folder {self.folder.uri}, got {given!r:.200}"
            else:
                problem = f"image file {given!r:.200} does not exist"
        else:
            try:
                # a/../b.jpg does not lead out of the folder.
                up = isinstance(given, str) and ".." in given
                name = relative_name(posixpath.normpath(given.replace("\\", "/")) if up else given)
            except ImageError as error:
                problem = str(error)
        problem = said or problem
        if not isinstance(given, str):
            return problem
        name = name.replace("\\", "/")
        link = self.folder.link(name, self._home_of_links)
        if link is not None:
            return f"{problem} ({link})"
        parts = path_parts(name)
        near = list(self._candidates(parts, ""))
        same = next((path for path in near if same_image(parts[-1], path.rpartition("/")[2])), None)
        if near:
            return f"{problem} ({same or near[0]} has its name, but another {'path' if same else 'ending'})"
        misnamed = self.folder.misnamed
        return problem if misnamed is None else f"{problem} (names that are not UTF-8 are left out, such as {misnamed})"


def relative_name(name: Any) -> str:
    """Return `name` with forward slashes and without a leading `./`.

    Raises `ImageError` unless it is a relative path without `..`.
    """
    if not isinstance(name, str) or not name.strip():
        raise ImageError(f"expected the name of an image file, got {name!r:.80}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImageError(f"expected the name of an image file in valid Unicode, got {name!r:.80}") from None
    if PLAIN_NAME.fullmatch(name):
        return name
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or not path.parts or ".." in path.parts or WINDOWS_DRIVE.match(name):
        raise ImageError(f"expected an image file below the image folder, got {name!r:.200}, which leads out of it")
    return path.as_posix()


def folder_of(file_uri: str) -> str:
    """Return the URI of the folder that holds the file."""
    return file_uri.rpartition("/")[0]


def paths_of(given: str) -> Iterator[str]:
    """Yield the paths that a name in an annotation file may stand for, the likeliest first."""
    path = given.replace("\\", "/")
    paths = [path]
    if "?" in path or "#" in path:
        try:
            parts = urlsplit(path)
            inner = parse_qs(parts.query)
        except ValueError:
            pass
        else:
            # Label Studio writes /data/local-files/?d=path.
            paths += [*inner.get("d", ()), *inner.get("fileuri", ()), f"{parts.netloc}{parts.path}"]
    paths = [path.replace("\\", "/") for path in paths]
    paths += [plain for path in paths if (plain := unquote(path)) != path]
    paths += [f"{folder}{slash}{UPLOAD_PREFIX.sub('', name, count=1)}" for folder, slash, name in _uploads(paths)]
    return iter(dict.fromkeys(paths))


def _uploads(paths: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    return (parts for path in paths if UPLOAD_PREFIX.match((parts := path.rpartition("/"))[2]))


def path_parts(path: str) -> list[str]:
    """Return the parts of a path with slashes or backslashes, without `.` and `..`."""
    return [part for part in posixpath.normpath(path.replace("\\", "/")).split("/") if part not in ("", ".", "..")]


def _places(folder: ImageFolder, file_uri: str, file_name: str) -> list[str]:
    """Return the folders below the image folder that match the annotation file's and hold images, the best first.

    The last one, "", is the image folder itself.
    """
    below = folder.inside(folder_of(file_uri) + "/")
    within = posixpath.dirname(file_name)
    own = folder_of(file_uri).removesuffix(f"/{within}" if within else "").rpartition("/")[2]
    near = [within, f"{own}/{within}".strip("/")] if below is None else [below.strip("/"), within]
    wanted = [place for path in near for place in _for_images(path)]
    places = [place for place in dict.fromkeys(wanted) if place and folder.names.holds_images(place)]
    if not places:
        # Images that are links are not those of another part of the data set, even where links are not followed.
        places = [place for place in dict.fromkeys(wanted) if place and folder.linked_folder(place)]
    if not places and below:
        above = [path.as_posix() for path in PurePosixPath(below.strip("/")).parents][:-1]
        places = [place for place in above if folder.names.holds_images(place)][:1]
    return [*places, ""] if places else [""]


def _for_images(path: str) -> Iterator[str]:
    """Yield `path`, and the paths that it may have where images and labels lie in separate folders."""
    parts = path.split("/")
    yield path
    labels = [place for place, part in enumerate(parts) if part.lower() in FOR_LABELS]
    if labels:
        for name in FOR_IMAGES:
            yield "/".join(name if place in labels else part for place, part in enumerate(parts))
        yield "/".join(part for place, part in enumerate(parts) if place not in labels)


def _words(file_name: str) -> frozenset[str]:
    """Return the words in an annotation file's name that may name a folder: `val2017` of instances_val2017.json."""
    stem = PurePosixPath(file_name).with_suffix("").as_posix()
    return frozenset(word for word in (*stem.split("/"), *re.split(r"[/_.-]", stem)) if word)


def _shared(parts: Sequence[str], own: Sequence[str]) -> int:
    """Return how many parts two paths share, counted from the end."""
    if not same_image(parts[-1], own[-1]):
        return 0
    shared = 1
    for given, name in zip(parts[-2::-1], own[-2::-1], strict=False):
        if composed(given) != composed(name):
            break
        shared += 1
    return shared


def _say_nothing(folders: Sequence[str]) -> bool:
    return all(folder.lower() in SAY_NOTHING for folder in folders)


def _spelling(parts: Sequence[str], own: Sequence[str], shared: int) -> int:
    """Return how closely two equivalent ends of paths agree.

    2: they are the same text; 1: they differ only in their Unicode form; 0: their file name endings differ.
    """
    given, name = "/".join(parts[-shared:]), "/".join(own[-shared:])
    return 2 if given == name else 1 if composed(given) == composed(name) else 0
