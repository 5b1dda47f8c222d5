"""Vision transformers with deformable attention (Xia et al., CVPR 2022)."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import LazyCall as L

from sparse_detr.backbones import DAT
from sparse_detr.backbones.dat import Convention, check_convention
from sparse_detr.recipes.backbones.spec import BackboneSpec, last_maps


class DATSize(NamedTuple):
    """The options of a published DAT; `drop_path_rate` is that of its training on ImageNet."""

    embed_dim: int
    blocks: tuple[str, ...]
    num_groups: tuple[int, ...]
    drop_path_rate: float


DAT_SIZES = {
    "tiny": DATSize(96, ("LS", "LS", "LDLDLD", "LD"), (1, 1, 3, 6), 0.2),
    "small": DATSize(96, ("LS", "LS", "LD" * 9, "LD"), (1, 1, 3, 6), 0.3),
    "base": DATSize(128, ("LS", "LS", "LD" * 9, "LD"), (1, 1, 4, 8), 0.5),
}


def dat(
    size: str = "tiny",
    *,
    image_size: int = 224,
    num_maps: int = 3,
    freeze_at: int = 0,
    drop_path_rate: float | None = None,
    convention: Convention = "2022",
) -> BackboneSpec:
    """Return a DAT of the CVPR 2022 paper with a norm for each map.

    Args:
        size: a name in `DAT_SIZES`.
        image_size: 224, for base also 384, size of the ImageNet images that the weights were trained on; windows are a
            32nd of it.
        num_maps: number of maps, the last of strides 4, 8, 16 and 32.
        freeze_at: which parts have no gradient: 0 none, 1 the patch embedding, 2 also the first stage.
        drop_path_rate: rate of the last block; None for that of the size.
        convention: how positions are counted, "2022" or "2023"; see `DeformedKeyAttention`. Weights of 2022 need
            "2022".

    Raises:
        ValueError: there are no weights of such a size or image size, or there is no such convention.
    """
    if size not in DAT_SIZES or image_size not in (224, 384) or (image_size == 384 and size != "base"):
        raise ValueError(
            f"no DAT {size!r} for images of {image_size}; sizes are {', '.join(DAT_SIZES)}, images 224, or 384 for base"
        )
    convention = check_convention(convention)
    embed_dim, blocks, num_groups, usual_rate = DAT_SIZES[size]
    channels = tuple(embed_dim * 2**i for i in range(4))
    maps = last_maps(("p0", "p1", "p2", "p3"), channels, (4, 8, 16, 32), num_maps)
    config = L(DAT)(
        embed_dim=embed_dim,
        blocks=list(blocks),
        num_heads=[width // 32 for width in channels],
        num_groups=list(num_groups),
        image_size=image_size,
        window_size=image_size // 32,
        convention=convention,
        drop_path_rate=usual_rate if drop_path_rate is None else drop_path_rate,
        out_indices=list(range(4 - num_maps, 4)),
        freeze_at=freeze_at,
    )
    resolution = "" if image_size == 224 else f"_{image_size}"
    return BackboneSpec(config, *maps, weights=f"dat_{size}{resolution}_imagenet.pth")
