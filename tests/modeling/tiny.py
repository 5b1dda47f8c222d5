"""Detectors small enough to run in milliseconds, and pictures for them."""

import torch
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone as D2Backbone
from detectron2.structures import Boxes, Instances
from torch import nn

from sparse_detr.recipes import (
    BackboneSpec,
    anchor_detr,
    conditional_detr,
    dab_deformable_detr,
    dab_detr,
    deformable_detr,
    deformable_detr_topk,
    detr,
    dino,
    efficient_detr,
    focus_deformable_detr,
    focus_detr,
    imfa_dab_detr,
    lite_deformable_detr,
    lite_dino,
    pnp_detr,
    sparse_dab_deformable_detr,
    sparse_detr,
    sparse_dino,
)
from sparse_detr.structures import Pyramid, Tokens

CPU = torch.device("cpu")
NUM_CLASSES = 5
SIZES = {
    "num_classes": NUM_CLASSES,
    "embed_dim": 64,  # two channels in a group of the normalisation, so that a map of one cell has a variance
    "num_heads": 4,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "feedforward_dim": 48,
    "dropout": 0.0,
    "num_points": 2,
    "num_queries": 12,
}
CHANNELS = (6, 8, 10)
STRIDES = (8, 16, 32)


def on_one_map(recipe):
    """Return a recipe with full attention that reads the coarsest map of the stub and drops options of deformable."""

    def single_scale(*, backbone, num_points, num_levels=1, **options):
        if len(backbone.in_features) > 1:
            backbone.config.num_maps = 1
        coarse = BackboneSpec(backbone.config, *(facts[-1:] for facts in backbone[1:4]))
        return recipe(backbone=coarse, **options)

    return single_scale


def tiny_imfa(*, encoder_layers, decoder_layers, **options):
    """Return the LazyCall of IMFA, with as many layers of both kinds as there are encoder layers."""
    return imfa_dab_detr(decoder_layers=encoder_layers, **options)


# A model of every kind that the recipes make.
MODELS = {
    "one_stage": (deformable_detr, {}),
    "refined": (deformable_detr, {"box_refinement": True}),
    "two_stage": (deformable_detr, {"box_refinement": True, "two_stage": "projected"}),
    "topk": (deformable_detr_topk, {}),
    "sparse": (sparse_detr, {"keep_ratio": 0.3}),
    "sparse_without_auxiliary_loss": (sparse_detr, {"keep_ratio": 0.3, "encoder_auxiliary_loss": False}),
    "objectness": (sparse_detr, {"keep_ratio": 0.3, "scorer": "objectness"}),
    "random": (sparse_detr, {"keep_ratio": 0.3, "scorer": "random"}),
    "efficient": (efficient_detr, {"first_num_queries": 30, "falling_steps": 100}),
    "dino": (dino, {}),
    "sparse_dino": (sparse_dino, {"keep_ratio": 0.3, "shared_heads": True}),
    "focus": (focus_detr, {"num_objects": 9}),
    "focus_two_stage": (focus_deformable_detr, {"num_objects": 9}),
    "detr": (on_one_map(detr), {}),
    "conditional": (on_one_map(conditional_detr), {}),
    "dab": (on_one_map(dab_detr), {}),
    "imfa": (tiny_imfa, {"num_detections": 12}),
    "anchor": (on_one_map(anchor_detr), {"num_patterns": 1}),
    "pnp": (on_one_map(pnp_detr), {"keep_ratio": 0.3, "training_keep_ratios": (0.3, 0.3), "num_pooled": 4}),
    "dab_deformable": (dab_deformable_detr, {}),
    "sparse_dab_deformable": (sparse_dab_deformable_detr, {"keep_ratio": 0.3}),
    "lite": (lite_deformable_detr, {"high_levels": 1, "blocks": 1, "encoder_auxiliary_loss": True}),
    "lite_dino": (lite_dino, {"high_levels": 1, "blocks": 1}),
    "focus_one_stage": (focus_deformable_detr, {"num_objects": 9, "two_stage": "off", "box_refinement": False}),
}


class PatchBackbone(D2Backbone):
    """One strided convolution a level; no cell reads pixels of a neighbour, so no padding leaks in.

    With `image_sizes`, the (h, w) of every image, padded cells hold large noise. The maps are the `num_maps`
    coarsest.
    """

    def __init__(self, *, num_maps=3):
        super().__init__()
        self.channels, self.strides = CHANNELS[-num_maps:], STRIDES[-num_maps:]
        pairs = zip(self.channels, self.strides, strict=True)
        self.levels = nn.ModuleList(nn.Conv2d(3, channels, stride, stride) for channels, stride in pairs)
        self.image_sizes = None

    def forward(self, x):
        maps = {}
        for level, stride in zip(self.levels, self.strides, strict=True):
            filled = nn.functional.pad(x, (0, -x.shape[-1] % stride, 0, -x.shape[-2] % stride))
            maps[f"map{stride}"] = self._with_noise(level(filled), stride)
        return maps

    def _with_noise(self, x, stride):
        for image, (height, width) in enumerate(self.image_sizes or ()):
            noise = 100 * torch.randn_like(x[image])
            rows, columns = -(-height // stride), -(-width // stride)
            noise[:, :rows, :columns] = x[image, :, :rows, :columns]
            x = torch.cat([x[:image], noise[None], x[image + 1 :]])
        return x

    def output_shape(self):
        pairs = zip(self.channels, self.strides, strict=True)
        return {f"map{stride}": ShapeSpec(channels=channels, stride=stride) for channels, stride in pairs}


def patch_backbone():
    return BackboneSpec(LazyCall(PatchBackbone)(), tuple(f"map{stride}" for stride in STRIDES), CHANNELS, STRIDES)


def build(name, *, seed=0, dtype=torch.float64, **options):
    """Build one of MODELS with random weights everywhere, so that zero initialisation hides no error."""
    recipe, defaults = MODELS[name]
    torch.manual_seed(seed)
    model = instantiate(recipe(**{"backbone": patch_backbone(), **SIZES, **defaults, **options})).to(dtype)
    shake(model)
    return model


def shake(model, scale=0.1):
    """Add noise to every parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def picture(height, width, boxes=((0.1, 0.2, 0.5, 0.7), (0.4, 0.3, 0.9, 0.8)), *, seed=0):
    """Make an input dict: noise, with true boxes (xyxy in [0, 1]) of classes 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed + 1000 * height + width)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).view(-1, 4) * torch.tensor([width, height, width, height]))
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def make_pyramid(shapes, *valid_shapes):
    """Make a pyramid; without valid shapes it is of one image without padding."""
    return Pyramid.of(shapes, valid_shapes or (shapes,), device=CPU)


def make_tokens(pyramid, embed_dim=32, *, seed=0, dtype=torch.float64):
    """Make random tokens of a pyramid."""
    generator = torch.Generator().manual_seed(seed)
    size = (pyramid.batch_size, pyramid.num_tokens, embed_dim)
    content, position = torch.randn(2, *size, generator=generator, dtype=dtype)
    return Tokens(content=content, position=position, pyramid=pyramid)
