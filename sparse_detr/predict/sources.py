"""The pictures that a command line names: folders, lists, patterns, tar files and videos.

A source has a length and can be read from any place on, so that work can be divided and taken up again.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from sparse_detr.data.formats.files import images_below, read_lines
from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import IMAGE_SUFFIXES, file_stamp

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".txt", ".lst")

MOST_STOPPED = 2
"""Places from which a file can be read on: one reads to detect, one to draw."""


class Source(Protocol):
    """Pictures in a fixed order.

    Attributes:
        names: of every picture; forward slashes, no suffix of its own for frames.
        paths: of the files that the pictures are in.
    """

    names: Sequence[str]
    paths: Sequence[str]

    def read(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the pictures from `start` to `stop` as a `Predictor` takes them, or the `ImageError` of a bad one."""

    def close(self) -> None:
        """Close what reading has left open."""


@dataclass(frozen=True)
class ImageFiles:
    """Files, which the predictor reads itself."""

    names: Sequence[str]
    paths: Sequence[str]

    def read(self, start: int, stop: int) -> Iterator[str]:
        yield from self.paths[start:stop]

    def close(self) -> None:
        pass


class ForwardFile:
    """A file that is read from its beginning on. A read goes on where an earlier one stopped, if that is before it.

    Attributes:
        names, paths: as of every source.
    """

    names: Sequence[str]

    def __init__(self, path: str) -> None:
        self.path, self.paths = path, [path]
        self._stopped: list[tuple[int, Generator[Callable[[], Any], None, None]]] = []

    def read(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the pictures from `start` to `stop`, or the `ImageError` of a bad one."""
        stopped = max((one for one in self._stopped if one[0] <= start), key=itemgetter(0), default=None)
        if stopped is not None:
            self._stopped.remove(stopped)
        position, pictures = stopped or (0, self._pictures())
        for decode in islice(pictures, start - position, stop - position):
            yield decode()
        if stop < len(self.names):
            self._stopped = [*self._stopped, (stop, pictures)][-MOST_STOPPED:]
        else:
            pictures.close()

    def close(self) -> None:
        """Close what reading has left open."""
        for _, pictures in self._stopped:
            pictures.close()
        self._stopped = []

    def _pictures(self) -> Generator[Callable[[], Any], None, None]:
        """Open the file and yield a function for every picture, which decodes it before the next one is asked for."""
        raise NotImplementedError


class TarImages(ForwardFile):
    """The images in a tar file, in its order.

    Raises:
        UserError: the file cannot be read, or holds no image.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            with tarfile.open(path) as archive:
                self.names = [member.name for member in archive if _is_image(member)]
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"--input {path} cannot be read as a tar file ({error}); give another one") from error
        if not self.names:
            raise UserError(f"--input {path} holds no image; {_kinds()}")

    def _pictures(self) -> Generator[Callable[[], Any], None, None]:
        with tarfile.open(self.path) as archive:
            for member in filter(_is_image, archive):
                yield partial(self._image, archive, member)

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


def _is_image(member: tarfile.TarInfo) -> bool:
    """Return whether a member of a tar file is an image; hidden ones are none, such as the `._a.jpg` of macOS."""
    parts = PurePosixPath(member.name).parts
    return member.isfile() and has_suffix(member.name) and not any(part[0] == "." and part != ".." for part in parts)


class VideoFrames(ForwardFile):
    """The frames of a video, RGB arrays (H, W, 3).

    Frames are counted by decoding: what a file says of its length may be wrong.

    Attributes:
        frames_per_second: of the video.

    Raises:
        UserError: the file cannot be read, or has no frame.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        reader = self._open()
        self.frames_per_second = float(reader.get(5) or 25.0)  # CAP_PROP_FPS
        count = 0
        while reader.grab():
            count += 1
        reader.release()
        if not count:
            raise UserError(f"--input {path} cannot be read as a video; convert it, for example to H.264 in .mp4")
        self.names = [f"{index:06d}" for index in range(count)]

    def _pictures(self) -> Generator[Callable[[], Any], None, None]:
        reader = self._open()
        try:
            for index in range(len(self.names)):
                yield partial(self._frame, reader, index, reader.grab())
        finally:
            reader.release()

    def _frame(self, reader: Any, index: int, is_grabbed: bool) -> Any:
        is_read, frame = reader.retrieve() if is_grabbed else (False, None)
        return frame[:, :, ::-1] if is_read else ImageError(f"{self.path}: frame {index} cannot be decoded")

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
        """Return the name of every picture, all distinct."""
        return _distinct(
            [
                str(PurePosixPath(prefix, name))
                for source, prefix in zip(self.sources, self.prefixes, strict=True)
                for name in source.names
            ]
        )

    def stamps(self) -> list[tuple[int, int] | None]:
        """Return the size and time of change of every file; None for one that is not there."""
        return [file_stamp(path) for source in self.sources for path in source.paths]

    def read(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the pictures from `start` to `stop` over all sources."""
        for source, _, begin, end in self._parts(start, stop):
            yield from source.read(begin, end)

    def read_images(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield number and picture from `start` to `stop`, without the frames of videos, which are not decoded."""
        for source, first, begin, end in self._parts(start, stop):
            if not isinstance(source, VideoFrames):
                yield from enumerate(source.read(begin, end), first + begin)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Source, int, int, int]]:
        """Yield every source with pictures from `start` to `stop`, its first number, and which of its pictures.

        The other ones are closed, so that there are never many open files.
        """
        first = 0
        for source in self.sources:
            length = len(source.names)
            begin, end = max(start - first, 0), min(stop - first, length)
            if begin < end:
                yield source, first, begin, end
            else:
                source.close()
            first += length

    def close(self) -> None:
        """Close what reading has left open."""
        for source in self.sources:
            source.close()

    def videos(self) -> list[tuple[str, VideoFrames, int]]:
        """Return name, frames and first number of every video."""
        found, first = [], 0
        for source, prefix in zip(self.sources, self.prefixes, strict=True):
            if isinstance(source, VideoFrames):
                found.append((prefix, source, first))
            first += len(source.names)
        return found


def find_inputs(given: Sequence[str], written: Sequence[Path] = ()) -> Inputs:
    """Return the pictures that a command line names.

    Args:
        given: images, folders (the images in them and in their subfolders, without hidden ones), patterns (what the
            shell would put in their place), lists (`.txt`, one path a line, relative to the list), tar files and
            videos.
        written: files and folders that the run itself writes; they are left out.

    Raises:
        UserError: one of them gives no picture, or cannot be read.
    """
    files: dict[str, str] = {}  # path -> name
    for word in given:
        for path, name in _named_files(word, written):
            files.setdefault(path, name)
    images = {path: name for path, name in files.items() if not has_suffix(path, TAR_SUFFIXES + VIDEO_SUFFIXES)}
    sources: list[Source] = [ImageFiles(list(images.values()), list(images))] if images else []
    prefixes = [""] if images else []
    for path, name in files.items():
        if path not in images:
            sources.append(TarImages(path) if has_suffix(path, TAR_SUFFIXES) else VideoFrames(path))
            prefixes.append(name)
    return Inputs(sources, _distinct(prefixes))


def _named_files(given: str, written: Sequence[Path]) -> list[tuple[str, str]]:
    """Return path and name of the images, tar files and videos that one word of the command line names."""
    word = os.path.expanduser(given)
    found: list[tuple[str, str]] = []
    for path in [word] if os.path.exists(word) else sorted(glob.glob(word)):
        if os.path.isdir(path):
            found += [(str(file), file.relative_to(path).as_posix()) for file in images_below(Path(path))]
        elif os.path.isfile(path):
            found += _listed(path) if has_suffix(path, LIST_SUFFIXES) else [(str(Path(path)), Path(path).name)]
    kept = _outside(found, written)
    if found and not kept:
        raise UserError(f"--input {given} is where this run writes; give another --output")
    if not kept:
        raise UserError(f"--input {given}: no image found; {_kinds()}")
    return kept


def _outside(found: Sequence[tuple[str, str]], written: Sequence[Path]) -> list[tuple[str, str]]:
    """Return path and name of the files that are none of the written ones, and in none of the written folders."""
    left_out = {path.resolve() for path in written}
    folders = {folder: Path(folder).resolve() for folder in {os.path.dirname(path) for path, _ in found}}
    inside = {folder for folder, place in folders.items() if left_out & {place, *place.parents}}

    def is_kept(path: str) -> bool:
        folder, name = os.path.split(path)
        return folder not in inside and folders[folder] / name not in left_out

    return [(path, name) for path, name in found if is_kept(path)]


def _listed(path: str) -> list[tuple[str, str]]:
    """Return path and name of the files of a list."""
    folder = os.path.dirname(path)
    try:
        lines = read_lines(Path(path))
    except UserError as error:
        raise UserError(f"--input {path} cannot be read as a list of images: {error}") from error
    words = [line for line in lines if not line.startswith("#")]
    found = [str(Path(folder, os.path.expanduser(word))) for word in words]
    names = [str(PurePosixPath(*(part for part in Path(word).parts if part not in ("..", "/", "~")))) for word in words]
    return list(zip(found, names, strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names without repetition: the second `a.png` is `a-2.png`."""
    used: set[str] = set()
    copies: Counter[str] = Counter()
    found = []
    for name in names:
        chosen = name
        while chosen in used:
            copies[name] += 1
            stem, suffix = posixpath.splitext(name)
            chosen = f"{stem}-{copies[name] + 1}{suffix}"
        used.add(chosen)
        found.append(chosen)
    return found


def has_suffix(name: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    """Return whether a file name ends with one of the suffixes."""
    return name.lower().endswith(tuple(suffixes))


def _kinds() -> str:
    kinds = ", ".join((*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES, *TAR_SUFFIXES))
    return f"give images, folders, a list of paths (.txt), tar files or videos ({kinds})"
