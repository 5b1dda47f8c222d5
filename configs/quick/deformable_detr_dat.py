"""A small Deformable DETR with a narrow DAT for the sample data; nothing is pretrained.

`scripts/draw_two_attentions.py` draws where the two deformable attentions of this model look.
"""

from detectron2.config import LazyCall as L

from sparse_detr.backbones import DAT
from sparse_detr.recipes import BackboneSpec, deformable_detr

from .trees import SIZES, training

network = L(DAT)(
    embed_dim=32,
    blocks=["L", "LS", "LDLD", "LD"],
    num_heads=[1, 2, 4, 8],
    num_groups=[1, 1, 2, 4],
    image_size=384,
    kernel_sizes=[9, 7, 5, 3],
)
backbone = BackboneSpec(network, ("p1", "p2", "p3"), (64, 128, 256), (8, 16, 32))
model = deformable_detr(backbone=backbone, num_classes=1, dropout=0.0, box_refinement=True, **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
optimizer.lr, optimizer.params.backbone_multiplier, train.init_checkpoint = 5e-4, 1.0, ""
