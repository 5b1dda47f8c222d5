"""Exported files detect what the model does, in a process that has no `sparse_detr`, at any size, alone and batched."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_detr.errors import UserError
from sparse_detr.export import ExportedFile, detections, export_model, formats, parity
from sparse_detr.export.detector import ExportedDetector
from sparse_detr.export.metadata import smallest_side
from sparse_detr.ops import available_backends
from sparse_detr.ops.backends import use_backend
from tests.export.tiny import IMAGE_SIZES, build, make_inputs, metadata

NEEDS_ONNX = pytest.mark.skipif(
    any(find_spec(name) is None for name in formats.TO_WRITE_ONNX),
    reason="onnx, onnxscript and onnxruntime are not installed: pip install sparse_detr[export]",
)
FIXED = [128, 144]
# Run in a process in which an import of the package fails: the file alone must do.
WITHOUT_THE_PACKAGE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sparse_detr", "detectron2"):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
import numpy as np

file, batches, results = sys.argv[1:]
arrays = np.load(batches)
if file.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    run = lambda images, sizes: session.run(["boxes", "scores", "labels"], {"images": images, "sizes": sizes})
else:
    import torch
    program = torch.export.load(file).module() if file.endswith(".pt2") else torch.jit.load(file)
    run = lambda images, sizes: [x.detach().numpy() for x in program(torch.tensor(images), torch.tensor(sizes))]
found = {}
for i in range(len(arrays.files) // 2):
    for name, array in zip(("boxes", "scores", "labels"), run(arrays[f"images{i}"], arrays[f"sizes{i}"])):
        found[f"{name}{i}"] = array
assert "sparse_detr" not in sys.modules
np.savez(results, **found)
"""


def run_without_the_package(file, batches, folder):
    """Return boxes, scores and labels of every batch, computed in another process."""
    arrays = {f"{name}{i}": x.numpy() for i, batch in enumerate(batches) for name, x in zip(("images", "sizes"), batch)}
    np.savez(folder / "batches.npz", **arrays)
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, str(file), "batches.npz", "results.npz"]
    subprocess.run(command, check=True, cwd=folder)
    results = np.load(folder / "results.npz")
    return [
        tuple(torch.from_numpy(results[f"{name}{i}"]) for name in ("boxes", "scores", "labels"))
        for i in range(len(batches))
    ]


def check_file(name, suffix, folder, *, optimize=False, opset=None, **facts):
    """Export a small model, and compare its file with it, run in a process without the package.

    On five images of different sizes, alone and in one batch.
    """
    model, inputs, file = build(name), make_inputs(), folder / f"{name}{suffix}"
    written = export_model(model, file, metadata=metadata(**facts), inputs=inputs[:2], optimize=optimize, opset=opset)
    assert written.is_equal
    assert written.detections > 0
    opened = ExportedDetector(None, ExportedFile(file).metadata)
    groups = [[item] for item in make_inputs(seed=1)] + [make_inputs(seed=1)]
    batches = [opened.batch([item["image"] for item in group]) for group in groups]
    for group, result in zip(groups, run_without_the_package(file, batches, folder), strict=True):
        opened.run = lambda images, sizes, result=result: result
        found = [item["instances"] for item in opened(group)]
        filler = parity._filler(group, facts.get("fixed_size"))
        with torch.no_grad():
            expected = [item["instances"] for item in model(group + filler)[: len(group)]]
        outcome = parity.compare(found, expected, images=len(group), sizes=())
        assert outcome.detections > 0
        assert outcome.without_partner == 0, outcome
        assert outcome.score_difference < 1e-4
        assert outcome.box_difference < 1e-2
        assert [len(one) for one in found] == [len(one) for one in expected]
    return file


@pytest.fixture(scope="module")
def sparse_onnx(tmp_path_factory):
    """Return the ONNX file of a small Sparse DETR, which detects the same in a process without the package."""
    return check_file("sparse", ".onnx", tmp_path_factory.mktemp("onnx"), opset=20)


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.parametrize("name", ["dino", "detr"])
def test_an_onnx_file_detects_the_same_without_the_package(name, tmp_path):
    check_file(name, ".onnx", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sparse", "dino"])
def test_a_pt2_file_detects_the_same_without_the_package(name, tmp_path):
    check_file(name, ".pt2", tmp_path)


@pytest.mark.parametrize("name", ["sparse", "detr"])
def test_a_torchscript_file_detects_the_same_at_its_size_without_the_package(name, tmp_path):
    check_file(name, ".torchscript", tmp_path, fixed_size=FIXED)


@pytest.mark.parametrize("name", ["sparse", "focus"])
def test_a_file_of_the_inference_form_detects_what_the_model_does(name, tmp_path):
    plain, optimised = tmp_path / "plain", tmp_path / "optimised"
    for folder in (plain, optimised):
        folder.mkdir()
        check_file(name, ".torchscript", folder, fixed_size=FIXED, optimize=folder == optimised)
    operators = [count_operators(folder / f"{name}.torchscript") for folder in (plain, optimised)]
    assert operators[0] != operators[1]  # the file is not that of the model as it is


def count_operators(file):
    """Return how many nodes the graph of a TorchScript file has."""
    graph = torch.jit.load(file).inlined_graph
    return sum(node.kind() != "prim::Constant" for node in graph.nodes())


@pytest.mark.slow
@NEEDS_ONNX
def test_an_onnx_file_holds_standard_operators_without_grid_sample_and_names_its_axes(sparse_onnx):
    import onnx

    model = onnx.load(sparse_onnx)
    assert {(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""} == {("", 20)}
    assert {node.domain for node in model.graph.node} == {""}
    assert "GridSample" not in {node.op_type for node in model.graph.node}
    shapes = {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.input}
    assert shapes == {"images": ["batch", 3, "height", "width"], "sizes": ["batch", 2]}
    outputs = {x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in model.graph.output}
    rows = ["batch", outputs["scores"][1]]
    assert outputs == {"boxes": [*rows, 4], "scores": rows, "labels": rows}
    assert rows[1] in ("detections", 12 * 5)


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.skipif(available_backends()["cpu"] is not None, reason="the CPU library is not built: python ops/build.py")
def test_tensorrts_plugin_stands_for_every_attention(tmp_path):
    import onnx

    file = tmp_path / "model.onnx"
    export_model(build("sparse"), file, metadata=metadata(), inputs=make_inputs()[:2], plugin="tensorrt")
    nodes = [node for node in onnx.load(file).graph.node if node.op_type == "MultiscaleDeformableAttnPlugin_TRT"]
    assert len(nodes) == 2  # one layer of the encoder and one of the decoder
    assert all(len(node.input) == 5 for node in nodes)
    with pytest.raises(UserError, match="cannot be opened"):
        ExportedFile(file)


@pytest.mark.skipif(available_backends()["cpu"] is not None, reason="the CPU library is not built: python ops/build.py")
def test_a_pt2_file_can_keep_the_op(tmp_path):
    file = tmp_path / "model.pt2"
    facts = metadata(fixed_size=FIXED)
    export_model(build("sparse"), file, metadata=facts, inputs=make_inputs()[:2], keep_op=True)
    assert ExportedFile(file).metadata.needs_package
    targets = {str(node.target) for node in torch.export.load(file).graph.nodes}
    assert "sparse_detr.deformable_attention.default" in targets


@pytest.mark.slow
@NEEDS_ONNX
def test_openvino_reads_the_onnx_file(request):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model, inputs, file = build("sparse"), make_inputs(), request.getfixturevalue("sparse_onnx")
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images, sizes):
        found = compiled({"images": images.numpy(), "sizes": sizes.numpy()})
        return tuple(torch.from_numpy(found[name]) for name in formats.OUTPUTS)

    outcome = parity.check_parity(ExportedDetector(run, ExportedFile(file).metadata), model, inputs)
    assert outcome.without_partner == 0


def test_a_file_that_detects_something_else_is_not_written(tmp_path, monkeypatch):
    normalize = detections.DetectionProgram.normalize
    monkeypatch.setattr(detections.DetectionProgram, "normalize", lambda *arguments: 1.5 * normalize(*arguments))
    file = tmp_path / "model.torchscript"
    file.write_text("old")
    with pytest.raises(UserError, match="the file's detections are not those of the model.*; nothing is written"):
        export_model(build("sparse"), file, metadata=metadata(fixed_size=FIXED), inputs=make_inputs()[:2])
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


EAGER = ("sparse", "topk", "dino", "focus", "detr", "lite_dino", "imfa", "pnp", "anchor")


@pytest.mark.parametrize("options", [{}, {"class_channels": [1, 4, 2], "size_divisibility": 48}])
@pytest.mark.parametrize("name", EAGER)
def test_what_a_file_computes_is_what_the_detector_detects(name, options):
    model = build(name)
    for option, value in options.items():
        setattr(model, option, value)
    exported = ExportedDetector(detections.DetectionProgram(model), metadata())
    with use_backend("gather"):
        outcome = parity.check_parity(exported, model, make_inputs())
    assert outcome.detections > 100
    assert outcome.without_partner == 0, outcome


def test_pixels_outside_of_the_image_are_not_read():
    program = detections.DetectionProgram(build("sparse"))
    (item,) = make_inputs([(70, 90)])
    noise = torch.rand(1, 3, 96, 128) * 255
    noise[0, :, :70, :90] = item["image"]
    zeros = torch.zeros(1, 3, 96, 128)
    zeros[0, :, :70, :90] = item["image"]
    sizes = torch.tensor([[70, 90]])
    with torch.no_grad():
        for one, other in zip(program(noise, sizes), program(zeros, sizes), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sparse", "detr"])
def test_queries_that_only_fill_the_batch_have_the_score_zero(name):
    postprocess = build(name).postprocess
    scores = torch.rand(2, 4, 5) + 0.1
    valid = torch.tensor([[True, True, False, True], [True] * 4])
    found, rows, _ = postprocess.choose(scores, valid)
    assert (found[0][rows[0] == 2] == 0).all()
    assert (found[0][rows[0] != 2] > 0).all()
    assert (found[1] > 0).all()
    assert torch.equal(found, postprocess.choose(torch.where(valid[..., None], scores, 0), None)[0])


def test_boxes_are_clipped_to_the_image():
    boxes = torch.tensor([[[0.5, 0.5, 2.0, 0.5]]])
    assert detections.in_pixels(boxes, torch.tensor([[40, 60]])).tolist() == [[[0, 10, 60, 30]]]


@pytest.mark.parametrize(
    ("output", "choices", "facts", "message"),
    [
        ("model.pth", {}, {}, r"the suffix '.pth' names no format; write NAME.onnx, NAME.pt2, .*, or give --format"),
        ("model.torchscript", {}, {}, "a TorchScript trace holds for one height and width; give --fixed-size"),
        ("model.pt2", {"opset": 18}, {}, "an opset is for ONNX files, not for pt2"),
        ("model.pt2", {"plugin": "tensorrt"}, {}, "a plugin is for ONNX files, not for pt2"),
        ("model.torchscript", {"keep_op": True}, {"fixed_size": FIXED}, "only .pt2 files can keep the op"),
        pytest.param("model.onnx", {"opset": 9}, {}, "opset 9 cannot be written; give 18 to 23", marks=NEEDS_ONNX),
    ],
)
def test_choices_that_do_not_fit_are_named(output, choices, facts, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_model(build("detr"), tmp_path / output, metadata=metadata(**facts), inputs=make_inputs()[:1], **choices)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", formats.TO_WRITE_ONNX)
def test_a_missing_package_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(UserError, match=f"exporting to ONNX needs {package}; install: pip install {package}"):
        export_model(build("detr"), tmp_path / "model.onnx", metadata=metadata(), inputs=make_inputs()[:1])


def test_a_model_of_one_height_and_width_is_refused_with_the_remedy(tmp_path, monkeypatch):
    model = build("detr")
    original = type(model.backbone).forward
    # A number of Python in place of a size is a constant of the trace.
    monkeypatch.setattr(type(model.backbone), "forward", lambda self, x: original(self, x[..., : int(x.shape[-1])]))
    with pytest.raises(UserError, match="cannot be exported with open height and width .*; give --fixed-size H W"):
        export_model(model, tmp_path / "model.pt2", metadata=metadata(), inputs=make_inputs()[:1])


def test_images_of_one_size_are_compared_at_several():
    inputs = make_inputs([(64, 96)] * 5)
    parts = parity.of_several_sizes(inputs)
    assert len({part["image"].shape for part in parts}) == 5
    assert torch.equal(parts[0]["image"], inputs[0]["image"])
    assert all((part["height"], part["width"]) == part["image"].shape[1:] for part in parts)
    assert [part["image"].shape[1:] for part in parity.of_several_sizes(make_inputs())] == list(IMAGE_SIZES)


def test_files_name_what_is_wrong_with_them(tmp_path):
    with pytest.raises(UserError, match="there is no file .*absent.pt2"):
        ExportedFile(tmp_path / "absent.pt2")
    (tmp_path / "broken.pt2").write_bytes(b"no file")
    with pytest.raises(UserError, match="broken.pt2 cannot be opened: .*: export it again"):
        ExportedFile(tmp_path / "broken.pt2")
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), tmp_path / "foreign.torchscript")
    with pytest.raises(UserError, match="foreign.torchscript was not written by `sparse-detr export`"):
        ExportedFile(tmp_path / "foreign.torchscript")
    with pytest.raises(UserError, match="runs on the CPU, not on 'cuda'"):
        ExportedFile(tmp_path / "foreign.torchscript", device="cuda")


@pytest.mark.parametrize(("name", "side"), [("dino", 33), ("sparse", 65), ("pnp", 97)])
def test_the_smallest_side_leaves_two_cells_and_four_kept_tokens(name, side):
    """Strides 16 and 32, 30 % of 5 * 5 + 3 * 3 tokens at 65 pixels; PnP-DETR has stride 32 alone, 30 % of 4 * 4."""
    assert smallest_side(build(name)) == side


def test_the_suffixes_of_files_are_known_everywhere():
    from sparse_detr.cli import export
    from sparse_detr.predictor import EXPORTED_SUFFIXES

    assert tuple(formats.SUFFIXES) == EXPORTED_SUFFIXES
    assert formats.FORMATS == export.FORMATS
    assert Path("A/B.ONNX").suffix.lower() in EXPORTED_SUFFIXES
