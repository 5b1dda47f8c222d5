"""The pictures that a command line names: folders, lists, patterns, tar files and videos.

A source has a length and can be read from any place on, so that work can be divided and taken up again.
"""

from __future__ import annotations

import glob
import io
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import IMAGE_SUFFIXES
from sparse_detr.predictor import _stamp

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".txt", ".lst")


class Source(Protocol):
    """Pictures in a fixed order.

    Attributes:
        names: of every picture, unique within the source; forward slashes, no suffix of its own for frames.
        paths: of the files that the pictures are in.
    """

    names: Sequence[str]
    paths: Sequence[str]

    def read(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the pictures from `start` to `stop` as a `Predictor` takes them, or the `ImageError` of a bad one."""


@dataclass(frozen=True)
class ImageFiles:
    """Files, which the predictor reads itself."""

    names: Sequence[str]
    paths: Sequence[str]

    def read(self, start: int, stop: int) -> Iterator[str]:
        yield from self.paths[start:stop]


class TarImages:
    """The images in a tar file, in its order.

    Raises:
        UserError: the file cannot be read, or holds no image.
    """

    def __init__(self, path: str) -> None:
        self.path, self.paths = path, [path]
        try:
            with tarfile.open(path) as archive:
                self.names = [member.name for member in archive if member.isfile() and has_suffix(member.name)]
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"--input {path} cannot be read as a tar file ({error}); give another one") from error
        if not self.names:
            raise UserError(f"--input {path} holds no image; {_kinds()}")

    def read(self, start: int, stop: int) -> Iterator[Any]:
        """Yield PIL images; the file is read once from its beginning."""
        with tarfile.open(self.path) as archive:
            number = 0
            for member in archive:
                if not (member.isfile() and has_suffix(member.name)):
                    continue
                if number >= stop:
                    return
                if number >= start:
                    yield self._image(archive, member)
                number += 1

    def _image(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
        file = archive.extractfile(member)
        assert file is not None, member.name
        try:
            image = Image.open(io.BytesIO(file.read()))
            image.load()
        except UnidentifiedImageError:
            return ImageError(f"{self.path}: {member.name} is not an image in a known format; replace it")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return ImageError(f"{self.path}: {member.name} cannot be decoded ({error}); replace it")
        return image


class VideoFrames:
    """The frames of a video, RGB arrays (H, W, 3).

    Frames are counted by decoding: what a file says of its length may be wrong.

    Attributes:
        frames_per_second: of the video.

    Raises:
        UserError: the file cannot be read, or has no frame.
    """

    def __init__(self, path: str) -> None:
        self.path, self.paths = path, [path]
        reader = self._open()
        self.frames_per_second = float(reader.get(5) or 25.0)  # CAP_PROP_FPS
        count = 0
        while reader.grab():
            count += 1
        reader.release()
        if not count:
            raise UserError(f"--input {path} cannot be read as a video; convert it, for example to H.264 in .mp4")
        self.names = [f"{index:06d}" for index in range(count)]

    def read(self, start: int, stop: int) -> Iterator[Any]:
        reader = self._open()
        try:
            for index in range(stop):
                if index < start:
                    reader.grab()
                    continue
                is_read, frame = reader.read()
                yield frame[:, :, ::-1] if is_read else ImageError(f"{self.path}: frame {index} cannot be decoded")
        finally:
            reader.release()

    def _open(self) -> Any:
        import cv2

        return cv2.VideoCapture(self.path)


@dataclass(frozen=True)
class Inputs:
    """All pictures of a run: sources one after another, with names that are unique over all.

    Args:
        sources: in the order of the command line.
        prefixes: of the names of every source; "" for none.
    """

    sources: Sequence[Source]
    prefixes: Sequence[str]

    def __len__(self) -> int:
        return sum(len(source.names) for source in self.sources)

    def names(self) -> list[str]:
        """Return the name of every picture."""
        return [
            str(PurePosixPath(prefix, name))
            for source, prefix in zip(self.sources, self.prefixes, strict=True)
            for name in source.names
        ]

    def stamps(self) -> list[tuple[int, int] | None]:
        """Return the size and time of change of every file; None for one that is not there."""
        return [_stamp(path) for source in self.sources for path in source.paths]

    def read(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the pictures from `start` to `stop` over all sources."""
        first = 0
        for source in self.sources:
            length = len(source.names)
            begin, end = max(start - first, 0), min(stop - first, length)
            if begin < end:
                yield from source.read(begin, end)
            first += length

    def videos(self) -> list[tuple[str, VideoFrames, int]]:
        """Return name, frames and first number of every video."""
        found, first = [], 0
        for source, prefix in zip(self.sources, self.prefixes, strict=True):
            if isinstance(source, VideoFrames):
                found.append((prefix, source, first))
            first += len(source.names)
        return found


def find_inputs(given: Sequence[str]) -> Inputs:
    """Return the pictures that a command line names.

    Args:
        given: images, folders (with their subfolders), patterns, lists (`.txt`, one path a line, relative to the list),
            tar files and videos.

    Raises:
        UserError: one of them gives no picture, or cannot be read.
    """
    sources: list[Source] = []
    prefixes: list[str] = []
    files: dict[str, str] = {}  # path -> name
    for path in given:
        expanded = os.path.expanduser(path)
        if os.path.isfile(expanded) and has_suffix(expanded, TAR_SUFFIXES + VIDEO_SUFFIXES):
            is_tar = has_suffix(expanded, TAR_SUFFIXES)
            sources.append(TarImages(expanded) if is_tar else VideoFrames(expanded))
            prefixes.append(Path(expanded).name)
        else:
            for file, name in _named_files(path, expanded):
                files.setdefault(file, name)
    if files:
        sources.insert(0, ImageFiles(_distinct(list(files.values())), list(files)))
        prefixes.insert(0, "")
    return Inputs(sources, _distinct(prefixes))


def _named_files(given: str, path: str) -> list[tuple[str, str]]:
    """Return path and name of the image files that one word of the command line names."""
    if os.path.isdir(path):
        found = [file for file in sorted(Path(path).rglob("*")) if has_suffix(file.name) and file.is_file()]
        named = [(str(file), file.relative_to(path).as_posix()) for file in found]
    elif os.path.isfile(path) and has_suffix(path, LIST_SUFFIXES):
        named = _listed(path)
    else:
        found = [Path(path)] if os.path.isfile(path) else [Path(file) for file in sorted(glob.glob(path))]
        named = [(str(file), file.name) for file in found if file.is_file()]
    if not named:
        raise UserError(f"--input {given}: no image found; {_kinds()}")
    return named


def _listed(path: str) -> list[tuple[str, str]]:
    """Return path and name of the images of a list."""
    folder = os.path.dirname(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input {path} cannot be read as a list of images ({error})") from error
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    found = [os.path.join(folder, os.path.expanduser(word)) for word in words]
    names = [str(PurePosixPath(*(part for part in Path(word).parts if part not in ("..", "/", "~")))) for word in words]
    return list(zip(found, names, strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names without repetition: the second `a.png` is `a-2.png`."""
    used: set[str] = set()
    found = []
    for name in names:
        path, chosen, copy = PurePosixPath(name), name, 2
        while chosen in used:
            chosen, copy = str(path.with_name(f"{path.stem}-{copy}{path.suffix}")), copy + 1
        used.add(chosen)
        found.append(chosen)
    return found


def has_suffix(name: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    """Return whether a file name ends with one of the suffixes."""
    return name.lower().endswith(tuple(suffixes))


def _kinds() -> str:
    kinds = ", ".join((*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES, *TAR_SUFFIXES))
    return f"give images, folders, a list of paths (.txt), tar files or videos ({kinds})"
