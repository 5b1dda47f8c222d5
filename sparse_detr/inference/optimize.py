"""A model in inference form: the same detections in less time."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import nn

from sparse_detr.inference import attention, decoder, encoder, linear, onednn, queries, tokenizer
from sparse_detr.inference.conversion import Conversion, InferenceForm, copied
from sparse_detr.inference.convolution import InferenceBackbone, InferenceConv
from sparse_detr.layers import MLP, CrossAttention, FeedForward, MultiScaleDeformableAttention, SelfAttention
from sparse_detr.modeling.decoder import Decoder
from sparse_detr.modeling.encoder import DeformableEncoder, DeformableEncoderLayer
from sparse_detr.modeling.encoder.dual_attention import DualAttentionLayer, ObjectAttention
from sparse_detr.modeling.encoder.levels import LevelFeedForwardLayer
from sparse_detr.modeling.heads import PredictionHead, ProposalProjection
from sparse_detr.modeling.queries import TopKQueries
from sparse_detr.modeling.selection import ObjectnessScorer, ScoringNetwork, TopDownScorer
from sparse_detr.modeling.tokenizers.multi_scale import LevelProjection, MultiScaleTokenizer
from sparse_detr.modeling.training.auxiliary_proposals import NoAuxiliaryProposals
from sparse_detr.modeling.transformer import DetectionTransformer

Model = TypeVar("Model", bound=DetectionTransformer)

FORMS: dict[type, type[InferenceForm]] = {
    nn.Linear: linear.PackedLinear,
    nn.Conv2d: InferenceConv,
    MLP: linear.InferenceMLP,
    FeedForward: linear.InferenceFeedForward,
    MultiScaleDeformableAttention: attention.InferenceDeformableAttention,
    SelfAttention: attention.InferenceSelfAttention,
    CrossAttention: attention.InferenceCrossAttention,
    ObjectAttention: attention.InferenceObjectAttention,
    LevelProjection: tokenizer.InferenceLevelProjection,
    MultiScaleTokenizer: tokenizer.InferenceTokenizer,
    ProposalProjection: queries.InferenceProjection,
    ScoringNetwork: queries.InferenceScoringNetwork,
    TopDownScorer: queries.InferenceTopDownScorer,
    ObjectnessScorer: queries.InferenceObjectnessScorer,
    TopKQueries: queries.InferenceTopKQueries,
    DeformableEncoderLayer: encoder.InferenceEncoderLayer,
    DualAttentionLayer: encoder.InferenceDualAttentionLayer,
    LevelFeedForwardLayer: encoder.InferenceLevelFeedForwardLayer,
    DeformableEncoder: encoder.InferenceEncoder,
    Decoder: decoder.InferenceDecoder,
}
"""Class of a part -> class of its inference form. `sparse_detr.inference.backbones` has those of backbones."""

PRECISE = (PredictionHead, MLP)
"""Parts that rank tokens or place boxes: their weights keep their dtype in every form."""


class NoTraining(InferenceForm):
    """The place of parts that only training reads; to read them is an error."""

    @property
    def needs_attention_map(self) -> bool:
        """Raise `RuntimeError`."""
        raise RuntimeError("an optimised model has no losses; call `losses` of the model that it was made from")

    def forward(self, *args: Any, **options: Any) -> None:
        """Raise `RuntimeError`."""
        raise RuntimeError("an optimised model has no losses; call the model that it was made from")


def optimize(model: Model, *, dtype: torch.dtype | None = None, int8: bool = False) -> Model:
    """Return a model in inference form, with the same calls and the same detections up to rounding.

    The given model is not changed. Weights that the form does not change are the same memory, so make the form when the
    weights are final. What only training needs is left out.

    Args:
        model: a `GeneralizedDETR` or `DetectionTransformer` in eval mode.
        dtype: of the backbone, large linear layers and values: `torch.bfloat16`, or `torch.float16` on a GPU; scores,
            boxes, locations, softmax, norms and residuals keep the weights' dtype. None keeps it everywhere.
        int8: on a CPU, int8 weights of feed-forward networks, values and the output of deformable attention.

    Raises:
        ValueError: the model is in training mode, or cannot have that dtype on its device.
    """
    _check(model, dtype, int8)
    dtype = None if dtype == torch.float32 else dtype
    forms = {**FORMS, **_backbone_forms()}
    convert = Conversion(forms=forms, precise=PRECISE, dtype=dtype, int8=int8, cast=False, done={})
    unused: dict[str, nn.Module] = {"encoder_heads": nn.ModuleList()}
    if hasattr(model, "criterion"):  # a GeneralizedDETR
        unused |= {"auxiliary_proposals": NoAuxiliaryProposals(), "criterion": NoTraining()}
        unused["supervision"] = NoTraining()
    unused = {name: part.train(False) for name, part in unused.items()}
    return copied(
        model,
        type(model),
        convert,
        backbone=InferenceBackbone(convert.casting()(model.backbone), dtype=dtype),
        queries=convert.keeping_dtype()(model.queries),
        **unused,
    )


def _backbone_forms() -> dict[type, type[InferenceForm]]:
    """Return the forms of backbones that need Detectron2; none without it."""
    if find_spec("detectron2") is None:
        return {}
    from sparse_detr.inference import backbones

    return backbones.FORMS


def _check(model: Any, dtype: torch.dtype | None, int8: bool) -> None:
    if not isinstance(model, DetectionTransformer):
        raise ValueError(f"a {type(model).__name__} has no inference form; give a GeneralizedDETR or its transformer")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    weight = next(model.decoder.parameters())
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype}; give torch.float32, torch.bfloat16 or torch.float16")
    if dtype is not None and weight.dtype != torch.float32:
        raise ValueError(f"the weights are {weight.dtype}; leave dtype out, or call model.float() first")
    if weight.device.type != "cpu":
        if int8:
            raise ValueError(f"int8 weights are for the CPU, and the model is on {weight.device}; leave int8 out")
        return
    if dtype == torch.float16:
        raise ValueError("float16 is slow on a CPU; give torch.bfloat16, or move the model to a GPU first")
    if dtype == torch.bfloat16 and not onednn.has_fast_bfloat16():
        warnings.warn("this CPU has no instructions for bfloat16, which makes it slower than float32", stacklevel=3)
