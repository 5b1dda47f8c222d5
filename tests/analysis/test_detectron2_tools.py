"""The tools of Detectron2 run with our configs unchanged.

The pinned package also has the scripts of Detectron2, as modules of `tools`; with another Detectron2, their tests are
skipped.
"""

import json
import logging
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.config import CfgNode, defaults, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators, parameter_count_table
from PIL import Image

from sparse_detr import model_zoo
from sparse_detr.config import add_detr_config, load_config
from sparse_detr.env import setup_environment
from sparse_detr.recipes import mobilenet_v2, sparse_detr

YAML = "SparseDETR/sparse_detr_r50_rho30.yaml"
LAZY = "SparseDETR/sparse_detr_r50_rho30.py"
SIZE = 96
# Keys that make the model of the paper and its training small.
SMALL = ["MODEL.BACKBONE.NAME", "build_mobilenet_v2_backbone", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
SMALL += ["MODEL.DETR.NUM_CLASSES", "2", "MODEL.DETR.EMBED_DIM", "64", "MODEL.DETR.NUM_QUERIES", "10"]
SMALL += ["MODEL.DETR.ENCODER_LAYERS", "1", "MODEL.DETR.DECODER_LAYERS", "1", "DATALOADER.NUM_WORKERS", "0"]
SMALL += ["INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MIN_SIZE_TEST", f"{SIZE}", "INPUT.CROP.ENABLED", "False"]
SMALL += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0"]


@pytest.fixture
def data_set(tmp_path):
    """Make four images of noise with a box each, registered as a COCO data set, and a folder `output`."""
    (tmp_path / "output").mkdir()
    annotations = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        box = {"bbox": [20, 20, 40, 30], "area": 1200, "iscrowd": 0, "category_id": 1 + number % 2}
        annotations.append({"id": number + 1, "image_id": number, **box})
    images = [{"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE} for number in range(4)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    register_coco_instances("tools_test", {}, str(path), str(tmp_path))
    yield "tools_test"
    DatasetCatalog.remove("tools_test")
    MetadataCatalog.remove("tools_test")


def small_yaml(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(YAML))
    cfg.merge_from_list([*SMALL, "DATASETS.TRAIN", "('tools_test',)", "DATASETS.TEST", "('tools_test',)"])
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def small_lazy(tmp_path: Path):
    cfg = load_config(
        model_zoo.get_config_file(LAZY),
        [
            "train.device=cpu",
            f"train.output_dir={tmp_path / 'output'}",
            "train.init_checkpoint=",
            "train.max_iter=2",
            "dataloader.train.dataset.names=tools_test",
            "dataloader.train.total_batch_size=2",
            "dataloader.train.num_workers=0",
            f"dataloader.train.mapper.augmentations.short_sizes=[{SIZE}]",
            "dataloader.train.mapper.augmentations.crop_range=null",
            "dataloader.test.dataset.names=tools_test",
            "dataloader.test.num_workers=0",
            f"dataloader.test.mapper.augmentations.short_size={SIZE}",
        ],
    )
    cfg.model = sparse_detr(
        backbone=mobilenet_v2(), num_classes=2, embed_dim=64, num_queries=10, encoder_layers=1, decoder_layers=1
    )
    return cfg


def test_the_environment_module_lets_detectron2_read_our_yaml_and_build_it():
    script = (
        "from detectron2.config import get_cfg\n"
        "from detectron2.modeling import build_model\n"
        "from detectron2.utils.analysis import parameter_count_table\n"
        "import sys\n"
        "cfg = get_cfg()\n"
        "cfg.merge_from_file(sys.argv[1])\n"
        "cfg.merge_from_list(sys.argv[2:])\n"
        "print(parameter_count_table(build_model(cfg)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, model_zoo.get_config_file(YAML), *SMALL],
        env={**os.environ, "DETECTRON2_ENV_MODULE": "sparse_detr.env"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "selector.scorer" in result.stdout


def test_the_default_predictor_takes_bgr_images_of_any_size(data_set, tmp_path):
    predictor = DefaultPredictor(small_yaml(tmp_path))
    instances = predictor(np.zeros((50, 70, 3), np.uint8))["instances"]
    assert isinstance(instances, Instances)
    assert instances.image_size == (50, 70)
    assert instances.pred_boxes.tensor[:, 2].max() <= 70


def test_the_default_trainer_trains_on_our_yaml(data_set, tmp_path):
    trainer = DefaultTrainer(small_yaml(tmp_path))
    trainer.train()
    assert (tmp_path / "output" / "model_final.pth").is_file()


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_evaluation_and_analysis_take_both_kinds_of_config(data_set, tmp_path, kind):
    if kind == "yaml":
        cfg = small_yaml(tmp_path)
        model, loader = build_model(cfg), build_detection_test_loader(cfg, data_set)
        evaluator = COCOEvaluator(data_set, tasks=("bbox",), output_dir=str(tmp_path))
    else:
        cfg = small_lazy(tmp_path)
        model, loader = instantiate(cfg.model), instantiate(cfg.dataloader.test)
        evaluator = instantiate(cfg.dataloader.evaluator)
    assert "AP50" in inference_on_dataset(model, loader, evaluator)["bbox"]
    model.eval()
    batch = next(iter(loader))
    assert FlopCountAnalysis(model, batch).unsupported_ops_warnings(False).total() > 0
    assert sum(activation_count_operators(model, batch).values()) > 0
    assert "decoder_heads" in parameter_count_table(model)


def script(name: str) -> ModuleType:
    """Import a script of Detectron2's `tools/`, unmodified, to call its functions in this process."""
    return pytest.importorskip(f"tools.{name}", reason="this Detectron2 came without its scripts")


@pytest.fixture
def environment_module(monkeypatch):
    """Do what `DETECTRON2_ENV_MODULE=sparse_detr.env` does at `import detectron2`, and undo it after the test."""
    monkeypatch.setattr(defaults, "_C", defaults._C.clone())
    setup_environment()


def yaml_arguments(tmp_path: Path) -> Namespace:
    data = ["DATASETS.TRAIN", "('tools_test',)", "DATASETS.TEST", "('tools_test',)"]
    return arguments(model_zoo.get_config_file(YAML), [*SMALL, *data, "OUTPUT_DIR", str(tmp_path / "output")])


def lazy_arguments(tmp_path: Path) -> Namespace:
    overrides = ["model.num_classes=2", "train.device=cpu", "train.init_checkpoint=", "train.max_iter=2"]
    overrides += [f"train.output_dir={tmp_path / 'output'}", "dataloader.train.total_batch_size=2"]
    overrides += [f"dataloader.{split}.dataset.names=tools_test" for split in ("train", "test")]
    return arguments(model_zoo.get_config_file("quick/sparse_detr_mnv2.py"), overrides)


def arguments(config_file: str, opts: list[str]) -> Namespace:
    return Namespace(config_file=config_file, opts=opts, resume=False, eval_only=False, num_inputs=2)


def test_plain_train_net_trains_and_evaluates_our_yaml(data_set, environment_module, tmp_path):
    scores = script("plain_train_net").main(yaml_arguments(tmp_path))
    assert "AP50" in scores["bbox"]
    assert (tmp_path / "output" / "model_final.pth").is_file()


def test_lazyconfig_train_net_trains_and_evaluates_our_lazy_config(data_set, tmp_path):
    script("lazyconfig_train_net").main(lazy_arguments(tmp_path))
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert "bbox/AP50" in (tmp_path / "output" / "metrics.json").read_text()


@pytest.mark.parametrize("given", [yaml_arguments, lazy_arguments])
def test_analyze_model_counts_the_attention_with_both_kinds_of_config(
    data_set, environment_module, tmp_path, monkeypatch, caplog, given
):
    tool = script("analyze_model")
    monkeypatch.setattr(tool, "args", given(tmp_path), raising=False)  # a global of the script
    cfg = tool.setup(tool.args)
    logging.getLogger("detectron2").addHandler(caplog.handler)  # it passes nothing on
    with caplog.at_level(logging.INFO, logger="detectron2"):
        for task in (tool.do_flop, tool.do_activation, tool.do_parameter, tool.do_structure):
            task(cfg)
    logging.getLogger("detectron2").removeHandler(caplog.handler)
    (operators,) = (text for text in caplog.messages if text.startswith("Average GFlops"))
    assert "attention" in operators
    assert "selector.scorer" in caplog.text
