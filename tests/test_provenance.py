"""Digests of configs and data: the same wherever the files lie, others where a number may be another."""

import json

import pytest

from sparse_detr.budget_table import file_digest
from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.data.register import register_coco_files
from sparse_detr.errors import UserError
from sparse_detr.model_zoo import get_config_file
from sparse_detr.provenance import check_one_data_set, config_digest, data_digests

YACS = "SparseDETR/sparse_detr_r50_rho30.yaml"
LAZY = "quick/sparse_detr_mnv2.py"


def load(name, *overrides):
    return load_config(get_config_file(name), overrides)


@pytest.mark.parametrize(
    ("name", "folder", "size"),
    [
        (YACS, ["OUTPUT_DIR", "elsewhere"], ["INPUT.MIN_SIZE_TEST", "333"]),
        (LAZY, ["train.output_dir=elsewhere"], ["dataloader.test.mapper.augmentations.short_size=333"]),
    ],
)
def test_a_config_is_the_same_in_another_folder_and_another_with_other_settings(name, folder, size):
    cfg = load(name)
    assert config_digest(cfg) == config_digest(load(name, *folder))
    assert config_digest(cfg) != config_digest(load(name, *size))
    assert config_digest(cfg) == config_digest(load(name))  # taking it changes nothing


@pytest.mark.parametrize("name", [YACS, LAZY])
def test_own_data_count_by_their_content_and_the_name_of_their_image_folder(tmp_path, name):
    def own(folder, text):
        (tmp_path / folder / "images").mkdir(parents=True)
        for part in ("train", "val"):
            (tmp_path / folder / f"{part}.json").write_text(json.dumps(text))
        keys = [("train_json", "train.json"), ("train_images", "images"), ("val_json", "val.json")]
        return {key: str(tmp_path / folder / file) for key, file in [*keys, ("val_images", "images")]}

    cfg, blood, trees, copy = load(name), own("blood", [1]), own("trees", [2]), own("copy", [1])
    parts = ["train", "test"]
    assert data_digests(cfg, parts, blood) == data_digests(cfg, parts, copy) != data_digests(cfg, parts, trees)
    digest = file_digest(blood["val_json"])
    assert data_digests(cfg, ["test"], blood) == {"val_json": digest, "val_images": "images"}
    with pytest.raises(UserError, match=r"gone.json \(val_json\) does not exist"):
        data_digests(cfg, parts, {"val_json": str(tmp_path / "gone.json")})


def test_a_registered_data_set_counts_by_its_file_and_has_no_digest_without_one(tmp_path):
    file = tmp_path / "val.json"
    register_coco_files(name="provenance_val", annotations=file, images=tmp_path, class_names=["cat"])
    cfg = load(LAZY, "dataloader.test.dataset.names=provenance_val")
    assert data_digests(cfg, ["test"]) == {"provenance_val": None}
    file.write_text("{}")
    assert data_digests(cfg, ["test"]) == {"provenance_val": file_digest(file)}


def test_several_data_sets_are_named_with_the_override_that_leaves_one():
    names = ["DATASETS.TEST", "('coco_2017_val', 'coco_2014_minival')"]
    with pytest.raises(UserError) as caught:
        check_one_data_set(make_run(load(YACS, *names)))
    message = str(caught.value)
    assert "evaluates on 2 data sets (coco_2017_val, coco_2014_minival)" in message
    assert message.endswith("--opts DATASETS.TEST \"('coco_2017_val',)\"")
    check_one_data_set(make_run(load(YACS, "DATASETS.TEST", "('coco_2017_val',)")))
