"""The flow alone: one call on tensors, export with dynamic sizes, compilation to one graph."""

import warnings

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from torch import nn
from torch.export import Dim, export
from torch.testing import assert_close

from sparse_detr.modeling.selection import CascadedBudget, EvenBudget
from sparse_detr.modeling.transformer import DetectionTransformer
from sparse_detr.recipes import BackboneSpec
from tests.modeling.tiny import MODELS, SIZES, build, picture, shake

EXPORTED = ("sparse", "focus", "dino", "dab", "detr", "conditional", "anchor", "pnp", "imfa", "lite_dino")
FEW_LAYERS = {"encoder_layers": 2, "decoder_layers": 1}


class StridedBackbone(nn.Module):
    """A backbone with one map: few levels are traced quickly with symbolic sizes."""

    def __init__(self):
        super().__init__()
        self.level = nn.Conv2d(3, 8, 1, 16)

    def forward(self, x):
        return {"map16": self.level(x)}


def flow(name, **options):
    """Build the transformer of a small model."""
    backbone = BackboneSpec(LazyCall(StridedBackbone)(), ("map16",), (8,), (16,))
    recipe, defaults = MODELS[name]
    sizes = {**SIZES, "num_levels": 2}
    if name == "imfa":
        del sizes["num_levels"]
    torch.manual_seed(0)
    model = instantiate(recipe(backbone=backbone, **{**sizes, **defaults, **FEW_LAYERS, **options})).double()
    shake(model)
    return model.eval().transformer()


def batch(count=2, height=96, width=160, *, seed=0):
    """Make normalised images and their sizes before padding, all different."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([(height - 5 * i, width - 9 * (count - 1 - i)) for i in range(count)])
    for image, (h, w) in zip(images, sizes.tolist(), strict=True):
        image[:, h:], image[:, :, w:] = 0, 0
    return images, sizes


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def near(first, second):
    return all(torch.allclose(a, b, atol=1e-12, rtol=0) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "random"])
def test_the_transformer_predicts_the_same_as_the_detector(name):
    model = build(name).eval()
    inputs = [picture(96, 64), picture(70, 125)]
    images = model._preprocess(inputs)
    assert type(model.transformer()) is DetectionTransformer
    with torch.no_grad():
        predictions = model.outputs(inputs, attention_map=False).predictions
        assert equal(model.transformer()(images.tensor, images.image_sizes), (predictions.logits, predictions.boxes))


@pytest.mark.parametrize("behavior", ["exact", "released"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "random"])
def test_sizes_in_a_tensor_give_what_sizes_on_the_host_give(name, behavior):
    transformer, (images, sizes) = build(name, behavior=behavior).eval().transformer(), batch()
    with torch.no_grad():
        results = transformer(images, sizes), transformer(images, [tuple(size) for size in sizes.tolist()])
    for result, expected in zip(*results, strict=True):
        assert_close(result, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", EXPORTED)
def test_without_sizes_the_images_fill_the_batch(name):
    transformer, (images, _) = flow(name), batch()
    with torch.no_grad():
        assert equal(transformer(images), transformer(images, [(96, 160)] * 2))


def test_a_budget_is_an_argument_of_the_call():
    transformer, (images, sizes) = flow("sparse"), batch()
    with torch.no_grad():
        every, few = (transformer(images, sizes, share) for share in (1.0, 0.05))
        assert not equal(every, few)
        assert equal(few, transformer(images, sizes, EvenBudget(keep_ratio=0.05)))
        with pytest.raises(ValueError, match="keep_ratio must be above 0 and at most 1, got 3"):
            transformer(images, sizes, 3)


@pytest.mark.parametrize("budget", [True, torch.tensor(0.5), EvenBudget, {}])
def test_what_is_no_budget_is_named(budget):
    with pytest.raises(
        ValueError, match="budget is .*; give a share, above 0 and at most 1, .*, or a Budget like Even"
    ):
        flow("sparse")(*batch(), budget)


def test_a_text_and_a_list_are_budgets():
    transformer, (images, sizes) = flow("sparse"), batch()
    with torch.no_grad():
        half = transformer(images, sizes, 0.5)
        assert equal(half, transformer(images, sizes, "0.5"))
        assert equal(half, transformer(images, sizes, [0.5, "0.5"]))
    with pytest.raises(ValueError, match="there are 1 budgets for 2 images; give one for every image"):
        transformer(images, sizes, [0.5])


def test_a_number_of_numpy_is_a_budget():
    transformer, (images, sizes) = flow("sparse"), batch()
    with torch.no_grad():
        for share in (np.float32(0.5), np.float64(0.5)):
            assert equal(transformer(images, sizes, share), transformer(images, sizes, 0.5))


@pytest.mark.parametrize("schedule", [[1], [1, 0.8, 0.6]])
def test_a_cascade_of_another_number_of_layers_is_refused(schedule):
    budget = CascadedBudget(keep_ratio=0.5, schedule=schedule)
    with pytest.raises(
        ValueError, match=f"schedule has {len(schedule)} shares, but the encoder 2 layers; give one share"
    ):
        flow("sparse")(*batch(), budget)


SIZES_OF_BATCH = batch()[1]
WRONG_SIZES = {
    "fractions": SIZES_OF_BATCH.double(),
    "one number an image": SIZES_OF_BATCH[:, 0],
    "three numbers": SIZES_OF_BATCH[:, [0, 1, 1]],
    "too few": SIZES_OF_BATCH[:1],
    "too few pairs": [(96, 160)],
    "too many pairs": [(96, 160)] * 3,
    "larger than the batch": [(96, 160), (97, 160)],
    "empty": [(96, 160), (0, 160)],
    "fractions in pairs": [(96, 160), (96.0, 160.0)],
    "numbers": [96, 160],
    "a number": 96,
}


@pytest.mark.parametrize("kind", WRONG_SIZES)
def test_wrong_sizes_are_named(kind):
    with pytest.raises(
        ValueError, match=r"sizes is .*; give \(h, w\) before padding of each of the 2 images, at least 1"
    ):
        flow("sparse")(batch()[0], WRONG_SIZES[kind])


def test_sizes_of_any_whole_numbers_serve():
    transformer, (images, sizes) = flow("sparse"), batch()
    with torch.no_grad():
        for other in (sizes.int(), sizes.numpy(), sizes.tolist(), list(sizes)):
            for result, expected in zip(transformer(images, other), transformer(images, sizes), strict=True):
                assert_close(result, expected, atol=1e-12, rtol=0)


def test_the_transformer_shares_weights_and_their_names_with_the_detector():
    model = build("focus")
    transformer = model.transformer()
    theirs = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in transformer.named_parameters(remove_duplicate=False):
        assert parameter is theirs[name]
    assert set(dict(transformer.named_parameters(remove_duplicate=False))) == set(theirs)
    assert transformer.training == model.training


@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_of_one_size_predicts_the_same(name):
    transformer, inputs = flow(name), batch()
    with torch.no_grad():
        exported = export(transformer, inputs).module()
        assert equal(exported(*inputs), transformer(*inputs))
        other = batch(seed=1)[0], torch.tensor([[96, 160], [33, 47]])  # sizes are not constants of the graph
        assert equal(exported(*other), transformer(*other))


@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_with_dynamic_batch_height_and_width_predicts_the_same_at_any_size(name, tmp_path):
    """From a file in the case that is read fastest: a file with symbolic sizes is slow to read."""
    transformer = flow(name)
    count, height, width = Dim("count", max=64), Dim("height", min=33, max=4096), Dim("width", min=33, max=4096)
    with torch.no_grad():
        program = export(transformer, batch(), dynamic_shapes=({0: count, 2: height, 3: width}, {0: count}))
        if name == "dab":
            torch.export.save(program, tmp_path / "flow.pt2")
            program = torch.export.load(tmp_path / "flow.pt2")
        exported = program.module()
        for inputs in (batch(1, 66, 101), batch(3, 131, 97), batch(2, 256, 333)):
            result, expected = exported(*inputs), transformer(*inputs)
            # row-column attention sums the longer axis first, but always the columns in an export
            assert near(result, expected) if name == "anchor" else equal(result, expected)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_transformer_compiles_to_one_graph(name):
    transformer, inputs = flow(name), batch()
    torch.compiler.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning of PyTorch about its own code
        compiled = torch.compile(transformer, backend="eager", fullgraph=True, dynamic=False)
        assert equal(compiled(*inputs), transformer(*inputs))
    torch.compiler.reset()


def test_a_compiled_graph_runs_at_any_size_without_another_compilation():
    transformer, graphs = flow("sparse"), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning of PyTorch about its own code
        compiled = torch.compile(transformer, backend=count, fullgraph=True, dynamic=True)
        for inputs in (batch(4, 96, 160), batch(2, 131, 97), batch(5, 200, 128)):
            assert equal(compiled(*inputs), transformer(*inputs))
    torch.compiler.reset()
    assert len(graphs) == 1
