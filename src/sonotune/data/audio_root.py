"""The fence around the paths of a manifest, and how a path that was written elsewhere is found here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from sonotune.data.lines import RefusedError, show

_UP = 3
_FOLDERS = 200
_TRIED = 50
_MAX_BYTES = 4000
_MAX_NAME_BYTES = 255
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


class AudioRoot:
    """Turns the paths of a manifest into files below one folder.

    A relative path that leaves the root by `..` or through a symbolic link is refused, unless allowed. An absolute
    path says plainly what it opens: in a manifest that the user names it is read as it is, through links too. Below a
    root that the user names, and in what came from a hub or an archive, it is held to the root as every path is.

    Args:
        root: The folder.
        absolute: Whether absolute paths are read as they are.
        allow_outside: Whether paths may leave the root.
        movable: Whether the user may name another folder (`data.root`).
    """

    def __init__(
        self, root: Path, *, absolute: bool = False, allow_outside: bool = False, movable: bool = True
    ) -> None:
        self.root = root.absolute()
        self.absolute = absolute
        self.movable = movable
        self.allow_outside = allow_outside
        self._real_root = self._real(self.root)
        self._real_folders: dict[Path, Path] = {}
        self._relative = False

    def resolve(self, value: str) -> Path:
        """Find the file that a manifest's path names.

        Args:
            value: The path as written: relative to the root, or absolute.

        Returns:
            An absolute path. The file may be missing: that is for the audio check to find.

        Raises:
            RefusedError: Empty, a URL, impossible as a file name, or outside the root.
        """
        name = "the name of an audio file"
        do = "Mend the path."
        if not value:
            raise RefusedError("the path is empty", found="''", allowed=name, do=do)
        if "\0" in value:
            raise RefusedError("the path has a NUL character", found=show(value), allowed=name, do=do)
        if _URL.match(value):
            raise RefusedError(
                "the path is a URL", found=show(value), allowed="a file on this machine", do="Download the audio first."
            )
        long = RefusedError(
            "the path is too long", found=show(value), allowed="names that a file system can hold", do=do
        )
        if _size_bytes(value) > _MAX_BYTES:  # before it is looked for, which takes a look for each of its parts
            raise long
        path = self.root / value
        if ("\\" in value or not value.isascii()) and not _exists(path):
            path = self._as_written_here(value) or path
        if max(map(_size_bytes, path.parts)) > _MAX_NAME_BYTES:
            raise long
        real = self._real_file(path)
        if not real.name or real == self._real_root:
            raise RefusedError("the path is that of a folder", found=show(value), allowed=name, do=do)
        absolute = Path(value).is_absolute()
        self._relative = self._relative or not absolute
        free = self.allow_outside or (absolute and self.absolute)
        if not free and not real.is_relative_to(self._real_root):
            raise RefusedError(
                "the path leaves the root of the manifest",
                found=show(value) if str(real) == value else f"{show(value)}, which is {show(str(real), 200)}",
                allowed=f"files below {self.root}",
                do="Move the audio there, set another root (data.root=FOLDER, in `sonotune data` --root FOLDER), "
                "or allow it (data.allow_outside_root=true, --allow-outside-root).",
                together=self._leaving,
            )
        return real if ".." in path.parts else path

    def _leaving(self, errors: Sequence[RefusedError]) -> RefusedError:
        """One error for all paths that leave the root, with what mends them."""
        many = len(errors) > 1
        return RefusedError(
            f"{len(errors)} paths leave the root of the manifest" if many else errors[0].what,
            found=f"{errors[0].found}{' first' if many else ''}",
            allowed=errors[0].allowed,
            do=self._how_to_allow(),
        )

    def _how_to_allow(self) -> str:
        """What mends the paths seen so far; no root does where all of them are absolute."""
        allow = "set data.allow_outside_root=true (in `sonotune data`: --allow-outside-root)"
        if self.absolute:
            return f"Move the audio there, set data.root=FOLDER (in `sonotune data`: --root FOLDER), or {allow}."
        if self._relative or not self.movable:
            return f"Move the audio there, or {allow}."
        return (
            f"Leave out data.root (in `sonotune data`: --root): absolute paths are then read as they are. Or {allow}."
        )

    def _as_written_here(self, value: str) -> Path | None:
        """A file whose path was written with backslashes, or with its accents composed another way, as macOS does."""
        for written in dict.fromkeys((value, value.replace("\\", "/"))):
            path = Path(self.root.anchor) if written.startswith("/") else self.root
            for part in Path(written).parts:
                forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
                path = next((found for form in forms if _exists(found := path / form)), path / part)
            if _exists(path):
                return path
        return None

    def _real_file(self, path: Path) -> Path:
        # Folders repeat over thousands of lines, and resolving costs one system call for each of their parts.
        folder = path.parent
        if ".." in path.parts or path.is_symlink():
            return self._real(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = self._real(folder)
        return self._real_folders[folder] / path.name

    @staticmethod
    def _real(path: Path) -> Path:
        try:
            return path.resolve()
        except (OSError, RuntimeError) as error:  # Python 3.11 raises RuntimeError for a loop of links
            raise RefusedError(
                "the path cannot be followed",
                found=f"{show(str(path))}: {error}",
                allowed="an audio file",
                do="Mend the links.",
            ) from error


def root_that_holds(paths: Sequence[Path], folder: Path) -> Path | None:
    """Another folder near this one, below which lie the files that are not below this one.

    Args:
        paths: Absolute paths of files that are missing.
        folder: What they are relative to; its parents, their folders and the working directory are looked at.

    Returns:
        The first that has all of them (of the first few); None where there is none.
    """
    folder = folder.absolute()
    wanted = [path.relative_to(folder) for path in paths[:_TRIED] if path.is_relative_to(folder)]
    if len(wanted) < len(paths[:_TRIED]):
        return None  # written as absolute, which no root changes
    near = [Path.cwd(), *list(folder.parents)[:_UP]]
    for parent in (folder, folder.parent):
        try:
            near += sorted(entry for entry in parent.iterdir() if entry.is_dir())[:_FOLDERS]
        except OSError:
            continue
    return next((other for other in near if wanted and all(_exists(other / name) for name in wanted)), None)


def _size_bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))  # a name on disk need not be UTF-8


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False
