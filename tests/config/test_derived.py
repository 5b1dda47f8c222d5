"""The output folder follows from the config's name, the weights from the backbone."""

from pathlib import Path

import pytest
from detectron2.config import LazyConfig, get_cfg
from omegaconf import OmegaConf

from sparse_detr.config import add_detr_config, load_config
from sparse_detr.config.derived import output_dir_of
from sparse_detr.recipes import dat, mobilenet_v2, resnet, swin, swin_tiny

ROOT = Path(__file__).parents[2]
LAZY = sorted(ROOT.glob("projects/*/configs/*.py"))
BASE = f"_BASE_: {ROOT}/configs/Base-DETR.yaml\n"
R50, R101 = (f"detectron2://ImageNetPretrained/torchvision/R-{depth}.pkl" for depth in (50, 101))
SWIN = ["MODEL.BACKBONE.NAME", "build_swin_backbone", "MODEL.SWIN.SIZE"]


def test_the_output_folder_has_the_name_of_the_config():
    assert output_dir_of("/some/where/mine.v2.py") == "output/mine.v2"


@pytest.mark.parametrize("path", LAZY, ids=lambda path: path.stem)
def test_a_lazy_config_is_complete_for_detectron2s_own_loader(path):
    cfg = LazyConfig.load(str(path))
    assert cfg.train.output_dir == f"output/{path.stem}"
    backbone = cfg.model.backbone
    if path.stem.endswith("_finetune"):
        expected = {""}
    elif "stages" in backbone:
        expected = {resnet(backbone.stages.depth).weights}
    elif "image_size" in backbone:
        size = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base"}[backbone.embed_dim, len(backbone.blocks[2])]
        expected = {dat(size, image_size=backbone.image_size).weights}
    else:  # of one size and image size, from whatever images
        size = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
        same = {"size": size[backbone.embed_dim, backbone.depths[2]], "image_size": backbone.pretrain_img_size}
        expected = {
            swin(**same, pretraining=images).weights for images in ("imagenet", "imagenet22k", "imagenet22kto1k")
        }
    assert cfg.train.init_checkpoint in expected
    assert OmegaConf.to_container(cfg.train, resolve=False) == OmegaConf.to_container(cfg.train, resolve=True)


@pytest.fixture
def yaml(tmp_path):
    """Write a yaml config `mine.yaml` and load it with overrides."""

    def load(text, *overrides):
        (tmp_path / "mine.yaml").write_text(text)
        return load_config(str(tmp_path / "mine.yaml"), overrides)

    return load


def test_a_yaml_config_writes_into_the_folder_of_its_name_unless_another_is_set(yaml):
    assert yaml(BASE).OUTPUT_DIR == "output/mine"
    assert yaml(BASE + "OUTPUT_DIR: elsewhere\n").OUTPUT_DIR == "elsewhere"
    assert yaml(BASE, "OUTPUT_DIR", "elsewhere").OUTPUT_DIR == "elsewhere"


def test_detectron2s_default_output_folder_is_used_on_request(yaml):
    assert get_cfg().OUTPUT_DIR == "./output"
    assert yaml(BASE + "OUTPUT_DIR: ./output\n").OUTPUT_DIR == "./output"
    assert yaml(BASE, "OUTPUT_DIR", "./output").OUTPUT_DIR == "./output"


def test_a_dumped_yaml_config_keeps_its_folder_and_weights(yaml):
    dumped = yaml(BASE, "MODEL.RESNETS.DEPTH", "101", "OUTPUT_DIR", "elsewhere").dump()
    again = yaml(dumped)
    assert (again.OUTPUT_DIR, again.MODEL.WEIGHTS) == ("elsewhere", R101)


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        ([], R50),
        (["MODEL.RESNETS.DEPTH", "101"], R101),
        (["MODEL.BACKBONE.NAME", "build_resnet_dc5_backbone", "MODEL.RESNETS.DEPTH", "101"], R101),
        (["MODEL.BACKBONE.NAME", "build_swin_tiny_backbone"], swin_tiny().weights),
        ([*SWIN, "small"], "swin_small_imagenet.pth"),
        ([*SWIN, "large", "MODEL.SWIN.IMAGE_SIZE", "384"], "swin_large_384_imagenet22k.pth"),
        (["MODEL.BACKBONE.NAME", "build_dat_backbone", "MODEL.DAT.SIZE", "small"], "dat_small_imagenet.pth"),
        ([*SWIN, "tiny", "MODEL.SWIN.PRETRAINING", "imagenet22kto1k"], "swin_tiny_imagenet22kto1k.pth"),
    ],
)
def test_the_weights_of_a_yaml_config_follow_its_backbone(yaml, overrides, weights):
    found = yaml(BASE, *overrides).MODEL.WEIGHTS
    assert found == weights


@pytest.mark.parametrize("weights", ["", "mine.pth", R50])
def test_weights_on_the_command_line_are_not_changed(yaml, weights):
    found = yaml(BASE, *SWIN, "tiny", "MODEL.WEIGHTS", weights).MODEL.WEIGHTS
    assert found == weights


def test_own_weights_and_those_of_an_unknown_backbone_are_not_changed(yaml):
    assert yaml(BASE + "MODEL:\n  WEIGHTS: mine.pth\n", *SWIN, "tiny").MODEL.WEIGHTS == "mine.pth"
    assert yaml(BASE, "MODEL.BACKBONE.NAME", "build_mobilenet_v2_backbone").MODEL.WEIGHTS == R50
    assert mobilenet_v2().weights == ""


def test_models_of_detectron2_keep_their_weights(yaml):
    text = f"MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n  WEIGHTS: {R50}\n  RESNETS:\n    DEPTH: 101\n"
    assert yaml(text).MODEL.WEIGHTS == R50


def test_a_yaml_config_starts_from_weights_for_detectron2s_own_loader_too():
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_file(f"{ROOT}/projects/SparseDETR/configs/sparse_detr_r50_rho30.yaml")
    assert cfg.MODEL.WEIGHTS == R50
