"""Small detectors for the tests of exported files: two levels and one layer of each kind are traced in seconds."""

import numpy as np
import torch
from detectron2.config import LazyCall, instantiate
from omegaconf import OmegaConf
from torch import nn

from sparse_detr.data.augmentation import test_augmentations as resize
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.export import Metadata
from sparse_detr.recipes import BackboneSpec
from tests.modeling.tiny import MODELS, SIZES, shake

IMAGE_SIZES = ((64, 96), (80, 72), (97, 64), (70, 125), (120, 66))  # of height and width


class StridedBackbone(nn.Module):
    """Maps whose cells read one pixel each, so that a padding changes no cell of the image; any size can be traced."""

    def __init__(self, *, num_maps):
        super().__init__()
        sizes = [(8, 16), (10, 32)][-num_maps:]
        self.levels = nn.ModuleDict({f"map{stride}": nn.Conv2d(3, channels, 1, stride) for channels, stride in sizes})

    def forward(self, x):
        return {name: level(x) for name, level in self.levels.items()}


def make_config(name, **options):
    """Return the config of a small model, whose preprocessing resizes to 64 pixels."""
    recipe, defaults = MODELS[name]
    backbone = BackboneSpec(LazyCall(StridedBackbone)(num_maps=2), ("map16", "map32"), (8, 10), (16, 32))
    sizes = {**SIZES, "encoder_layers": 1, "decoder_layers": 1, "num_levels": 2}
    if name == "imfa":  # its decoder has as many layers as the encoder, and samples between two
        sizes |= {"encoder_layers": 2}
        del sizes["num_levels"]
    mapper = LazyCall(DetrDatasetMapper)(is_train=False, augmentations=LazyCall(resize)(short_size=64, max_size=160))
    return OmegaConf.create(
        {
            "model": recipe(backbone=backbone, **{**sizes, **defaults, **options}),
            "dataloader": {"test": {"mapper": mapper}},
            "train": {"device": "cpu", "init_checkpoint": ""},
        },
        flags={"allow_objects": True},
    )


def build(name, **options):
    """Build a small detector in float32 with random weights."""
    torch.manual_seed(0)
    model = instantiate(make_config(name, **options).model)
    shake(model)
    return model.eval()


def metadata(**facts):
    """Return the record of a small model."""
    known = {"config": "tiny.py", "package_version": "0", "class_names": list("abcde"), "num_classes": 5}
    return Metadata(**{**known, "channel_order": "RGB", "short_size": 64, "max_size": 160, **facts})


def make_inputs(sizes=IMAGE_SIZES, *, seed=0):
    """Return images of the given sizes as a model takes them."""
    generator = np.random.default_rng(seed)
    pixels = [generator.integers(0, 256, (3, *size), dtype=np.uint8) for size in sizes]
    return [{"image": torch.from_numpy(x), "height": x.shape[1], "width": x.shape[2]} for x in pixels]
