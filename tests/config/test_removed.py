"""An error for a removed config names its successor; `test_twins.py` tests that the two are equal."""

from pathlib import Path

import pytest

from sparse_detr.config import load_config
from sparse_detr.errors import UserError

ROOT = Path(__file__).parents[2]


def test_for_a_removed_yaml_the_equal_overrides_are_named():
    with pytest.raises(UserError) as failure:
        load_config("projects/SparseDETR/configs/sparse_detr_r50_rho10.yaml")
    assert str(failure.value) == (
        "projects/SparseDETR/configs/sparse_detr_r50_rho10.yaml is gone; "
        "use projects/SparseDETR/configs/sparse_detr_r50_rho30.yaml with "
        "MODEL.DETR.KEEP_RATIO 0.1 OUTPUT_DIR output/sparse_detr_r50_rho10, "
        "or the lazy config projects/SparseDETR/configs/sparse_detr_r50_rho10.py"
    )


def test_values_with_a_meaning_to_a_shell_are_quoted():
    with pytest.raises(UserError, match=r'SOLVER.STEPS "\(147860,\)" OUTPUT_DIR output/dino_r50_4scale_24ep'):
        load_config("dino_r50_4scale_24ep.yaml")


def test_for_a_renamed_config_the_new_name_is_named():
    old, new = "SparseDETR/efficient_detr_r50.py", "SparseDETR/deformable_detr_topk_r50.py"
    with pytest.raises(UserError, match=f"^{old} is now {new}$"):
        load_config(old)


def test_the_former_name_of_a_config_may_be_that_of_another_model_today():
    assert "EfficientDETR" in load_config(f"{ROOT}/projects/EfficientDETR/configs/efficient_detr_r50.yaml").dump()


def test_for_a_renamed_yaml_overrides_and_lazy_config_are_named():
    with pytest.raises(UserError, match="TWO_STAGE memory .*, or the lazy config deformable_detr_topk_r50.py"):
        load_config("efficient_detr_r50.yaml")


def test_an_own_config_may_have_a_removed_name(tmp_path):
    (tmp_path / "sparse_detr_r50_rho10.yaml").write_text("SEED: 5\n")
    assert load_config(str(tmp_path / "sparse_detr_r50_rho10.yaml")).SEED == 5


def test_for_a_removed_base_the_successor_is_named_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: focus_detr_r50_24ep.yaml\n")
    with pytest.raises(
        UserError, match=r"mine.yaml: .*focus_detr_r50_24ep.yaml is gone; use .*focus_detr_r50_36ep.yaml"
    ):
        load_config(str(tmp_path / "mine.yaml"))
