"""DAT as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import StochasticDepth

from sparse_detr.backbones.dat.deformed_keys import ChannelNorm, Convention, DeformedKeyAttention, check_convention
from sparse_detr.backbones.dat.windows import WindowAttention
from sparse_detr.backbones.swin import to_whole
from sparse_detr.structures import map_size

STRIDES = (4, 8, 16, 32)


class DAT(Backbone):
    """DAT of the CVPR 2022 paper, with a layer norm for every map that is returned.

    Parameters have the names of the public files. Images of any size are padded with zeros to whole cells of stride 32,
    as the public detection code pads them; maps are cut to the cells that the images reach. No layer knows what is
    padding: as in the public code, attention sees it. An export holds for one height and width, and any batch.

    Args:
        embed_dim: channels of the first stage; each further stage doubles them.
        blocks: for each of four stages, the kinds of its blocks: L windows, S shifted windows, D deformable attention.
        num_heads: of each stage.
        num_groups: groups of heads in the D blocks of each stage; any number where a stage has none.
        image_size: of pretraining: the tables of the D blocks have the sizes of its maps.
        window_size: cells of a window's side.
        kernel_sizes: of each stage, for the offsets of D blocks.
        range_factor: bound of the offsets, see `DeformedKeyAttention`.
        convention: how D blocks count positions; weights of 2022 need "2022".
        drop_path_rate: probability that the branches of the last block are dropped; it rises from 0 at the first one.
        out_indices: stages, counted from 0, whose maps `p0` to `p3` are returned.
        freeze_at: which parts have no gradient: 0 none, 1 the patch embedding, 2 also the first stage, and so on.

    Raises:
        ValueError: a list has not one value a stage, or there is no such kind of block or convention.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        blocks: Sequence[str] = ("LS", "LS", "LDLDLD", "LD"),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        num_groups: Sequence[int] = (1, 1, 3, 6),
        image_size: int = 224,
        window_size: int = 7,
        kernel_sizes: Sequence[int] = (9, 7, 5, 3),
        range_factor: float = 2.0,
        convention: Convention = "2022",
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (1, 2, 3),
        freeze_at: int = 0,
    ):
        super().__init__()
        convention = check_convention(convention)
        for name, values in {"blocks": blocks, "num_heads": num_heads, "num_groups": num_groups}.items():
            if len(values) != len(STRIDES):
                raise ValueError(f"{name} must have {len(STRIDES)} values, one a stage, got {values!r}")
        if unknown := sorted(set("".join(blocks)) - set("LSD")):
            raise ValueError(f"blocks must be L, S or D, got {', '.join(unknown)} (those of DAT++ are not here)")
        self.channels = tuple(embed_dim * 2**i for i in range(len(STRIDES)))
        self.patch_proj = _Downsampling(nn.Conv2d(3, embed_dim, 4, 4), ChannelNorm(embed_dim))
        depth = sum(map(len, blocks))
        rates = iter(drop_path_rate * j / max(1, depth - 1) for j in range(depth))
        self.stages = nn.ModuleList()
        for i, kinds in enumerate(blocks):
            options = {"channels": self.channels[i], "num_heads": num_heads[i]}
            deformable = {
                **options,
                "num_groups": num_groups[i],
                "map_size": (image_size // STRIDES[i],) * 2,
                "kernel_size": kernel_sizes[i],
                "range_factor": range_factor,
                "convention": convention,
            }
            attns = [
                DeformedKeyAttention(**deformable)
                if kind == "D"
                else WindowAttention(
                    **options, window_size=window_size, shift=(window_size + 1) // 2 if kind == "S" else 0
                )
                for kind in kinds
            ]
            self.stages.append(_Stage(self.channels[i], attns, [next(rates) for _ in kinds]))
        self.down_projs = nn.ModuleList(
            _Downsampling(nn.Conv2d(width, 2 * width, 2, 2, bias=False), ChannelNorm(2 * width))
            for width in self.channels[:-1]
        )
        self.norms = nn.ModuleDict({str(i): ChannelNorm(self.channels[i]) for i in out_indices})
        frozen = [self.patch_proj, *self.stages[: max(0, freeze_at - 1)], *self.down_projs[: max(0, freeze_at - 1)]]
        for module in frozen if freeze_at else []:
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps by name of images (B, 3, H, W)."""
        height, width = map_size(x)
        x = self.patch_proj(pad(x, (0, to_whole(width, STRIDES[-1]), 0, to_whole(height, STRIDES[-1]))))
        maps = {}
        for i, (stage, stride) in enumerate(zip(self.stages, STRIDES, strict=True)):
            x = stage(x if i == 0 else self.down_projs[i - 1](x))
            if str(i) in self.norms:
                rows, columns = -(-height // stride), -(-width // stride)
                maps[f"p{i}"] = self.norms[str(i)](x)[:, :, :rows, :columns]
        return maps

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=self.channels[int(i)], stride=STRIDES[int(i)]) for i in self.norms}


class _Downsampling(nn.Sequential):
    """A convolution whose stride is its kernel, and a norm."""


class _Stage(nn.Module):
    """Blocks: attention, then an MLP, each behind a norm and beside a shortcut; names are those of the public files."""

    def __init__(self, channels: int, attns: Sequence[nn.Module], drop_path_rates: Sequence[float]):
        super().__init__()
        self.attns = nn.ModuleList(attns)
        self.mlps = nn.ModuleList(_MLP(channels) for _ in attns)
        self.layer_norms = nn.ModuleList(ChannelNorm(channels) for _ in range(2 * len(attns)))
        self.drop_paths = nn.ModuleList(StochasticDepth(rate, "row") for rate in drop_path_rates)

    def forward(self, x: Tensor) -> Tensor:
        for j, (attention, mlp, drop_path) in enumerate(zip(self.attns, self.mlps, self.drop_paths, strict=True)):
            x = x + drop_path(attention(self.layer_norms[2 * j](x)))
            x = x + drop_path(mlp(self.layer_norms[2 * j + 1](x)))
        return x


class _MLP(nn.Module):
    """Two linear layers over channels, which quadruple in between."""

    def __init__(self, channels: int):
        super().__init__()
        self.chunk = nn.ModuleDict(
            {"linear1": nn.Linear(channels, 4 * channels), "linear2": nn.Linear(4 * channels, channels)}
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.chunk["linear1"](x.permute(0, 2, 3, 1)))
        return self.chunk["linear2"](hidden).permute(0, 3, 1, 2)
