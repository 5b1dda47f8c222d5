"""What a config says of the boxes that its model can learn and give."""

from pathlib import Path

import pytest

from sparse_detr.config import load_config
from sparse_detr.config.limits import Limits, limits_of
from sparse_detr.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("suffix", [".py", ".yaml"])
@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ("DINO/configs/dino_r50_4scale_12ep", Limits(num_queries=900, num_detections=300)),
        ("DeformableDETR/configs/deformable_detr_r50", Limits(num_queries=300, num_detections=100)),
        ("DABDETR/configs/dab_detr_r50_3patterns", Limits(num_queries=900, num_detections=300)),
    ],
)
def test_limits_are_those_of_the_model_in_either_kind(config, limits, suffix):
    assert limits_of(load_config(f"{ROOT}/projects/{config}{suffix}")) == limits


def test_limits_follow_overrides():
    quick = load_config(f"{ROOT}/configs/quick/sparse_detr_mnv2.py", ["model.queries.num_queries=7"])
    assert limits_of(quick) == Limits(num_queries=7, num_detections=100)
    yaml = f"{ROOT}/projects/DeformableDETR/configs/deformable_detr_r50.yaml"
    assert limits_of(load_config(yaml, ["TEST.DETECTIONS_PER_IMAGE", "300"])).num_detections == 300
    assert limits_of(load_config(yaml, ["MODEL.DETR.NUM_DETECTIONS", "200"])).num_detections == 200


def test_two_numbers_of_detections_are_refused():
    cfg = load_config(f"{ROOT}/projects/DeformableDETR/configs/deformable_detr_r50.yaml")
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.DETR.NUM_DETECTIONS = 300, 200
    with pytest.raises(UserError, match="TEST.DETECTIONS_PER_IMAGE is 300 and MODEL.DETR.NUM_DETECTIONS is 200"):
        limits_of(cfg)


def test_other_models_say_nothing(tmp_path):
    (tmp_path / "x.yaml").write_text("MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n")
    assert limits_of(load_config(str(tmp_path / "x.yaml"))) == Limits(num_queries=None, num_detections=None)
