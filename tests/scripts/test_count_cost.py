import pytest


@pytest.fixture
def script(load_script):
    return load_script("count_cost")


def test_configs_of_one_model_share_a_row_unless_they_train_other_parts_of_it(script):
    folder = script.ROOT / "projects/DABDETR/configs"
    names = ["dab_detr_r50", "dab_detr_detrex_r50", "dab_detr_r50_dc5", "dab_detr_r50_dc5_fixed_centers"]
    groups = script.different_models([folder / f"{name}.py" for name in (*names, "dab_detr_r50")])
    assert [group for _, group in groups] == [["dab_detr_r50", "dab_detr_r50"], *([name] for name in names[1:])]


def test_a_table_is_put_between_its_markers(script, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table x -->\nold\n<!-- end x -->\nb\n<!-- table y -->\n<!-- end y -->\n")
    script.write_table(readme, "x", ["| 1 |", r"| \2 |"])
    assert readme.read_text() == (
        "a\n<!-- table x -->\n| 1 |\n| \\2 |\n<!-- end x -->\nb\n<!-- table y -->\n<!-- end y -->\n"
    )


def test_every_config_in_the_table_of_encoders_exists(script):
    assert all((script.ROOT / "projects" / config).is_file() for config in script.ENCODERS)
