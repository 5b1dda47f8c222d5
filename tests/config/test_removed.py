"""Who names a config that is gone is told what to use; that it is the same is tested in `test_twins.py`."""

import pytest

from sparse_detr.config import load_config
from sparse_detr.errors import UserError


def test_a_yaml_that_is_gone_is_told_with_the_overrides_that_say_the_same():
    with pytest.raises(UserError) as failure:
        load_config("projects/SparseDETR/configs/sparse_detr_r50_rho10.yaml")
    assert str(failure.value) == (
        "projects/SparseDETR/configs/sparse_detr_r50_rho10.yaml is gone; "
        "use projects/SparseDETR/configs/sparse_detr_r50_rho30.yaml with "
        "MODEL.DETR.KEEP_RATIO 0.1 OUTPUT_DIR output/sparse_detr_r50_rho10, "
        "or the lazy config projects/SparseDETR/configs/sparse_detr_r50_rho10.py"
    )


def test_values_that_a_shell_would_read_are_quoted():
    with pytest.raises(UserError, match=r'SOLVER.STEPS "\(147860,\)" OUTPUT_DIR output/dino_r50_4scale_24ep'):
        load_config("dino_r50_4scale_24ep.yaml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SparseDETR/efficient_detr_r50.py", "SparseDETR/deformable_detr_topk_r50.py"),
        ("configs/quick/efficient_detr_mnv2.py", "configs/quick/deformable_detr_topk_mnv2.py"),
    ],
)
def test_a_renamed_config_is_told_its_name(old, new):
    with pytest.raises(UserError, match=f"^{old} is now {new}$"):
        load_config(old)


def test_a_renamed_yaml_is_told_the_overrides_and_the_name_of_the_lazy_config():
    with pytest.raises(UserError, match="TWO_STAGE memory .*, or the lazy config deformable_detr_topk_r50.py"):
        load_config("efficient_detr_r50.yaml")


def test_a_config_of_ones_own_may_have_such_a_name(tmp_path):
    (tmp_path / "sparse_detr_r50_rho10.yaml").write_text("SEED: 5\n")
    assert load_config(str(tmp_path / "sparse_detr_r50_rho10.yaml")).SEED == 5


def test_a_base_that_is_gone_is_told_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: focus_detr_r50_24ep.yaml\n")
    with pytest.raises(
        UserError, match=r"mine.yaml: .*focus_detr_r50_24ep.yaml is gone; use .*focus_detr_r50_36ep.yaml"
    ):
        load_config(str(tmp_path / "mine.yaml"))
