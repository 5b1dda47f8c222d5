"""DAT, a vision transformer with deformable attention.

Xia et al., *Vision Transformer with Deformable Attention*, CVPR 2022. `docs/two_deformable_attentions.md` compares its
attention with that of Deformable DETR. DAT++ (2023) is not here: its nets have further kinds of blocks.
"""

from sparse_detr.backbones.dat.deformed_keys import Convention, DeformedKeyAttention, KeyPoints, check_convention
from sparse_detr.backbones.dat.transformer import DAT
from sparse_detr.backbones.dat.windows import WindowAttention

__all__ = ["DAT", "Convention", "DeformedKeyAttention", "KeyPoints", "WindowAttention", "check_convention"]
