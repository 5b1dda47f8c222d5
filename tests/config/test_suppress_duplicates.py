"""The suppression of duplicates is set by a lazy and by a yaml key, and reaches every command through the config."""

import pytest
import torch
from detectron2.config import get_cfg, instantiate

from sparse_detr import Predictor
from sparse_detr.cli.main import main
from sparse_detr.config import add_detr_config, load_config
from sparse_detr.errors import UserError
from sparse_detr.recipes import RECIPES, resnet
from sparse_detr.recipes.meta_arch import recipe_config
from tests.cli.test_demo import COMMON, CONFIG, YAML
from tests.cli.test_demo import folder as folder  # a fixture
from tests.meta import meta_device

LAZY_KEY, YAML_KEY = "model.postprocess.suppress_duplicates=0.7", ["TEST.SUPPRESS_DUPLICATES", "0.7"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_yaml_key_sets_every_recipe_and_is_off_by_default(name):
    cfg = get_cfg()
    add_detr_config(cfg)
    assert recipe_config(name, cfg, resnet(50, num_maps=1)).postprocess.get("suppress_duplicates") is None
    cfg.TEST.SUPPRESS_DUPLICATES = 0.7
    postprocess = recipe_config(name, cfg, resnet(50, num_maps=1)).postprocess
    assert postprocess.suppress_duplicates == 0.7
    del postprocess.classification
    assert instantiate(postprocess).suppress_duplicates == 0.7


@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_both_kinds_of_config_build_the_same(tmp_path, kind):
    path = tmp_path / ("tiny.py" if kind == "lazy" else "tiny.yaml")
    text = CONFIG.format(coco=str(COMMON / "coco.py"), schedule=str(COMMON / "schedule.py"), recipe="sparse_detr")
    path.write_text(text if kind == "lazy" else YAML)
    from sparse_detr.config.model import build_detector

    with meta_device():
        on, off = (
            build_detector(load_config(str(path), keys), device="meta")
            for keys in ([LAZY_KEY] if kind == "lazy" else YAML_KEY, [])
        )
    assert (on.postprocess.suppress_duplicates, off.postprocess.suppress_duplicates) == (0.7, None)


def test_a_predictor_suppresses_in_every_form(folder):
    image, options = "images/wide.png", {"device": "cpu"}
    on = load_config("sparse.py", [LAZY_KEY])
    weights = torch.load("sparse.pth")["model"]
    for value in weights.values():
        if value.shape == (4,):  # the last bias of boxes: make width and height large, so that they overlap
            value[2:] += 3
    torch.save({"model": weights}, "sparse.pth")
    everything = Predictor("sparse.py", "sparse.pth", **options)(image)
    plain, optimized = (Predictor(on, "sparse.pth", optimize=form, **options)(image) for form in (None, "fp32"))
    assert 0 < len(plain) < len(everything)
    assert torch.isin(plain.scores, everything.scores).all()
    assert len(optimized) == len(plain)
    Predictor(on, "sparse.pth", **options).save("saved")
    assert torch.equal(Predictor("saved", **options)(image).scores, plain.scores)


def test_an_export_is_refused_with_the_remedy(folder, capsys):
    files = ["--config-file", "sparse.py", "--weights", "sparse.pth", "--output", "model.pt2", "--images", "images"]
    assert main(["export", *files, "--opts", LAZY_KEY]) == 2
    message = capsys.readouterr().err
    assert "suppress_duplicates is 0.7, but a file gives as many detections of every image" in message
    assert "model.postprocess.suppress_duplicates=null" in message
    assert not (folder / "model.pt2").exists()


def test_a_model_of_detectron2_does_not_read_the_key(tmp_path):
    (tmp_path / "x.yaml").write_text("MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n")
    with pytest.raises(UserError, match="SUPPRESS_DUPLICATES is 0.7, but GeneralizedRCNN does not read it; remove"):
        load_config(str(tmp_path / "x.yaml"), YAML_KEY)
