"""Write checkpoints that a training can resume from bit for bit, and find the one to resume from."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from sparse_detr.checkpoint import MatchReport, load_file
from sparse_detr.engine.config_changes import log_changes
from sparse_detr.engine.distributed import on_main_process
from sparse_detr.engine.random_state import random_state
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.weights import SafeCheckpointer
from sparse_detr.errors import UserError
from sparse_detr.files import write_atomically, write_text_atomically

logger = logging.getLogger(__name__)

BEST_PREFIX = "model_best"
FINAL = "model_final.pth"
POINTER = "last_checkpoint"
EARLIER = ".earlier_training"
_NUMBERED = re.compile(r"model_(\d+)\.pth")


class TrainingCheckpointer(SafeCheckpointer):
    """A checkpointer that also saves the random state of every rank and never leaves a partial file.

    Every rank must call `save`, since each adds its random state; the main process writes.

    Args:
        config: values of the config by name; a resume compares them with its own.
        checkpointables: objects whose states are saved too.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, config: dict[str, str] | None = None, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.config = config or {}
        self.resumed_from = ""

    def save(self, name: str, **extra: Any) -> None:
        """Write `<name>.pth` and note it as the last checkpoint.

        Args:
            extra: more entries of the file; one of the same name replaces the checkpointer's own, None removes it.

        Raises:
            UserError: on the main process, if the file cannot be written; the other ranks exit.
        """
        states = comm.gather(random_state())
        on_main_process(lambda: self._write(name, {"random_states": states, **extra}))

    def _write(self, name: str, extra: dict[str, Any]) -> None:
        if not self.save_dir:
            return
        own = {key: part.state_dict() for key, part in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **own, "config": self.config, **extra}
        content = {key: value for key, value in content.items() if value is not None}
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info(f"saving checkpoint to {path}")
        write_atomically(path, lambda file: torch.save(content, file))
        _forget_earlier(Path(self.save_dir), f"{name}.pth")
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the checkpoint to resume from, unless it is the best model."""
        if not last_filename_basename.startswith(BEST_PREFIX):
            write_text_atomically(os.path.join(self.save_dir, POINTER), last_filename_basename)

    def _check_fit(self, report: MatchReport, *rest: Any) -> None:
        """Refuse a checkpoint with more or fewer entries than the model, whose training cannot go on."""
        super()._check_fit(report, *rest)
        if report.missing or report.unexpected:
            raise UserError(
                "the checkpoint is of another model, so its training cannot go on; use the old model settings, or "
                f"start a new training from its weights (train.init_checkpoint, MODEL.WEIGHTS)\n{report}"
            )


def start_anew(folder: str) -> None:
    """Note which checkpoints in the folder are of an earlier training, so that no resume of this one uses them.

    A file counts as earlier until this training writes one of the same name.
    """
    names = sorted(path.name for path in Path(folder).glob("model_*.pth")) if folder else []
    if not names:
        return
    logger.warning(f"{folder} holds checkpoints of an earlier training, which this one replaces: {', '.join(names)}")
    write_text_atomically(Path(folder, EARLIER), "\n".join(names))
    Path(folder, POINTER).unlink(missing_ok=True)


def earlier_files(folder: str | Path) -> list[str]:
    """Return the names of the checkpoints that an earlier training left in the folder."""
    try:
        return Path(folder, EARLIER).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []


def _forget_earlier(folder: Path, name: str) -> None:
    names = earlier_files(folder)
    if name not in names:
        return
    names.remove(name)
    if names:
        write_text_atomically(folder / EARLIER, "\n".join(names))
    else:
        (folder / EARLIER).unlink()


@dataclass(frozen=True)
class LastCheckpoint:
    """The checkpoint that a training goes on from, and the reasons why newer files were passed over.

    Args:
        path: of the checkpoint; "" if there is none.
        iteration: the last one of that checkpoint; -1 if there is none.
        passed_over: file name -> reason.
    """

    path: str = ""
    iteration: int = -1
    passed_over: dict[str, str] = field(default_factory=dict)

    def describe_passed_over(self) -> str:
        return "\n".join(f"  {name}: {reason}" for name, reason in self.passed_over.items())


def find_last_checkpoint(folder: str) -> LastCheckpoint:
    """Find the newest whole checkpoint of a folder; every rank must call this, the main process reads the files.

    It is the one that `last_checkpoint` names or, if that is broken, the one of the latest iteration.

    Raises:
        UserError: all checkpoints in the folder are broken (on the main process; the other ranks exit).
    """
    last = on_main_process(lambda: _find_last_checkpoint(Path(folder)))
    if last.path and last.passed_over:
        logger.warning(f"going on from {last.path}; passed over:\n{last.describe_passed_over()}")
    elif last.passed_over:
        logger.warning(f"there is no checkpoint in {folder}; passed over:\n{last.describe_passed_over()}")
    return last


def _find_last_checkpoint(folder: Path) -> LastCheckpoint:
    earlier, files = earlier_files(folder), _checkpoints_newest_first(folder)
    passed_over = {name: "it is of an earlier training in this folder" for name in files if name in earlier}
    if files and len(passed_over) == len(files):
        raise UserError(
            f"the last training in {folder} was stopped before its first checkpoint, and all checkpoints there are of "
            f"an earlier one; start again without --resume, or remove {folder / EARLIER} to go on with the earlier one"
        )
    named = _read_pointer(folder, passed_over)
    if named and named not in passed_over and (iteration := _iteration(folder / named, passed_over)) is not None:
        for name in files:
            if (number := _number_in(name)) is not None and number > iteration and name not in passed_over:
                passed_over[name] = f"it is newer than {named}, which {POINTER} names"
        return LastCheckpoint(str(folder / named), iteration, passed_over)
    # how new the final checkpoint is stands only inside the file
    whole: dict[str, int] = {}
    for name in files:
        if name not in passed_over and (iteration := _iteration(folder / name, passed_over)) is not None:
            whole[name] = iteration
            if name != FINAL:
                break
    if files and not whole:
        reasons = LastCheckpoint(passed_over=passed_over).describe_passed_over()
        raise UserError(
            f"{folder} has no whole checkpoint to resume from:\n{reasons}\n"
            "remove these files to start at iteration 0, or choose another output folder"
        )
    if not whole:
        return LastCheckpoint(passed_over=passed_over)
    newest = max(whole, key=lambda name: (whole[name], name == FINAL))
    return LastCheckpoint(str(folder / newest), whole[newest], passed_over)


def _checkpoints_newest_first(folder: Path) -> list[str]:
    """Return the name of the final checkpoint, then the numbered ones from the latest iteration down."""
    names = {path.name for path in folder.glob("model_*.pth")}
    numbers = {name: number for name in names if (number := _number_in(name)) is not None}
    final = [FINAL] if FINAL in names else []
    return final + sorted(numbers, key=lambda name: numbers[name], reverse=True)


def _number_in(name: str) -> int | None:
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def _read_pointer(folder: Path, passed_over: dict[str, str]) -> str:
    """Return the file name in `last_checkpoint`; "" if it names none, with the reason in `passed_over`."""
    try:
        text = (folder / POINTER).read_bytes().decode("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        if _checkpoints_newest_first(folder):
            passed_over[POINTER] = "it is missing"
        return ""
    except UnicodeDecodeError:
        passed_over[POINTER] = "it is no text"
        return ""
    except OSError as error:
        passed_over[POINTER] = f"it cannot be read ({error.strerror})"
        return ""
    reason = _fault_of_name(folder, text)
    if reason:
        passed_over[POINTER] = reason
    return "" if reason else text


def _fault_of_name(folder: Path, name: str) -> str:
    """Return why `name`, read from `last_checkpoint`, cannot be a checkpoint of the folder; "" if it can."""
    if not name:
        return "it is empty"
    shown = repr(name if len(name) <= 80 else name[:80] + "...")
    if not name.isprintable() or len(name) > 255:
        return f"it names no file: {shown}"
    if name != os.path.basename(name) or name in (".", ".."):
        return f"it names {shown}, which is not a file of this folder"
    if name.startswith(BEST_PREFIX):
        return f"it names {shown}, which is the best model, not the last"
    if not name.endswith(".pth"):
        return f"it names {shown}, which is no checkpoint"
    return "" if (folder / name).is_file() else f"it names {shown}, which does not exist"


def _iteration(path: Path, passed_over: dict[str, str]) -> int | None:
    """Return the last iteration of a whole checkpoint; None for any other file, with the reason in `passed_over`."""
    try:
        checkpoint = load_file(path)
    except UserError as error:
        passed_over[path.name] = str(error)
        return None
    trainer = checkpoint.get("trainer")
    if isinstance(checkpoint.get("model"), dict) and isinstance(trainer, dict) and "optimizer" in trainer:
        return int(trainer["iteration"])
    passed_over[path.name] = "it holds no state of a training"
    return None


def numbered_checkpoints(folder: str, *, before: float = float("inf")) -> list[str]:
    """Return the paths of a training's numbered checkpoints of iterations below `before`, oldest first."""
    earlier = earlier_files(folder)
    names = [name for name in reversed(_checkpoints_newest_first(Path(folder))) if name not in earlier]
    return [os.path.join(folder, name) for name in names if (n := _number_in(name)) is not None and n < before]


def resume(checkpointer: TrainingCheckpointer, trainer: Trainer, last: LastCheckpoint, *, max_iter: int) -> int:
    """Load a checkpoint into model, optimiser, scaler, hooks and random generators; settings come from the config.

    Returns:
        int: the iteration to go on with, at most `max_iter`.

    Raises:
        UserError: the checkpoint is of another model, of another kind of optimiser, or past the last iteration.
    """
    done = last.iteration + 1
    if done > max_iter:  # before loading, which moves the schedule to that iteration
        raise UserError(
            f"{last.path} has {done} iterations, more than the {max_iter} of the config; raise train.max_iter "
            "(SOLVER.MAX_ITER), or choose another output folder to train anew"
        )
    extra = checkpointer.load(last.path)
    checkpointer.resumed_from = last.path
    _log_average(checkpointer, extra)
    log_changes(extra.get("config"), checkpointer.config)
    states = extra.get("random_states", [])
    if comm.get_rank() < len(states) == comm.get_world_size():
        trainer.resume_random_state(states[comm.get_rank()])
    else:
        logger.warning(
            f"the checkpoint was written by {len(states)} processes and {comm.get_world_size()} resume it: "
            "the random numbers start anew, so the result differs slightly from an uninterrupted training"
        )
    return trainer.iter + 1


def _log_average(checkpointer: TrainingCheckpointer, extra: dict[str, Any]) -> None:
    if "ema" in extra:  # loading removes the entries that it uses
        logger.warning("the checkpoint has averaged weights and the config averages none: they are dropped")
    elif "ema" in checkpointer.checkpointables and checkpointer.checkpointables["ema"].n_averaged == 0:
        logger.warning("the checkpoint has no averaged weights: the average starts with the next iteration")


def complete(checkpointer: TrainingCheckpointer, path: str) -> None:
    """Copy the checkpoint of the last iteration to the final one, if a training stopped between the two."""
    if os.path.basename(path) != FINAL:
        on_main_process(lambda: _copy_as_final(checkpointer, path))


def _copy_as_final(checkpointer: TrainingCheckpointer, path: str) -> None:
    final = os.path.join(checkpointer.save_dir, FINAL)
    logger.info(f"writing {final}: it was missing or broken, and {path} is of the last iteration")
    write_atomically(final, lambda file: file.write(Path(path).read_bytes()))
    _forget_earlier(Path(checkpointer.save_dir), FINAL)
    checkpointer.tag_last_checkpoint(FINAL)
