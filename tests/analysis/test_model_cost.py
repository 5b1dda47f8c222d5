"""Parameters and FLOPs are those of the public implementations; FLOPs are counted by Detectron2's tool."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

from sparse_detr.recipes import (
    anchor_detr,
    conditional_detr,
    dab_deformable_detr,
    dab_detr,
    deformable_detr,
    deformable_detr_topk,
    detr,
    dino,
    efficient_detr,
    focus_detr,
    imfa_dab_detr,
    lite_dino,
    mobilenet_v2,
    pnp_detr,
    resnet,
    sparse_detr,
    swin_tiny,
)
from sparse_detr.structures import Pyramid, Tokens
from tests.meta import meta_device

# Measured on the public code, whose heads have 91 classes, with an image of this size.
CLASSES, HEIGHT, WIDTH = 91, 850, 1040

PARAMETERS = {
    "one-stage": (lambda: deformable_detr(num_classes=CLASSES), 39_847_265),
    "refinement": (lambda: deformable_detr(num_classes=CLASSES, box_refinement=True), 40_627_260),
    "two-stage": (
        lambda: deformable_detr(num_classes=CLASSES, box_refinement=True, two_stage="projected"),
        40_959_129,
    ),
    "topk": (lambda: deformable_detr_topk(num_classes=CLASSES), 40_827_289),
    "sparse": (lambda: sparse_detr(num_classes=CLASSES), 41_714_805),
    "sparse-swin": (lambda: sparse_detr(num_classes=CLASSES, backbone=swin_tiny()), 42_176_153),
    "pnp": (lambda: pnp_detr(num_classes=CLASSES, num_queries=80), 41_436_799),
    "single-scale": (
        lambda: deformable_detr(num_classes=CLASSES, backbone=resnet(50, num_maps=1), num_levels=1),
        33_844_193,
    ),
}

# Of the public Lite DINO without its frozen parameters, the row of label_enc that nothing reads, and the query
# projections that plain attention does not use.
FROZEN, UNUSED_ROW, UNUSED_QUERIES = 222_400, 256, 789_504
PARAMETERS |= {
    f"lite-{name}": (
        partial(lite_dino, num_classes=CLASSES, shared_heads=True, **options),
        published - FROZEN - UNUSED_ROW - (UNUSED_QUERIES if "key_aware" in options else 0),
    )
    for name, published, options in (
        ("H3L1-(2+1)x3", 47_684_222, {}),
        ("H2L2-(2+1)x3", 47_684_222, {"high_levels": 2}),
        ("H3L1-(6+1)x1", 47_420_030, {"blocks": 1}),
        ("wide", 47_287_934, {"narrow_ffn": False}),
        ("plain", 48_078_974, {"key_aware": "off"}),
    )
}

# All parameters, in millions, counted on the public code: 91 classes in that of the authors, 80 in that of detrex.
MILLIONS = {
    "dino-official": (lambda: dino(num_classes=91, shared_heads=True), 46.89),
    "dino-detrex": (dino, 47.65),
    "focus-detrex": (focus_detr, 49.34),
    "anchor-official": (lambda: anchor_detr(num_classes=91), 37.04),
    "anchor-detrex": (anchor_detr, 37.04),
    "pnp-official": (lambda: pnp_detr(num_classes=91), 41.66),
    "pnp-detrex": (pnp_detr, 41.66),
    "dab-official": (lambda: dab_detr(num_classes=91), 43.67),
    "dab-detrex": (dab_detr, 43.67),
    "dab-deformable-official": (lambda: dab_deformable_detr(num_classes=91), 47.41),
    "dab-deformable-detrex": (dab_deformable_detr, 47.39),
    "dab-deformable-two-stage-detrex": (lambda: dab_deformable_detr(two_stage=True), 47.53),
}
# The same, to the last one.
ALL_PARAMETERS = {"imfa-dab": (lambda: imfa_dab_detr(num_classes=91, num_queries=50), 53_420_709)}

GIGAFLOPS = [
    pytest.param(lambda: deformable_detr_topk(num_classes=CLASSES), 177.33, id="topk"),
    pytest.param(lambda: sparse_detr(num_classes=CLASSES, keep_ratio=0.1), 109.75, id="sparse-10%"),
    pytest.param(
        lambda: sparse_detr(num_classes=CLASSES, keep_ratio=0.1, backbone=swin_tiny()), 117.21, id="sparse-swin-10%"
    ),
    pytest.param(lambda: imfa_dab_detr(num_classes=CLASSES), 108, id="imfa-dab", marks=pytest.mark.slow),  # published
    pytest.param(lambda: deformable_detr(num_classes=CLASSES), 172.93, id="one-stage", marks=pytest.mark.slow),
    pytest.param(
        lambda: deformable_detr(num_classes=CLASSES, backbone=swin_tiny()),
        180.40,
        id="one-stage-swin",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: sparse_detr(num_classes=CLASSES, keep_ratio=0.2), 117.62, id="sparse-20%", marks=pytest.mark.slow
    ),
    pytest.param(
        lambda: sparse_detr(num_classes=CLASSES, keep_ratio=0.3), 125.49, id="sparse-30%", marks=pytest.mark.slow
    ),
    pytest.param(
        lambda: sparse_detr(num_classes=CLASSES, keep_ratio=0.5), 141.23, id="sparse-50%", marks=pytest.mark.slow
    ),
]


# Published: means over the first 100 images of COCO val2017, which are of about this size.
PUBLISHED_GIGAFLOPS = {
    "detr": (lambda: detr(num_classes=CLASSES), 86),
    "detr-dc5": (lambda: detr(num_classes=CLASSES, backbone=resnet(50, num_maps=1, dilation=True)), 187),
    "detr-r101": (lambda: detr(num_classes=CLASSES, backbone=resnet(101, num_maps=1)), 152),
    "detr-r101-dc5": (lambda: detr(num_classes=CLASSES, backbone=resnet(101, num_maps=1, dilation=True)), 253),
    "conditional": (lambda: conditional_detr(num_classes=CLASSES), 90),
    "conditional-dc5": (
        lambda: conditional_detr(num_classes=CLASSES, backbone=resnet(50, num_maps=1, dilation=True)),
        195,
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_trainable_parameters_are_those_of_the_public_implementation(name):
    recipe, expected = PARAMETERS[name]
    config = recipe()
    with meta_device():
        model = instantiate(config)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


@pytest.mark.parametrize("name", MILLIONS)
def test_the_family_has_as_many_parameters_as_the_public_implementations(name):
    recipe, expected = MILLIONS[name]
    config = recipe()
    with meta_device():
        model = instantiate(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("encoder_layers", "millions"), [(3, 32.74), (6, 35.01)])
def test_efficient_detr_has_its_published_parameters(encoder_layers, millions):
    """32 million are published for three encoder layers, to the million."""
    config = efficient_detr(num_classes=CLASSES, encoder_layers=encoder_layers)
    with meta_device():
        model = instantiate(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("name", ALL_PARAMETERS)
def test_the_model_has_exactly_as_many_parameters_as_the_public_implementation(name):
    recipe, expected = ALL_PARAMETERS[name]
    config = recipe()
    with meta_device():
        model = instantiate(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(("recipe", "expected"), GIGAFLOPS)
def test_flops_are_those_of_the_public_implementation(recipe, expected):
    assert flops(instantiate(recipe()), HEIGHT, WIDTH) / 1e9 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "-" in name else ()) for name in PUBLISHED_GIGAFLOPS]
)
def test_flops_are_near_the_published_means(name):
    recipe, expected = PUBLISHED_GIGAFLOPS[name]
    assert flops(instantiate(recipe()), HEIGHT, WIDTH) / 1e9 == pytest.approx(expected, rel=0.05)


# Giga multiply-adds of the encoder for 800 x 1333 pixels, computed by hand for the specification, without norms.
LITE_ENCODERS = {"blocks=1": 56.7, "blocks=2": 62.6, "blocks=3": 68.5, "high_levels=2": 40.9}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [(partial(lite_dino, **{o.split("=")[0]: int(o[-1])}), expected) for o, expected in LITE_ENCODERS.items()]
    + [(dino, 173.1)],
    ids=[*LITE_ENCODERS, "dense"],
)
def test_the_encoder_of_lite_dino_costs_what_its_layers_and_levels_say(recipe, expected):
    """The counter counts norms, and the samples of key-aware attention twice, for it reads them twice: 2 % more."""
    model = recipe()
    with meta_device():
        built = instantiate(model)
        encoder = Encoder(built.selector, built.encoder)
    content = torch.empty(1, 22223, 256, device="meta")
    counted = FlopCountAnalysis(encoder.eval(), (content, content)).unsupported_ops_warnings(False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert counted.total() / 1e9 == pytest.approx(expected, rel=0.025)


class Encoder(nn.Module):
    """The encoder and its selector on the pyramid of an image of 800 x 1333 pixels."""

    def __init__(self, selector: nn.Module, encoder: nn.Module):
        super().__init__()
        self.selector, self.encoder = selector, encoder

    def forward(self, content: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        shapes = ((100, 167), (50, 84), (25, 42), (13, 21))
        tokens = Tokens(content=content, position=position, pyramid=Pyramid.unpadded(shapes, 1, device=content.device))
        return self.encoder(tokens, self.selector(tokens, None).selection, None).memory


@pytest.mark.slow
def test_polling_a_third_of_the_tokens_saves_as_much_as_published():
    """For other images: 86 GFLOPs for DETR, as published, and 79 with a third of the tokens, as later papers quote."""
    dense, sampled = (flops(instantiate(recipe(num_classes=CLASSES)), 800, 1066) for recipe in (detr, pnp_detr))
    assert sampled / dense == pytest.approx(79 / 86, abs=0.005)


def test_decoder_self_attention_is_counted_in_eval():
    queries, channels, layers = 20, 64, 2
    model = instantiate(small(deformable_detr, embed_dim=channels, num_queries=queries, decoder_layers=layers))
    attention = count(model, 64, 64).by_operator()["scaled_dot_product_attention"]
    assert attention == layers * 2 * queries * queries * channels


def test_row_column_attention_is_counted_by_its_formula():
    """Attention to h w cells: two similarities, the sum over the longer axis, then over the shorter one."""
    (height, width), channels, points = (4, 6), 64, 10
    config = small(
        anchor_detr, backbone=mobilenet_v2(strides=(16,)), embed_dim=channels, num_queries=points, num_patterns=2
    )
    queries = height * width + 2 * points  # those of the encoder and those of the decoder
    counted = count(instantiate(config), 16 * height, 16 * width).by_operator()
    assert counted["matmul"] == queries * channels * (width + height + height * width + min(height, width))


def test_a_lower_keep_ratio_costs_less():
    ratios = (0.1, 0.5, 1.0)
    costs = [flops(instantiate(small(sparse_detr, keep_ratio=ratio)), 128, 128) for ratio in ratios]
    assert costs == sorted(set(costs))


def small(recipe: Callable[..., Any], **options: Any) -> Any:
    """Return the config of a recipe, so small that it is traced in a second."""
    return recipe(
        **{"backbone": mobilenet_v2(), "embed_dim": 64, "num_queries": 10, "encoder_layers": 1, "decoder_layers": 1}
        | options
    )


def flops(model: nn.Module, height: int, width: int) -> int:
    return count(model, height, width).total()


def count(model: nn.Module, height: int, width: int) -> FlopCountAnalysis:
    """Count as Detectron2's `tools/analyze_model.py` does, with a batch of one image."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # the list of operators that count as zero is long
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    counted = FlopCountAnalysis(model.eval(), [{"image": image}])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted.total()
    return counted
