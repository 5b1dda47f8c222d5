"""Real images in batches for a benchmark."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from sparse_detr.config.kinds import Config, names_in
from sparse_detr.errors import UserError

Input = dict[str, Any]
Mapper = Callable[[dict[str, Any]], Input | None]


class ImageStream:
    """An endless stream of model inputs, in the order of the files; after the last file it starts anew.

    Args:
        files: paths of images.
        mapper: the config's preprocessing: record -> input of the model, None if the image cannot be used.

    Attributes:
        used: number of inputs that were taken.
    """

    def __init__(self, files: Sequence[str], mapper: Mapper) -> None:
        self._files, self._mapper = list(files), mapper
        self._next = self.used = 0

    @property
    def num_files(self) -> int:
        """Number of different images."""
        return len(self._files)

    def batch(self, size: int) -> list[Input]:
        """Return the next inputs, which the preprocessing has resized.

        Raises:
            UserError: no image can be used.
        """
        inputs: list[Input] = []
        while len(inputs) < size:
            if not self._files:
                raise UserError("none of the images can be used; the log names each with its reason; give others")
            file_name = self._files[self._next % len(self._files)]
            found = self._mapper({"file_name": file_name})
            if found is None:
                self._files.remove(file_name)
                continue
            inputs.append(found)
            self._next += 1
        self.used += size
        return inputs


def files_of_evaluation(cfg: Config, number: int) -> list[str]:
    """Return the paths of images of the config's evaluation data, drawn at random but always the same ones.

    Args:
        cfg: a config of either kind.
        number: the largest number of images.

    Raises:
        UserError: there are no such data on this machine.
    """
    from detectron2.data import DatasetCatalog

    remedy = "name images with --input"
    names = [name for name in names_in(cfg, "test") if name in DatasetCatalog]
    if not names:
        raise UserError(f"the config names no evaluation data; {remedy}")
    try:
        files = [record["file_name"] for record in DatasetCatalog.get(names[0])]
    except FileNotFoundError as error:
        raise UserError(
            f"the evaluation data {names[0]} need {error.filename}, which is not there; {remedy}"
        ) from error
    if not files:
        raise UserError(f"the evaluation data {names[0]} have no image; {remedy}")
    return random.Random(0).sample(files, min(number, len(files)))
