"""Lite DETR (Li et al., CVPR 2023)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L

from sparse_detr.layers import KeyAwareDeformableAttention
from sparse_detr.modeling.encoder import DeformableEncoder, LevelFeedForwardLayer, level_layers
from sparse_detr.modeling.selection import KeepAllTokens, LevelSelector
from sparse_detr.recipes.deformable_detr import deformable_detr
from sparse_detr.recipes.dino import dino
from sparse_detr.recipes.shared import Behavior, check_choice, split_options

KeyAware = Literal["off", "encoder", "everywhere"]


def lite_dino(*, key_aware: KeyAware = "everywhere", **options: Any) -> Any:
    """Return the LazyCall of DINO with the encoder of Lite DETR; options are those of `lite` and of `dino`."""
    own, base = split_options(options, lite)
    return lite(dino(**base), key_aware=key_aware, **own)


def lite_deformable_detr(
    *, two_stage: str = "memory", box_refinement: bool = True, key_aware: KeyAware = "encoder", **options: Any
) -> Any:
    """Return the LazyCall of Deformable DETR, by default `deformable_detr_topk`, with the encoder of Lite DETR.

    Options are those of `lite` and of `deformable_detr`.
    """
    own, base = split_options(options, lite)
    model = deformable_detr(two_stage=two_stage, box_refinement=box_refinement, **base)
    return lite(model, key_aware=key_aware, **own)


def lite(
    model: Any,
    *,
    high_levels: int = 3,
    blocks: int = 3,
    key_aware: KeyAware = "encoder",
    narrow_ffn: bool = True,
    behavior: Behavior = "exact",
) -> Any:
    """Give a dense model the encoder of Lite DETR, whose layers mostly refine the tokens of coarse levels.

    Args:
        model: LazyCall of a detector with a dense deformable encoder; it is changed in place and returned.
        high_levels: number of coarse levels, which every encoder layer refines; H of "HhLl" in the paper.
        blocks: number of blocks of encoder layers, of which only the last layer refines all tokens; B of "(A+1)xB".
        key_aware: where deformable attention weighs samples by products with the query: `encoder`, as in the paper;
            `everywhere`, in the decoder too, as in the public code; `off`, nowhere.
        narrow_ffn: tokens of fine levels have their own feed-forward network, of `embed_dim` channels.
        behavior: `exact`, or `released` for models with the weights of the public implementation.

    Raises:
        ValueError: the encoder is not deformable or not dense.
    """
    check_choice("key_aware", key_aware, get_args(KeyAware))
    check_choice("behavior", behavior, get_args(Behavior))
    if model.encoder._target_ is not DeformableEncoder or model.selector._target_ is not KeepAllTokens:
        raise ValueError("Lite DETR needs a dense deformable encoder; use dino or deformable_detr as the base")
    layers, outside = model.encoder.layers, "zero" if behavior == "released" else "excluded"
    if key_aware != "off":
        _make_key_aware(layers.module.self_attn, outside)
    if key_aware == "everywhere":
        _make_key_aware(model.decoder.layers.module.cross_attn, outside)
    model.selector = L(LevelSelector)(
        num_levels="${..tokenizer.num_levels}",
        num_layers="${..encoder.layers.count}",
        high_levels=high_levels,
        blocks=blocks,
    )
    if narrow_ffn:
        full = L(LevelFeedForwardLayer)(
            fine_ffn={**layers.module.ffn, "feedforward_dim": layers.module.embed_dim},
            high_levels="${....selector.high_levels}",
            **{name: value for name, value in layers.module.items() if name != "_target_"},
        )
        model.encoder.layers = L(level_layers)(
            module=layers.module, full=full, count=layers.count, blocks="${...selector.blocks}"
        )
    return model


def _make_key_aware(attention: Any, outside: str) -> None:
    attention._target_, attention.outside = KeyAwareDeformableAttention, outside
