"""Imports run one way, Detectron2 stays at the boundary, and no paper is named in a condition."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.modeling.tiny import build, picture

ROOT = Path(__file__).parents[1] / "sparse_detr"
TORCH_ONLY = ("ops", "structures", "layers", "modeling")
BOUNDARY = ("modeling/detector.py", "modeling/inputs.py")
# What a layer may import of this package, besides itself.
ALLOWED = {
    "ops": (),
    "structures": (),
    "layers": ("ops", "structures"),
    "modeling": ("ops", "structures", "layers", "errors", "_detectron2"),
    "backbones": ("structures", "layers", "errors", "_detectron2"),
    "recipes": ("modeling", "layers", "backbones", "errors", "_detectron2"),
    "checkpoint": ("errors",),
    "data": ("errors", "files", "_detectron2"),
    "evaluation": ("budget_table", "errors", "files"),
    "config": ("recipes", "checkpoint", "data", "evaluation", "solver", "errors"),
    "inference": ("modeling", "backbones", "layers", "ops", "structures", "errors", "_detectron2"),
    "engine": (
        "config",
        "checkpoint",
        "data",
        "modeling",
        "backbones",
        "inference",
        "files",
        "errors",
        "_threads",
        "budget",
        "analysis",
        "visualization",
    ),
    "analysis": ("modeling", "structures", "errors", "files"),
    "export": ("modeling", "inference", "structures", "ops", "data", "files", "errors"),
    "benchmark": (
        "analysis",
        "budget",
        "budget_table",
        "checkpoint",
        "files",
        "config",
        "engine",
        "errors",
        "inference",
        "modeling",
        "ops",
        "structures",
        "visualization",
    ),
    "studies": (
        "analysis",
        "budget",
        "budget_table",
        "checks",
        "config",
        "engine",
        "errors",
        "files",
        "model_zoo",
        "modeling",
        "provenance",
        "recipes",
        "structures",
        "visualization",
    ),
    "visualization": ("analysis", "structures", "files", "errors"),
    "report": ("analysis", "config", "data", "evaluation", "visualization", "files", "errors"),
    "predict": ("analysis", "data", "predictor", "visualization", "files", "errors"),
    "explain": ("analysis", "modeling", "layers", "ops", "structures", "visualization", "files", "errors"),
}
# What a room of modeling may import of modeling, besides itself: the flow's stages do not know each other.
ROOMS = {
    "classification": (),
    "inputs": (),
    "heads": ("classification",),
    "initialization": ("heads", "selection"),
    "tokenizers": (),
    "selection": ("heads",),
    "encoder": ("heads",),
    "queries": ("heads",),
    "decoder": ("heads",),
    "training": ("classification", "heads"),
    "effort": ("selection",),
    "transformer": ("heads", "selection", "decoder", "effort"),
    "detector": ("classification", "effort", "heads", "initialization", "inputs", "transformer"),
}
PAPERS = ("sparse", "focus", "dino", "dab", "deformable_detr", "efficient_detr")


def sources(*folders):
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [pytest.param(path, id=relative(path)) for path in paths]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imported_modules(path):
    """Every absolute module name that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which this test does not follow"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def condition_names(path):
    """Names, attributes and strings in the conditions of a file, in lower case."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            conditions = [node.test]
        elif isinstance(node, ast.Match):
            conditions = [node.subject, *(case.pattern for case in node.cases)]
        elif isinstance(node, ast.comprehension):
            conditions = node.ifs
        else:
            continue
        for part in (part for condition in conditions for part in ast.walk(condition)):
            for field in ("id", "attr", "value"):
                text = getattr(part, field, None)
                if isinstance(text, str):
                    yield text.lower()


@pytest.mark.parametrize("path", sources(*TORCH_ONLY))
def test_detectron2_is_imported_at_the_boundary_only(path):
    if relative(path) in BOUNDARY:
        return
    outside = [name for name in imported_modules(path) if name.split(".")[0] in ("detectron2", "fvcore", "omegaconf")]
    assert outside == []


@pytest.mark.parametrize("path", sources(*ALLOWED))
def test_a_layer_imports_only_layers_below_it(path):
    layer = relative(path).split("/")[0]
    used = {name.split(".")[1] for name in imported_modules(path) if name.startswith("sparse_detr.")}
    assert used - {layer} <= set(ALLOWED[layer])


@pytest.mark.parametrize("path", [path for path in sources("modeling") if path.id != "modeling/__init__.py"])
def test_the_stages_of_the_flow_do_not_know_each_other(path):
    room = relative(path).removesuffix(".py").split("/")[1]
    used = {name.split(".")[2] for name in imported_modules(path) if name.startswith("sparse_detr.modeling.")}
    assert used - {room} <= set(ROOMS[room])


def test_the_eight_files_of_the_flow_are_those_that_an_image_passes():
    """Those that `modeling/__init__.py` lists; checks, budgets and the sigmoid of the scores are no stage."""
    listed = set(re.findall(r"^    (\S+\.py) ", (ROOT / "modeling/__init__.py").read_text(), re.MULTILINE))
    model = build("sparse").eval()
    passed = set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "modeling"):
            passed.add(path.relative_to(ROOT / "modeling").as_posix())

    sys.setprofile(note)
    try:
        model([picture(96, 64), picture(64, 96)])
    finally:
        sys.setprofile(None)
    assert len(listed) <= 8
    budgets = {"effort.py", "selection/budgets.py", "selection/steering.py"}
    assert passed - budgets - {"inputs.py", "classification.py"} == listed


# Detectron2's ways from a config to a model or a part of it, and the files that may use them: `build_detector`, which
# everything else calls, and what Detectron2's registries call.
BUILDERS = ("detectron2.config.instantiate", "detectron2.modeling.build_model", "detectron2.model_zoo")
BUILDING = {"config/building.py", "config/model.py", "recipes/meta_arch.py", "recipes/backbones/registry.py"}


def test_there_is_one_way_from_a_config_to_a_model():
    outside = [path for folder in ("scripts", "projects", "ops") for path in (ROOT.parent / folder).rglob("*.py")]
    outside = [path for path in outside if path.parent.name not in ("configs", "torch_ext")]
    using = {
        path.relative_to(ROOT.parent).as_posix()
        for path in (*ROOT.rglob("*.py"), *outside)
        if any(name.startswith(BUILDERS) for name in imported_modules(path))
    }
    assert len(outside) > 5
    assert using == {f"sparse_detr/{file}" for file in BUILDING}


@pytest.mark.parametrize("path", sources("modeling"))
def test_no_condition_of_the_models_names_a_paper(path):
    named = [text for text in condition_names(path) if any(paper in text for paper in PAPERS)]
    assert named == []


def test_the_rules_look_at_something():
    """A moved folder must not turn the rules above into nothing."""
    assert all(len(sources(folder)) > 1 for folder in ALLOWED)
    detector = ROOT / "modeling/detector.py"
    assert any(name.startswith("detectron2.") for name in imported_modules(detector))
    assert "supervised" in list(condition_names(detector))
