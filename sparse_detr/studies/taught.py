"""A detector whose tokens a trained teacher chooses (Sparse DETR, appendix A.9)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.modeling.detector import GeneralizedDETR
from sparse_detr.modeling.heads import Proposals
from sparse_detr.modeling.selection import TokenScores
from sparse_detr.structures import ImageSizes, Tokens


@dataclass(frozen=True, eq=False)
class TaughtTokens(Tokens):
    """Tokens with the attention that a teacher's decoder pays to them.

    Args:
        attention_map: (B, N), not negative.
    """

    attention_map: Tensor | None = None


class TeacherScorer(nn.Module):
    """The teacher's attention map as the score of the tokens; nothing is learned."""

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens."""
        assert isinstance(tokens, TaughtTokens)
        assert tokens.attention_map is not None
        return TokenScores(tokens.attention_map)


class TaughtDETR(GeneralizedDETR):
    """A `GeneralizedDETR` with a frozen teacher, which sees the same augmented images; inference needs it too.

    The weights of the teacher are in the state dict, so a checkpoint is complete. It stays in eval mode.

    Args:
        teacher: a trained dense detector with the same levels.
        parts: see `GeneralizedDETR`.
    """

    def __init__(self, *, teacher: nn.Module, **parts: Any):
        super().__init__(**parts)
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TaughtDETR:
        """Set the mode of everything but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def tokenize(self, images: Tensor, sizes: ImageSizes) -> Tokens:
        """Turn images into tokens that know the teacher's attention; see `DetectionTransformer`."""
        tokens = super().tokenize(images, sizes)
        values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
        return TaughtTokens(**values, attention_map=self.teacher_map(images, sizes, tokens))

    @torch.no_grad()
    def teacher_map(self, images: Tensor, sizes: ImageSizes, tokens: Tokens) -> Tensor:
        """Return (B, N), the attention that the teacher's decoder pays to the tokens.

        Raises:
            ValueError: the teacher has other levels.
        """
        teacher: Any = self.teacher
        own = teacher.tokenize(images, sizes)
        if own.pyramid.spatial_shapes != tokens.pyramid.spatial_shapes:
            raise ValueError(
                f"the teacher has levels {own.pyramid.spatial_shapes}, the student {tokens.pyramid.spatial_shapes}; "
                "train both from one config"
            )
        encoded = teacher.encode(own)
        queries = teacher.query(encoded)
        decoded = teacher.decode(queries, encoded, need_samples=True)
        return teacher.attention_map(decoded.samples, own.pyramid, queries.valid)


def frozen_teacher(*, model: nn.Module, weights: str) -> nn.Module:
    """Return a detector with trained weights; without them if the file is gone, as a checkpoint holds them too.

    Args:
        model: the dense detector.
        weights: checkpoint of its training.
    """
    if os.path.isfile(weights):
        state: Mapping[str, Any] = torch.load(weights, map_location="cpu", weights_only=False)
        model.load_state_dict(state.get("model", state))
    return model
