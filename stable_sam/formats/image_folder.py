"""The folder that the images lie in, listed once instead of asked for each name."""

from __future__ import annotations

from functools import cached_property

from stable_sam.errors import NotFoundError
from stable_sam.formats.image_names import ImageNames, same_image
from stable_sam.storage import files as storage
from stable_sam.storage.listing import LeftOutLink

FILE_URI = "file://"
ALLOW_LINKS = "--follow-links (source.follow_links) allows them"


class ImageFolder:
    """The files below a folder, at any depth: the only images that annotations may name."""

    def __init__(self, uri: str, *, follow_links: bool = False) -> None:
        """List the folder; raises `NotFoundError` when it holds no file, `StorageError` when it cannot be listed.

        follow_links: whether links that lead out of the folder are images of it.
        """
        self.uri = uri.rstrip("/") if not uri.endswith("://") else uri
        self._follow_links = follow_links
        self.names = ImageNames(name for name, _ in storage.iter_versions(uri, follow_links=follow_links))
        self.base = storage.join(self.uri, "")
        self.own_name = self.uri.rpartition("/")[2]
        if not self.names:
            raise NotFoundError(f"{uri}: expected a folder of images, found {self._nothing()}")

    def __len__(self) -> int:
        return len(self.names)

    def number(self, name: str) -> int | None:
        """Return the number of the file at this path below the folder, from 0; None when there is no such file."""
        return self.names.number(name)

    def inside(self, uri: str) -> str | None:
        """Return the path below the folder that `uri`, or an absolute path, stands for; None when it leads elsewhere.

        The file need not exist.
        """
        bare, base = bare_path(uri), bare_path(self.base)
        return bare.removeprefix(base) if bare.startswith(base) else None

    def link(self, name: str) -> str | None:
        """Return the message about the link because of which an image is missing; None when there is no such link.

        `name` is a path below the folder, as an annotation gives it.
        """
        link, parts = self.left_out(name), name.split("/")
        if link is None:
            alike = (path for path in self._links.candidates(parts, "") if same_image(parts[-1], path.split("/")[-1]))
            link = next(alike, None)
        if link is not None and link in self._broken:
            return f"{link} is a link to nothing: fetch the file that it stands for"
        if link is not None:
            return f"{link} is a link, and links that lead out of it are not followed: {ALLOW_LINKS}"
        folder = next((link.path for link in self._left_out if link.folder), None)
        return (
            folder and f"{folder} is a link to a folder, and links that lead out of it are not followed: {ALLOW_LINKS}"
        )

    def left_out(self, name: str) -> str | None:
        """Return the link that is not followed and is the path `name` below the folder, or a folder of this path."""
        parts = name.split("/")
        above = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((path for path in above if path in self._links), None)

    @cached_property
    def _left_out(self) -> list[LeftOutLink]:
        """Return the links that the listing leaves out, listed only when an image is not where its name says."""
        return list(storage.links_left_out(self.uri, follow_links=self._follow_links))

    @cached_property
    def _links(self) -> ImageNames:
        return ImageNames(link.path for link in self._left_out)

    @cached_property
    def _broken(self) -> frozenset[str]:
        return frozenset(link.path for link in self._left_out if link.broken)

    def _nothing(self) -> str:
        if storage.exists(self.uri) and not storage.is_folder(self.uri):
            return "a file: images that lie in an archive must be unpacked"
        first = next(iter(self._left_out), None)
        if first is None:
            return "no file there"
        if first.broken:
            return f"only links, and {first.path} is one to nothing: fetch the files that they stand for"
        return f"only links that lead out of it, such as {first.path}: {ALLOW_LINKS}"


def bare_path(uri: str) -> str:
    """Return `uri` without `file://`."""
    return uri.removeprefix(FILE_URI)
