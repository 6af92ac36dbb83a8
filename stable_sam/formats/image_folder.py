"""The folder that the images lie in, listed once instead of asked for each name."""

from __future__ import annotations

from functools import cached_property

from stable_sam.errors import NotFoundError
from stable_sam.formats.image_names import ImageNames, has_ending, same_image
from stable_sam.storage import files as storage
from stable_sam.storage import uris
from stable_sam.storage.listing import LeftOutLink

FILE_URI = "file://"
A_FILE = "a file: images that lie in an archive must be unpacked"
ALLOW_LINKS = "--follow-links (source.follow_links) allows them"


class ImageFolder:
    """The files below a folder, at any depth: the only images that annotations may name."""

    def __init__(self, uri: str, *, follow_links: bool = False) -> None:
        """List the folder; raises `NotFoundError` when it holds no file, `StorageError` when it cannot be listed.

        follow_links: whether links that lead out of the folder are images of it.
        """
        self.uri = uri.rstrip("/") if not uri.endswith("://") else uri
        self._follow_links = follow_links
        if storage.is_local_entry(self.uri) and storage.exists(self.uri) and not storage.is_folder(self.uri):
            raise NotFoundError(f"{uri}: expected a folder of images, found {A_FILE}")
        self.names = ImageNames(name for name, _ in storage.iter_versions(uri, follow_links=follow_links))
        self._linked_folders: dict[str, str | None] = {}
        self.base = uris.join(self.uri, "")
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

    def linked_folder(self, folder: str) -> str | None:
        """Return the link that is not followed and is `folder`, holds it or lies below it; None when there is none.

        Links below it count unless they have the ending of another kind of file.
        """
        if folder not in self._linked_folders:
            # The links are listed only where there may be some.
            there = storage.is_local_entry(uris.join(self.base, folder))
            below = (link for link in self._left_out.values() if link.path.startswith(f"{folder}/")) if there else ()
            kept = (link.path for link in below if link.folder or link.broken or has_ending(link.path))
            self._linked_folders[folder] = (self.left_out(folder) or next(kept, None)) if there else None
        return self._linked_folders[folder]

    def linked_image(self, folder: str, name: str) -> str | None:
        """Return the link that may be the image `name` of `folder`, or a folder that holds it; None for no such link.

        `name` is the last part of a path.
        """
        alike = (path for path in self._links.candidates([name], folder) if same_image(name, path.rpartition("/")[2]))
        linked = self.linked_folder(folder)
        return next(alike, None) or (linked if linked is not None and not has_ending(linked) else None)

    def link(self, name: str, home: str = "") -> str | None:
        """Return the message about the link because of which an image is missing; None when there is no such link.

        `name` is a path below the folder, as an annotation gives it, and `home` the folder to look in first.
        """
        parts = name.split("/")
        link = self.left_out(name) or (self.linked_image(home, parts[-1]) if home else None)
        if link is None:
            alike = (path for path in self._links.candidates(parts, "") if same_image(parts[-1], path.split("/")[-1]))
            link = next(alike, None)
        if link is not None:
            return link_problem(self._left_out[link])
        folder = next((link for link in self._left_out.values() if link.folder), None)
        return None if folder is None else link_problem(folder)

    def left_out(self, name: str) -> str | None:
        """Return the link that is not followed and is the path `name` below the folder, or a folder of this path."""
        parts = name.split("/")
        above = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((path for path in above if path in self._links), None)

    @cached_property
    def misnamed(self) -> str | None:
        """The first path that is no image of the folder because its name is not UTF-8; None when there is none."""
        return next(storage.misnamed(self.uri), None)

    @cached_property
    def _left_out(self) -> dict[str, LeftOutLink]:
        """Return the links that the listing leaves out, by path, listed only when an image is missing."""
        return {link.path: link for link in storage.links_left_out(self.uri, follow_links=self._follow_links)}

    @cached_property
    def _links(self) -> ImageNames:
        return ImageNames(self._left_out)

    def _nothing(self) -> str:
        if storage.exists(self.uri) and not storage.is_folder(self.uri):
            return A_FILE
        first = next(iter(self._left_out.values()), None)
        if first is None:
            return "no file there" if self.misnamed is None else f"only names that are not UTF-8: {self.misnamed}"
        if first.broken:
            return f"only links, and {first.path} is one to nothing: fetch the files that they stand for"
        return f"only links that lead out of it, such as {first.path}: {ALLOW_LINKS}"


def link_problem(link: LeftOutLink) -> str:
    """Return the message about a link because of which an image is missing."""
    if link.broken:
        return f"{link.path} is a link to nothing: fetch the file that it stands for"
    kind = "a link to a folder" if link.folder else "a link"
    return f"{link.path} is {kind}, and links that lead out of it are not followed: {ALLOW_LINKS}"


def bare_path(uri: str) -> str:
    """Return `uri` without `file://`."""
    return uri.removeprefix(FILE_URI)
