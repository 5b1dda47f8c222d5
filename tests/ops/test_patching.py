"""The op under models of other packages: equal outputs and gradients, and every trace of it removable."""

import copy
import importlib
import logging
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from sparse_detr import ops
from sparse_detr.ops import patching
from tests.ops.reference import attend, relative_error

OPS = Path(__file__).parents[2] / "ops"
SHAPES = [(6, 9), (3, 5), (2, 2)]
NAMES = ("Deformable DETR", "RT-DETR", "RT-DETRv2", "D-FINE", "Mask2Former", "Grounding DINO")

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the package transformers is not installed"
)


@pytest.fixture(autouse=True)
def leave_nothing_patched():
    yield
    ops.unpatch()


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(str(OPS))
    return importlib.import_module("benchmark.transformers_models")


@pytest.fixture
def calls(monkeypatch):
    """The number of calls of the op by patched code."""
    count = []
    original = patching.multi_scale_deformable_attention
    monkeypatch.setattr(
        patching, "multi_scale_deformable_attention", lambda *inputs: count.append(1) or original(*inputs)
    )
    return count


def samples(*, points=4, batch=2, queries=7, heads=2, dtype=torch.float32):
    """A value, locations of which some are outside of the map, and weights."""
    torch.manual_seed(points)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, tokens, heads, 8, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, dtype=dtype)
    return value, locations, weights


def redraw(model):
    """Draw weights anew that keep the size of their input, in float64: the usual small ones fade in a tiny model.

    Offsets are moved off the whole pixels of their start, where the derivative by a location jumps.
    """
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=(2 / weight[0].numel()) ** 0.5, generator=numbers)
            elif "sampling_offsets" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=numbers))
    return model.double()


def outputs_of(model, inputs):
    """The floating-point outputs of a model that has been trained for detection or segmentation."""
    result = model(**inputs)
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    return [result[name].masked_fill(result[name].isinf(), 0) for name in names if name in result]


def outputs_and_gradients(model, inputs):
    """The outputs of a model, and the gradients of a sum of them with random shares."""
    model.zero_grad(set_to_none=True)
    outputs = outputs_of(model, inputs)
    torch.manual_seed(1)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return [output.detach() for output in outputs], gradients


@needs_transformers
@pytest.mark.parametrize("name", NAMES)
def test_a_patched_model_of_transformers_has_equal_outputs_and_gradients(name, models, calls, monkeypatch):
    """Also a model that was built before.

    Two images: with one, `batch_norm` of PyTorch 2.14.1 has wrong gradients in eval mode for some strides of the
    gradient it is given, (C, 1, W * C, C), whatever op they come from.
    """
    model, inputs = models.build(name, height=64, width=96, tiny=True)
    model = redraw(model)
    inputs = {
        key: torch.cat([x, 1 - x]).double() if x.is_floating_point() else x.repeat(2, 1) for key, x in inputs.items()
    }
    outputs, gradients = outputs_and_gradients(model, inputs)
    assert not calls
    with ops.patch("transformers", strict=True):
        patched_outputs, patched_gradients = outputs_and_gradients(model, inputs)
        assert calls
        exact = patching.multi_scale_deformable_attention
        monkeypatch.setattr(patching, "multi_scale_deformable_attention", lambda *inputs: 1.01 * exact(*inputs))
        with torch.no_grad():
            wrong_outputs = outputs_of(model, inputs)
    errors = [relative_error(*pair) for pair in zip(patched_outputs, outputs, strict=True)]
    assert max(errors) < 1e-11
    assert max(relative_error(*pair) for pair in zip(wrong_outputs, outputs, strict=True)) > 1e-8  # the op matters
    assert patched_gradients.keys() == gradients.keys()
    assert any("sampling_offsets" in key and gradient.any() for key, gradient in gradients.items())
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        error = float((patched_gradients[key] - gradient).abs().max())
        # A gradient can be zero but for rounding, as that of a bias before a normalisation is.
        assert error < max(1e-7 * float(gradient.abs().max()), 1e-12 * largest), key


@needs_transformers
def test_every_attention_of_transformers_is_replaced_and_equal_to_the_formula():
    """What is found by the source is what is patched; the formula is that of the tests, in plain loops."""
    patch = ops.patch("transformers", strict=True)
    folders = {label.split(".")[2] for label in patch.replaced}
    assert folders >= {"deformable_detr", "rt_detr", "rt_detr_v2", "d_fine", "mask2former", "oneformer", "deimv2"}
    assert folders >= {"grounding_dino", "mm_grounding_dino", "rf_detr", "lw_detr", "omdet_turbo"}
    assert patch.left == {}
    value, locations, weights = samples(dtype=torch.float64)
    expected = attend(value, SHAPES, locations, weights)
    for label in patch.replaced:
        module = importlib.import_module(".".join(label.split(".")[:4]))
        assert relative_error(call(module, value, locations, weights), expected) < 1e-12, label


def call(module, value, locations, weights):
    """Call the attention of a module of transformers in the form that it has."""
    layer = getattr(module, "MultiScaleDeformableAttention", None)
    if layer is not None:
        return layer()(value, torch.tensor(SHAPES), SHAPES, None, locations, weights, 64)
    plain = getattr(module, "multi_scale_deformable_attention", None)
    if plain is not None:
        return plain(value, torch.tensor(SHAPES), locations, weights)
    points = [locations.shape[4]] * len(SHAPES)
    function = module.multi_scale_deformable_attention_v2
    for kind in patching._classes_that_store(module):
        holder = kind.__new__(kind)
        nn.Module.__init__(holder)
        holder.ms_deformable_attn_core = function
        assert holder.ms_deformable_attn_core is not function
        function = holder.ms_deformable_attn_core
    return function(value, SHAPES, locations.flatten(3, 4), weights.flatten(3), points)


@needs_transformers
@pytest.mark.parametrize("points", [[4, 4, 4], [3, 6, 3], [1, 2, 5]])
def test_levels_with_different_numbers_of_points_are_exact(points):
    module = importlib.import_module("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
    value, locations, weights = samples(points=sum(points), dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (value, locations[:, :, :, 0].clone(), weights[:, :, :, 0].clone())]

    def run():
        output = module.multi_scale_deformable_attention_v2(inputs[0], SHAPES, *inputs[1:], points)
        return output, *torch.autograd.grad(output.square().sum(), inputs)

    expected = run()
    with ops.patch("transformers"):
        results = run()
    for result, truth in zip(results, expected, strict=True):
        assert relative_error(result, truth) < 1e-12


@needs_transformers
def test_the_discrete_method_keeps_its_own_code(calls):
    module = importlib.import_module("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
    value, locations, weights = samples()
    arguments = (value, SHAPES, locations.flatten(3, 4), weights.flatten(3), [4, 4, 4])
    expected = module.multi_scale_deformable_attention_v2(*arguments, method="discrete")
    with ops.patch("transformers"):
        assert torch.equal(module.multi_scale_deformable_attention_v2(*arguments, method="discrete"), expected)
        assert not calls
        module.multi_scale_deformable_attention_v2(*arguments)
    assert calls


@needs_transformers
def test_the_dtype_is_that_of_the_original():
    module = importlib.import_module("transformers.models.mask2former.modeling_mask2former")
    value, locations, weights = samples()
    for dtypes in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        arguments = (value.to(dtypes[0]), SHAPES, locations.to(dtypes[0]), weights.to(dtypes[1]))
        expected = module.multi_scale_deformable_attention(*arguments)
        with ops.patch("transformers"):
            result = module.multi_scale_deformable_attention(*arguments)
        assert result.dtype == expected.dtype
        assert relative_error(result, expected) < (0.1 if torch.bfloat16 in dtypes else 1e-6)


@needs_transformers
def test_a_model_of_d_fine_can_be_copied_and_pickled_while_patched(models, calls):
    """And one that was built while patched is as others are afterwards."""
    with ops.patch("transformers"):
        model, inputs = models.build("D-FINE", height=64, width=64, tiny=True)
        expected = model(**inputs).logits
        assert calls
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, expected)
        restored = pickle.loads(pickle.dumps(model))
    calls.clear()
    assert relative_error(restored(**inputs).logits, expected) < 1e-5
    assert not calls


@needs_transformers
def test_unpatching_restores_the_very_objects():
    modules = [importlib.import_module(name) for name in patching._models_with_attention(transformers_folder())]
    before = [contents(module) for module in modules]
    patch = ops.patch("transformers")
    assert any(now != then for now, then in zip(map(contents, modules), before, strict=True))
    assert ops.patch("transformers") is patch
    ops.unpatch("transformers")
    ops.unpatch("transformers")
    assert [contents(module) for module in modules] == before


def transformers_folder():
    return importlib.util.find_spec("transformers").submodule_search_locations[0]


def contents(module):
    """What a module holds, and what the classes of its own hold."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return {**vars(module), **{(kind, name): value for kind in kinds for name, value in vars(kind).items()}}


class StandIn:
    """A package like mmcv or detrex, made of what those two modules have in common (the packages are not installed)."""

    def __init__(self, name, monkeypatch):
        self.module = types.ModuleType(name)
        self.user = types.ModuleType(f"{name.split('.')[0]}.a_user")

        def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
            return attend(value, value_spatial_shapes.tolist(), sampling_locations, attention_weights)

        class MultiScaleDeformableAttnFunction(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value, shapes, level_start_index, locations, weights, im2col_step):
                raise RuntimeError("compiled for GPUs only")

        for holder in (self.module, self.user):  # the user has imported both by name
            holder.multi_scale_deformable_attn_pytorch = multi_scale_deformable_attn_pytorch
            holder.MultiScaleDeformableAttnFunction = MultiScaleDeformableAttnFunction
        parts = name.split(".")
        for count in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
        monkeypatch.setitem(sys.modules, name, self.module)
        monkeypatch.setitem(sys.modules, self.user.__name__, self.user)


@pytest.mark.parametrize(
    ("package", "name"),
    [("mmcv", "mmcv.ops.multi_scale_deform_attn"), ("detrex", "detrex.layers.multi_scale_deform_attn")],
)
def test_the_function_and_the_gpu_class_of_mmcv_and_detrex_are_replaced(package, name, monkeypatch, calls):
    stand_in = StandIn(name, monkeypatch)
    original = stand_in.module.multi_scale_deformable_attn_pytorch
    value, locations, weights = samples(dtype=torch.float64)
    shapes = torch.tensor(SHAPES)
    with ops.patch(package, strict=True) as patch:
        assert f"{name}.MultiScaleDeformableAttnFunction.apply" in patch.replaced
        results = [
            stand_in.user.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights),
            stand_in.user.MultiScaleDeformableAttnFunction.apply(value, shapes, None, locations, weights, 64),
        ]
    assert len(calls) == 2
    expected = original(value, shapes, locations, weights)
    assert all(relative_error(result, expected) < 1e-12 for result in results)
    assert stand_in.user.multi_scale_deformable_attn_pytorch is original
    with pytest.raises(RuntimeError, match="compiled for GPUs only"):
        stand_in.module.MultiScaleDeformableAttnFunction.apply(value, shapes, None, locations, weights, 64)


def test_a_function_with_other_arguments_keeps_its_own_code(monkeypatch):
    stand_in = StandIn("mmcv.ops.multi_scale_deform_attn", monkeypatch)
    other = types.FunctionType((lambda value, shapes: value).__code__, {}, "multi_scale_deformable_attn_pytorch")
    stand_in.module.multi_scale_deformable_attn_pytorch = other
    patch = ops.patch("mmcv")
    assert stand_in.module.multi_scale_deformable_attn_pytorch is other
    assert "it takes value, shapes, not value, value_spatial_shapes" in "".join(patch.left.values())


def test_a_package_that_is_not_there_is_an_error_if_strict_and_else_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "detrex", None)
    with pytest.raises(RuntimeError, match="nothing of detrex was replaced: .*cannot be imported"):
        ops.patch("detrex", strict=True)
    with caplog.at_level(logging.WARNING, "sparse_detr"):
        assert ops.patch("detrex").replaced == ()
    assert "nothing of detrex was replaced" in caplog.text


def test_an_unknown_package_is_an_error():
    with pytest.raises(ValueError, match="must be one of transformers, mmcv, detrex, got 'timm'"):
        ops.patch("timm")


ONLY_TORCH = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class OnlyTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {"torch", "torchgen", "functorch", "typing_extensions", "sparse_detr"} | sys.stdlib_module_names:
            return PathFinder.find_spec(name, path, target)
        return None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, OnlyTorch]
import torch
from sparse_detr import ops
value = torch.arange(16.0).view(1, 8, 1, 2)
centers = torch.tensor([[0.125, 0.25], [0.875, 0.75]]).view(1, 2, 1, 1, 1, 2)
print(ops.multi_scale_deformable_attention(value, [(2, 4)], centers, torch.ones(1, 2, 1, 1, 1)).tolist())
others = {name.partition(".")[0] for name in sys.modules} & {"numpy", "detectron2", "fvcore", "transformers", "scipy"}
print(sorted(others))
"""


def test_the_op_needs_torch_alone():
    """A process in which no other package can be imported, NumPy included. Centres of cells read the cells."""
    command = [sys.executable, "-W", "ignore", "-c", ONLY_TORCH]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[[[0.0, 1.0], [14.0, 15.0]]]", "[]"]
