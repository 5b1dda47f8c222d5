"""Models of transformers that have the op, with random weights: of the usual size, and tiny ones for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, dict[str, Tensor]]

TINY_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20]}
LAST_THREE = ["stage2", "stage3", "stage4"]
# The smallest numbers that all the models below accept.
TINY = {
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 10,
}


def build(name: str, *, height: int, width: int, tiny: bool = False) -> Built:
    """Return a model of `MODELS` in eval mode, and inputs for it: one random image (1, 3, height, width)."""
    torch.manual_seed(0)
    model = MODELS[name](tiny).eval()
    inputs = {"pixel_values": torch.rand(1, 3, height, width)}
    if name == "Grounding DINO":
        words = torch.tensor([[101, 5, 6, 1012, 7, 1012, 102]])  # its tokenizer's [CLS] two words . a word . [SEP]
        inputs.update(input_ids=words, attention_mask=torch.ones_like(words), token_type_ids=torch.zeros_like(words))
    return model, inputs


def _deformable_detr(tiny: bool) -> nn.Module:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    stages = {"embedding_size": 8, "layer_type": "basic", **TINY_STAGES} if tiny else {}
    backbone = ResNetConfig(out_features=LAST_THREE, **stages)
    config = DeformableDetrConfig(use_timm_backbone=False, backbone_config=backbone, **(TINY if tiny else {}))
    return DeformableDetrForObjectDetection(config)


def _rt_detr(tiny: bool) -> nn.Module:
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    return RTDetrForObjectDetection(RTDetrConfig(num_denoising=0, **(_tiny_rt_detr() if tiny else {})))


def _rt_detr_v2(tiny: bool) -> nn.Module:
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    return RTDetrV2ForObjectDetection(RTDetrV2Config(num_denoising=0, **(_tiny_rt_detr() if tiny else {})))


def _tiny_rt_detr() -> dict[str, Any]:
    from transformers import RTDetrResNetConfig

    backbone = RTDetrResNetConfig(out_features=LAST_THREE, embedding_size=8, layer_type="basic", **TINY_STAGES)
    return {"backbone_config": backbone, "encoder_in_channels": [12, 16, 20], **_TINY_HYBRID}


_TINY_HYBRID = {**TINY, "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32]}


def _d_fine(tiny: bool) -> nn.Module:
    """Return D-FINE with the points of its large models: three on the outer levels and six on the middle one."""
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

    small = {}
    if tiny:
        backbone = HGNetV2Config(
            out_features=LAST_THREE,
            embedding_size=8,
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 8, 12, 16],
            stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[8, 12, 16, 20],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            **TINY_STAGES,
        )
        small = {"backbone_config": backbone, "encoder_in_channels": [12, 16, 20], **_TINY_HYBRID}
    return DFineForObjectDetection(DFineConfig(num_denoising=0, decoder_n_points=[3, 6, 3], **small))


def _mask2former(tiny: bool) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    small = {}
    if tiny:
        sizes = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
        small = {"backbone_config": _tiny_swin(["stage1", *LAST_THREE]), **dict.fromkeys(sizes, 32)}
        small.update(encoder_layers=1, decoder_layers=3, num_attention_heads=4, num_queries=5)
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**small))


def _grounding_dino(tiny: bool) -> nn.Module:
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection

    small = {}
    if tiny:
        text = BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
        )
        small = {"text_config": text, "backbone_config": _tiny_swin(LAST_THREE), "max_text_len": 16, **TINY}
    return GroundingDinoForObjectDetection(GroundingDinoConfig(**small))


def _tiny_swin(stages: list[str]) -> Any:
    from transformers import SwinConfig

    return SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=stages)


MODELS: dict[str, Callable[[bool], nn.Module]] = {
    "Deformable DETR": _deformable_detr,
    "RT-DETR": _rt_detr,
    "RT-DETRv2": _rt_detr_v2,
    "D-FINE": _d_fine,
    "Mask2Former": _mask2former,
    "Grounding DINO": _grounding_dino,
}
"""A name -> a function that builds the model; its argument says whether a tiny one."""
