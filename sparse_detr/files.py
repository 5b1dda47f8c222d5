"""Write files and folders so that no crash, kill or full disk leaves a partial file; errors name the remedy.

A file is written under a temporary name in its own folder, flushed to the disk and renamed: at every moment it has
either the whole old content or the whole new one.
"""

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from sparse_detr.errors import UserError

IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
"""What names of images end with, in lower case."""

_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.part")
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than this system allows",
}
_REASONS = {
    **{code: f"{what}; free some space or choose another folder" for code, what in DISK_ERRORS.items()},
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ESTALE: "its network folder is gone; mount it again or choose another folder",
    errno.EACCES: "it is not allowed; choose another folder or change its permissions",
    errno.EPERM: "it is not allowed; choose another folder or change its permissions",
    errno.ENOENT: "its folder is gone; make it again or choose another folder",
    errno.ENOTDIR: "a part of its path is a file, not a folder; remove that file or choose another folder",
    errno.EEXIST: "a file or a broken link has this name; remove it or choose another name",
    errno.EISDIR: "a folder has this name; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


class CannotWrite(UserError):
    """An error: a file or folder cannot be written."""


class _RememberingFile:
    """A file that keeps its first error, since torch reports a full disk as a RuntimeError without the cause."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Write a file with `write` so that it appears at `path` whole or not at all; an old file stays until then.

    A link stays, and its target is replaced. A pipe, `/dev/stdout` and the like are written in place.

    Raises:
        CannotWrite: a `UserError`; an old file at `path` is unchanged.
    """
    path = Path(path)
    try:
        _write_and_rename(Path(os.path.realpath(path)), write)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Write text in UTF-8 so that it appears whole or not at all, see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def _write_and_rename(path: Path, write: Callable[[BinaryIO], object]) -> None:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with open(path, "wb") as file:
            write(file)
        return
    temporary = path.parent / f".{os.urandom(8).hex()}.part"
    try:
        with open(temporary, "xb") as file:
            _fill(file, write)
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _fill(file: BinaryIO, write: Callable[[BinaryIO], object]) -> None:
    watched = _RememberingFile(file)
    try:
        write(cast(BinaryIO, watched))
    except Exception as error:
        if watched.error is not None:
            raise watched.error from error
        raise
    if watched.error is not None:  # `write` has hidden the error
        raise watched.error
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a new name survives a power failure; some network file systems cannot do it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder and its parents, if they are missing, and check that files can be written into it.

    Raises:
        CannotWrite: a `UserError`: the path is a file, or the folder cannot be made or written into.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise CannotWrite(f"{path} is a file, but a folder is needed; remove it or choose another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.urandom(8).hex()}.part"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error, what="folder") from error
    return path


def file_stamp(path: str | os.PathLike) -> tuple[int, int] | None:
    """Return the size and time of a file, to detect a change; None without a file, as for an address."""
    if not os.path.isfile(path):
        return None
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns


def remove_leftovers(folder: str | os.PathLike) -> list[str]:
    """Remove the temporary files of killed writes from `folder`; no other process may be writing there.

    Returns:
        list: the names of the removed files.
    """
    names = [entry.name for entry in os.scandir(folder) if _TEMPORARY_NAME.fullmatch(entry.name)]
    for name in names:
        Path(folder, name).unlink(missing_ok=True)
    return names


def cannot_write(path: str | os.PathLike, error: OSError, *, what: str = "file") -> CannotWrite:
    """Return the error for a user if `path` cannot be written."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return CannotWrite(f"cannot write the {what} {os.fspath(path)}: {reason}")
