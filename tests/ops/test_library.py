"""The registered operators: opcheck, compilation, export, tracing, autocast, and errors with a remedy."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_detr.ops import (
    backends,
    fused_deformable_attention,
    library,
    multi_scale_deformable_attention,
    splat_attention,
)
from tests.ops.reference import random_padding, random_predictions, random_samples, random_value

SHAPES = ((4, 6), (2, 3))
FLAT = [4, 6, 2, 3]


def op(kernel, name="deformable_attention"):
    backends.find_backend(kernel)  # registers the operators of Triton
    return library.op(backends.NAMESPACES[kernel], name)


def autocast(dtype):
    """Return autocast for the device that tensors are made on."""
    return torch.autocast(torch.get_default_device().type, dtype=dtype)


def arguments(form, *, dtype=torch.float32, requires_grad=True):
    """Return the positional arguments of the op: `plain`, or `fused` with reference points of 2 or 4 numbers."""
    value = random_value(SHAPES)
    if form == "plain":
        (points, weights), references = random_samples(SHAPES), None
    else:
        references, points, weights = random_predictions(SHAPES, int(form[-1]))
    tensors = [None if x is None else x.to(dtype) for x in (value, points, weights, references)]
    if requires_grad:
        tensors = [None if x is None else x.requires_grad_() for x in tensors]
    return (*tensors, random_padding(SHAPES) if form != "plain" else None, FLAT)


FORMS = ["plain", "fused2", "fused4"]
# Each checks the schema, fake tensors and autograd registration; the last one, with symbolic sizes, takes longest.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_op_passes_opcheck(kernel, form, dtype):
    torch.library.opcheck(op(kernel), arguments(form, dtype=dtype), test_utils=CHECKS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, True)])
def test_the_op_of_gradients_passes_opcheck(kernel, form, needed):
    given = arguments(form, requires_grad=False)
    backward = op(kernel, "deformable_attention_backward")
    torch.library.opcheck(backward, (torch.randn(2, 3, 6), *given, *needed, False), test_utils=CHECKS)


def test_the_splat_passes_opcheck(kernel):
    locations, weights = (x.float() for x in random_samples(SHAPES))
    torch.library.opcheck(op(kernel, "splat_attention"), (locations, weights, FLAT, -0.5), test_utils=CHECKS)


class Attention(nn.Module):
    """Both forms and the splat in sequence; the sizes of the maps come with the input."""

    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, image, references, offsets, logits):
        batch, heads, channels, height, width = image.shape
        shapes = ((height, width),)
        value = image.flatten(3).permute(0, 3, 1, 2)
        output = fused_deformable_attention(value, shapes, references, offsets, logits, backend=self.backend)
        locations, weights = references[:, :, None, :, None, :2] + 0.1 * offsets, logits.sigmoid()
        output = output + multi_scale_deformable_attention(value, shapes, locations, weights, backend=self.backend)
        received = splat_attention(shapes, locations.detach(), weights.detach(), backend=self.backend)
        return output, received


def images(height, width, *, queries=3, batch=2):
    """Return the arguments of `Attention`."""
    image = random_value(((height, width),), batch=batch).permute(0, 2, 3, 1).unflatten(-1, (height, width)).float()
    references, offsets, logits = random_predictions(((height, width),), 2, queries=queries, batch=batch)
    return image.contiguous(), references.float(), offsets.float(), logits.float()


def run(function, tensors):
    """Return the outputs, and the gradients of the first one by all tensors."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    output, received = function(*leaves)
    return output, received, *torch.autograd.grad(output.square().sum(), leaves)


def test_the_op_compiles_as_one_graph_for_any_size(backend):
    torch._dynamo.reset()
    model = Attention(backend)
    # The reference consists of operators of PyTorch, whose gradients take long to trace.
    compiler = "eager" if backend == "reference" else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=compiler)
    for sizes in ({"height": 4, "width": 6}, {"height": 5, "width": 3, "queries": 7}, {"height": 6, "width": 8}):
        tensors = images(**sizes)
        assert_close(run(compiled, tensors), run(model, tensors))
    with torch._dynamo.config.patch(error_on_recompile=True):
        tensors = images(7, 9, queries=5)
        assert_close(run(compiled, tensors), run(model, tensors))


def test_the_op_compiles_under_autocast(backend):
    torch._dynamo.reset()
    model = Attention(backend)
    compiled = torch.compile(model, fullgraph=True, backend="eager" if backend == "reference" else "aot_eager")
    with autocast(torch.bfloat16):
        output, expected = compiled(*images(4, 6))[0], model(*images(4, 6))[0]
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)


def export(backend, *, strict):
    """Export, save, load and run `Attention` with other sizes; return its graph."""
    batch, queries, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("b", "q", "h", "w"))
    model = Attention(backend)
    rows = {0: batch, 1: queries}
    shapes = ({0: batch, 3: height, 4: width}, rows, rows, rows)
    program = torch.export.export(model, images(4, 6), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    tensors = images(5, 3, queries=8, batch=3)
    assert_close(loaded(*tensors), model(*tensors))
    return program.graph


@pytest.mark.parametrize("strict", [False, True])
def test_a_kernel_is_exported_as_one_operator_for_any_number_of_images_and_queries_and_any_size(kernel, strict):
    called = {node.target for node in export(kernel, strict=strict).nodes}
    assert {op(kernel), op(kernel, "splat_attention")} <= called


def test_the_reference_is_exported_for_any_number_of_images_and_queries_and_any_size():
    export("reference", strict=False)


def test_the_op_is_traced_as_one_operator(kernel):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Attention(kernel), images(4, 6))
    namespace = backends.NAMESPACES[kernel]
    assert str(traced.inlined_graph).count(f"{namespace}::deformable_attention") == 2
    assert_close(traced(*images(4, 6)), Attention(kernel)(*images(4, 6)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_value_is_cast_and_the_geometry_is_not(backend, dtype):
    value, points, weights, references, mask, _ = arguments("fused4")

    def run(value, points, weights, references):
        return fused_deformable_attention(
            value, SHAPES, references, points, weights, padding_mask=mask, backend=backend
        )

    with autocast(dtype):
        output = run(value, points.to(dtype), weights.to(dtype), references)
    rounded = points.to(dtype).float(), weights.to(dtype).float(), references
    assert output.dtype == dtype
    assert torch.equal(output, run(value.to(dtype), *rounded))
    gradients = torch.autograd.grad(output.float().sum(), (value, points, weights, references))
    assert {x.dtype for x in gradients} == {torch.float32}


def test_autocast_leaves_float64_as_it_is(backend):
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    with autocast(torch.bfloat16):
        output = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
        received = splat_attention(SHAPES, locations, weights, backend=backend)
    assert output.dtype == received.dtype == torch.float64


def test_the_op_itself_follows_autocast(kernel):
    with autocast(torch.bfloat16):
        assert op(kernel)(*arguments("fused2")).dtype == torch.bfloat16
        locations, weights = (x.bfloat16() for x in random_samples(SHAPES))
        assert op(kernel, "splat_attention")(locations, weights, FLAT, -0.5).dtype == torch.float32


def test_a_second_derivative_is_refused_with_the_backend_that_has_it(kernel):
    value, points, weights, *_ = arguments("plain")
    output = multi_scale_deformable_attention(value, SHAPES, points, weights, backend=kernel)
    (gradient,) = torch.autograd.grad(output.square().sum(), points, create_graph=True)
    with pytest.raises(
        RuntimeError, match="gradient of deformable attention has no derivative; .* backend='reference'"
    ):
        gradient.sum().backward()


def test_vmap_is_refused_with_a_remedy(kernel):
    value, points, weights, *_ = (x.detach() for x in arguments("plain")[:3])

    def attend(value, backend):
        return multi_scale_deformable_attention(value, SHAPES, points, weights, backend=backend)

    values = torch.stack([value, 2 * value])
    with pytest.raises(RuntimeError, match="has no vmap; put the mapped dimension into the batch"):
        torch.vmap(lambda x: attend(x, kernel))(values)
    expected = torch.stack([attend(x, "reference") for x in values])
    assert_close(torch.vmap(lambda x: attend(x, "reference"))(values), expected)


class Calls(TorchDispatchMode):
    """Records the arguments of every call of an operator."""

    def __init__(self, operator):
        super().__init__()
        self.operator, self.arguments = operator, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is self.operator:
            self.arguments.append(args)
        return function(*args, **(kwargs or {}))


def test_the_deterministic_mode_of_torch_reaches_the_op_of_gradients(kernel):
    value, points, weights, *_ = arguments("plain")
    output = multi_scale_deformable_attention(value, SHAPES, points, weights, backend=kernel)
    calls = Calls(op(kernel, "deformable_attention_backward"))
    with calls:
        torch.autograd.grad(output.sum(), value, retain_graph=True)
        torch.use_deterministic_algorithms(True)
        try:
            torch.autograd.grad(output.sum(), value)
        finally:
            torch.use_deterministic_algorithms(False)
    assert [deterministic for *_, deterministic in calls.arguments] == [False, True]


def test_the_reference_gives_shapes_on_the_meta_device():
    value, points, weights, references, mask, _ = (
        x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments("fused4")
    )
    output = fused_deformable_attention(value, SHAPES, references, points, weights, padding_mask=mask)
    assert (output.shape, output.device.type) == ((2, 3, 6), "meta")
    assert multi_scale_deformable_attention(value, SHAPES, points, weights).shape == (2, 3, 6)
    assert splat_attention(SHAPES, points, weights).shape == (2, 30)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_need_no_device(device, kernel):
    with torch._subclasses.FakeTensorMode():
        value, points = torch.empty(2, 30, 8, 32, device=device), torch.empty(2, 5, 8, 2, 4, 2, device=device)
        assert op(kernel)(value, points, points[..., 0], None, None, FLAT).shape == (2, 5, 256)
        assert op(kernel, "splat_attention")(points, points[..., 0], FLAT, 0.0).shape == (2, 30)
