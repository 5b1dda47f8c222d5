"""The output folder of a training: one training at a time writes into it, and a failing disk gives one clear error."""

import fcntl
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from detectron2.engine import hooks
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from sparse_detr.engine.checkpointer import POINTER, numbered_checkpoints
from sparse_detr.engine.distributed import on_main_process
from sparse_detr.engine.nonfinite import NonFiniteError
from sparse_detr.errors import UserError
from sparse_detr.files import DISK_ERRORS, CannotWrite, cannot_write, make_folder, remove_leftovers

logger = logging.getLogger(__name__)

LOCK = ".training.lock"
_KILLED_WORKER = re.compile(r"DataLoader worker \(pid")
_held: set[tuple[int, str]] = set()  # process and folder: a forked process holds nothing


@contextmanager
def hold_folder(folder: str, *, alone: bool = True) -> Iterator[None]:
    """Make the folder and keep other trainings out of it, until the block or the process ends in any way.

    Every rank must call it.

    Args:
        alone: False makes the folder without keeping others out, for an evaluation.

    Raises:
        UserError: another training writes there, or the folder cannot be written into.
    """
    folder = os.path.realpath(folder) if folder else ""
    if not alone and folder:
        on_main_process(lambda: str(make_folder(folder)))
    key = (os.getpid(), folder)
    if key in _held or not folder or not alone:
        yield
        return
    locks: list[BinaryIO] = []
    on_main_process(lambda: locks.append(_lock(folder)))
    _held.add(key)
    try:
        yield
    finally:
        _held.remove(key)
        for lock in locks:
            lock.close()


def _lock(folder: str) -> BinaryIO:
    """Take a POSIX lock; forked data-loading processes do not inherit it, so it never outlives a killed training."""
    make_folder(folder)
    file = open(os.path.join(folder, LOCK), "a+b")  # noqa: SIM115 stays open
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read(200).decode("utf-8", "replace").strip()
        file.close()
        raise UserError(
            f"another training writes into {folder} ({holder or 'of an unknown process'}); "
            "wait for its end, stop it, or choose another output folder"
        ) from error
    except OSError as error:  # some network file systems
        logger.warning(f"{folder} cannot be locked ({error.strerror}): start no second training in it")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    file.flush()
    for name in remove_leftovers(folder):
        logger.info(f"removed {os.path.join(folder, name)}, left by a write that was killed")
    return file


def disk_error(error: BaseException, folder: str) -> CannotWrite | None:
    """Return an error for the user if `error` comes from a full disk or a file in `folder`; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CannotWrite):
            return seen
        if isinstance(seen, OSError) and (seen.errno in DISK_ERRORS or _inside(seen.filename, folder)):
            if isinstance(seen.filename, (str, bytes)):
                return cannot_write(os.fsdecode(seen.filename), seen)
            return cannot_write(folder, seen, what="folder")
        seen = seen.__cause__ or seen.__context__
    return None


def _inside(path: Any, folder: str) -> bool:
    if not isinstance(path, (str, bytes)) or not folder:
        return False
    return Path(os.path.abspath(folder)) in Path(os.path.abspath(os.fsdecode(path))).parents


def worker_error(error: BaseException) -> UserError | None:
    """Return an error for the user if `error` is torch's RuntimeError for a killed data-loading process; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and _KILLED_WORKER.match(str(seen)):
            reason = str(seen).split(". ")[0].rstrip(".")
            return UserError(
                f"a data-loading process has died ({reason}), maybe out of memory; lower the number of workers "
                "(dataloader.train.num_workers, DATALOADER.NUM_WORKERS), the batch size or the image sizes"
            )
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def disk_errors_for_users(folder: str) -> Iterator[None]:
    """Turn the errors of a full or vanished disk, or of a killed data-loading process, into one `UserError`."""
    try:
        yield
    except (OSError, RuntimeError, UserError) as error:
        known = disk_error(error, folder) or (None if isinstance(error, UserError) else worker_error(error))
        if known is None or known is error:
            raise
        raise known from error


def what_is_saved(folder: str) -> str:
    """Return from which checkpoint the training can go on after an error, as a part of a message."""
    try:
        name = Path(folder, POINTER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        name = ""
    path = os.path.join(folder, name)
    if not name or not os.path.isfile(path):
        path = max(numbered_checkpoints(folder), default="")
    if path:
        return f"the training up to {path} is saved; go on from there with --resume"
    return "no checkpoint of this training is saved"


class WriteMetrics(hooks.PeriodicWriter):
    """Writes losses and scores to the terminal, the log and files; a failing disk gives one clear error.

    Args:
        folder: of `metrics.json` and TensorBoard's files.
        period: iterations between two writes.
        writers: of the terminal, the log and other places.
    """

    def __init__(self, *, folder: str, period: int, writers: Sequence[EventWriter] = ()) -> None:
        make_folder(folder)
        files = [JSONWriter(os.path.join(folder, "metrics.json")), TensorboardXWriter(folder)]
        super().__init__([*writers, *files], period)
        self._folder = folder

    def after_step(self) -> None:
        with disk_errors_for_users(self._folder):
            super().after_step()

    def after_train(self) -> None:
        """Write and close all; an error of a writer must not hide the error that ended the training."""
        errors = [error for writer in self._writers if (error := _finish(writer)) is not None]
        if errors and sys.exc_info()[0] is None:
            raise disk_error(errors[0], self._folder) or errors[0]


def _finish(writer: EventWriter) -> Exception | None:
    first: Exception | None = None
    for step in (writer.write, writer.close):
        try:
            step()
        except Exception as error:  # noqa: BLE001 the caller raises it
            first = first or error
    return first


def survive_a_full_disk(*names: str) -> None:
    """Let the log files of these loggers end with one warning when they cannot be written.

    Python would print a traceback for every line of the log, and one more at the end of the process.
    """
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream not in (sys.stdout, sys.stderr):
                handler.handleError = _EndLog(handler)  # type: ignore[method-assign]


class _EndLog:
    def __init__(self, handler: logging.StreamHandler) -> None:
        self._handler = handler

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.Handler.handleError(self._handler, record)
            return
        print(f"warning: the log ends here: {cannot_write(self._handler.stream.name, error)}", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._handler.stream.fileno())
        os.close(nowhere)


@contextmanager
def one_line_errors(folder: str) -> Iterator[None]:
    """Let Detectron2's loop log a known error as one line, without a traceback.

    TensorBoard's thread prints no disk errors meanwhile: its next call raises them again.
    """
    loop, one_line = logging.getLogger("detectron2.engine.train_loop"), _OneLine(folder)
    of_threads = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or disk_error(args.exc_value, folder) is None:
            of_threads(args)

    loop.addFilter(one_line)
    threading.excepthook = quiet
    try:
        yield
    finally:
        loop.removeFilter(one_line)
        threading.excepthook = of_threads


class _OneLine(logging.Filter):
    """A filter that leaves the traceback of known errors out of the log."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            known = disk_error(error, self._folder) or worker_error(error) or (error if _is_known(error) else None)
            if known is not None:
                record.msg, record.args, record.exc_info, record.exc_text = f"training ends: {known}", (), None, None
        return True


def _is_known(error: BaseException) -> bool:
    """Return whether the message of an error says all that a user needs."""
    return isinstance(error, (UserError, NonFiniteError))
