"""Swin transformers (Liu et al., ICCV 2021)."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import LazyCall as L

from sparse_detr.backbones import SwinTransformer
from sparse_detr.recipes.backbones.spec import BackboneSpec, last_maps


class SwinSize(NamedTuple):
    """The options of a published Swin transformer; `drop_path_rate` is that of DINO's detectors."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    drop_path_rate: float
    pretraining: str


SWIN_SIZES = {
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.1, "imagenet"),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.2, "imagenet"),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.2, "imagenet22k"),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.2, "imagenet22k"),
}
SWIN_PRETRAININGS = ("imagenet", "imagenet22k", "imagenet22kto1k")


def swin(
    size: str = "tiny",
    *,
    image_size: int = 224,
    num_maps: int = 3,
    freeze_at: int = 0,
    drop_path_rate: float | None = None,
    pretraining: str | None = None,
) -> BackboneSpec:
    """Return a Swin transformer with a norm for each map.

    Args:
        size: a name in `SWIN_SIZES`.
        image_size: 224 or 384, size of the ImageNet images that the weights were trained on; windows are a 32nd of it.
        num_maps: number of maps, the last of strides 4, 8, 16 and 32.
        freeze_at: which parts have no gradient: 0 none, 1 the patch embedding, 2 also the first stage.
        drop_path_rate: rate of the last block; None for that of the size.
        pretraining: a name in `SWIN_PRETRAININGS`, the classes that the weights were trained on: 1,000; 22,000; or
            22,000, then 1,000. None means "imagenet" for tiny and small, "imagenet22k" for base and large.

    Raises:
        ValueError: there are no weights of such a size, image size or pretraining.
    """
    if size not in SWIN_SIZES or image_size not in (224, 384):
        raise ValueError(
            f"no Swin {size!r} for images of {image_size}; sizes are {', '.join(SWIN_SIZES)}, images 224 or 384"
        )
    embed_dim, depths, num_heads, usual_rate, usual_pretraining = SWIN_SIZES[size]
    pretraining = usual_pretraining if pretraining is None else pretraining
    if pretraining not in SWIN_PRETRAININGS:
        raise ValueError(f"no Swin with pretraining {pretraining!r}; choose one of {', '.join(SWIN_PRETRAININGS)}")
    channels = tuple(embed_dim * 2**i for i in range(4))
    maps = last_maps(("p0", "p1", "p2", "p3"), channels, (4, 8, 16, 32), num_maps)
    config = L(SwinTransformer)(
        pretrain_img_size=image_size,
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=list(num_heads),
        window_size=image_size // 32,
        drop_path_rate=usual_rate if drop_path_rate is None else drop_path_rate,
        out_indices=list(range(4 - num_maps, 4)),
        frozen_stages=freeze_at or -1,  # in Detectron2, 0 freezes the patch embedding, as 1 does
    )
    resolution = "" if image_size == 224 else f"_{image_size}"
    return BackboneSpec(config, *maps, weights=f"swin_{size}{resolution}_{pretraining}.pth")


def swin_tiny(*, freeze_at: int = 2) -> BackboneSpec:
    """Return Swin-T as in Sparse DETR, with frozen patch embedding and first stage."""
    return swin("tiny", freeze_at=freeze_at, drop_path_rate=0.2)
