"""Golden cases: the results of the public code for checkpoints, images and boxes that a rule generates.

A case stores the outputs only. All inputs are drawn from NumPy generators, seeded with the CRC-32 of a name:

- an entry of a checkpoint from its own name (tied entries from the name of the first): standard normal float32 numbers,
  divided by the root of the fan-in if there are two or more dimensions; of one dimension, 0.1 of it, plus 1 for
  scales; running variances are 1 plus 0.1 of the absolute value;
- an image from its tag: noise on grids of 32, 16, 8 and 1 pixels, coarse grids with more weight, scaled to 0..255;
- boxes (cxcywh in [0, 1]) and labels from their tag.
"""

import json
import zlib
from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/case.json"))
FIXED, CONSTANT = "fixed", "kept"


def names_with(output: str) -> list[str]:
    """Return the names of the cases that store an output."""
    found = []
    for name in NAMES:
        with np.load(FOLDER / name / "outputs.npz") as arrays:
            found += [name] if output in arrays.files else []
    return found


def generator(tag: str) -> np.random.Generator:
    """Return the random generator of a name."""
    return np.random.default_rng(zlib.crc32(tag.encode()))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Make the float32 values of a checkpoint entry."""
    noise = generator(name).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if noise.ndim > 1:
        return noise / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    offset = 1.0 if name.endswith(("weight", "gamma")) else 0.0
    return offset + 0.1 * noise


def image(tag: str, height: int, width: int) -> Tensor:
    """Make a uint8 RGB image (3, height, width) with structure at four scales."""
    stream = generator(tag)
    canvas = np.zeros((3, height, width), np.float32)
    for cell in (32, 16, 8, 1):
        coarse = stream.standard_normal((3, -(-height // cell), -(-width // cell)), dtype=np.float32)
        canvas += coarse.repeat(cell, axis=1).repeat(cell, axis=2)[:, :height, :width] * cell**0.5
    canvas = (canvas - canvas.min()) / (canvas.max() - canvas.min())
    return torch.from_numpy(np.round(canvas * 255).astype(np.uint8))


def targets(tag: str, count: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Make boxes (count, 4) as cxcywh in [0, 1], float64, and labels (count,)."""
    stream = generator(tag)
    size = stream.uniform(0.05, 0.6, (count, 2))
    centre = size / 2 + stream.uniform(0, 1, (count, 2)) * (1 - size)
    labels = stream.integers(0, num_classes, count)
    return torch.from_numpy(np.concatenate([centre, size], axis=1)), torch.from_numpy(labels)


@dataclass(frozen=True)
class GoldenCase:
    """One public model: its checkpoint file, its inputs and its stored results."""

    name: str

    def _json(self, stem: str) -> Any:
        return json.loads((FOLDER / self.name / f"{stem}.json").read_text())

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Options, sizes, losses and gradient norms."""
        return self._json("case")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """The stored outputs by name, as tensors."""
        with np.load(FOLDER / self.name / "outputs.npz") as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    @property
    def repository(self) -> str:
        """The public code: `sparse_detr`, `official` (by the authors of DINO and DAB-DETR) or `detrex`."""
        keys = {"flags": "sparse_detr", "options": "official", "config": "detrex"}
        return next(repository for key, repository in keys.items() if key in self.facts)

    @property
    def saved_arguments(self) -> Namespace | None:
        """The arguments that the public training script saves with the weights; detrex saves none."""
        if self.repository == "detrex":
            return None
        if self.repository == "official":
            return Namespace(num_queries=self.facts["num_queries"], **self.facts["options"])
        words = self.facts["flags"].split()
        return Namespace(
            num_queries=self.facts["num_queries"],
            eff_specific_head="--eff_specific_head" in words,
            rho=float(words[words.index("--rho") + 1]) if "--rho" in words else 0.0,
        )

    @property
    def losses(self) -> dict[str, float]:
        """Every unweighted loss by public name; in cases of detrex only those with a weight."""
        return self.facts["losses_unweighted" if self.repository == "detrex" else "losses"]

    @property
    def weighted_losses(self) -> dict[str, float]:
        """The weighted losses by public name; their sum is the total loss."""
        return {name: weight * self.losses[name] for name, weight in self.facts["weight_dict"].items()}

    @property
    def target_sizes(self) -> list[list[int]]:
        """(h, w) that detections were scaled to, of every image."""
        return self.facts.get("target_image_sizes", self.facts["image_sizes"])

    def state_dict(self) -> dict[str, Tensor]:
        """Make the public checkpoint, in float32."""
        rows = self._json("checkpoint_keys")
        return {name: self.entry(shape, source, *fixed) for name, shape, source, *fixed in rows if source != CONSTANT}

    @staticmethod
    def entry(shape: list[int], source: str, fixed: Any = None) -> Tensor:
        """Make the values of an entry of a file: of the name `source`, or the `fixed` ones."""
        if source == FIXED:
            return torch.tensor(fixed)
        return torch.from_numpy(np.asarray(weight(source, tuple(shape)), dtype=np.float32))

    def images(self) -> list[Tensor]:
        """Make the uint8 RGB images."""
        return [image(f"image{i}", *size) for i, size in enumerate(self.facts["image_sizes"])]

    @property
    def denoising_queries(self) -> int:
        """Positive denoising queries of all groups together, about; 0 if the public run had none."""
        return self.facts.get("dn_number", 0)

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Make the boxes and labels of every image."""
        counts, num_classes = self.facts["targets_per_image"], self.facts["num_classes"]
        return [targets(f"target{i}", count, num_classes) for i, count in enumerate(counts)]
