"""The numbers of a trained model are never those of another one that has the same name."""

import json

import pytest
from detectron2.config import LazyConfig

from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.model_zoo import get_config_file
from sparse_detr.studies import other_rho, referred

RATIOS = {"ratio": 0.5, "ratios": [0.5], "bilinear": 0.5, "most": 0.5, "density": 4.0, "levels": [0.5]}
SCORES = {"own": 0.3, "images": 1, "AP": 20.0, "AP50": 40.0, "encoder_gigaflops": 1.0, "total_gigaflops": 2.0}


@pytest.fixture
def measured(monkeypatch):
    """Take the place of the measurements: collect what is measured."""
    done = []

    def note(result):
        done.append(result)
        return result

    monkeypatch.setattr(referred, "measure", lambda model, *_: note({"name": model.name, "seed": model.seed, **RATIOS}))
    monkeypatch.setattr(
        other_rho, "measure", lambda model, _, rho: note({"name": model.name, "seed": model.seed, "rho": rho, **SCORES})
    )
    return done


def write_training(folder, *, weights=b"weights", image="1.png", size=64):
    """Write the output folder of a training, and the annotation file that all of them name, in the folder above."""
    folder.mkdir(parents=True)
    truth = folder.parents[1] / "val.json"
    truth.write_text(json.dumps({"images": [{"file_name": image}]}))
    cfg = load_config(get_config_file("quick/sparse_detr_mnv2.py"))
    data = cfg.dataloader.register[1]
    data.name, data.annotations, data.images = "trained_val", str(truth), "images"
    cfg.dataloader.test.dataset.names = data.name
    cfg.dataloader.test.mapper.augmentations.short_size = size
    cfg.train.output_dir = str(folder)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    (folder / "model_final.pth").write_bytes(weights)


@pytest.mark.parametrize("study", [["referred"], ["other-rho", "--rhos", "0.3", "0.5"]], ids=lambda study: study[0])
@pytest.mark.parametrize("way", ["--runs", "--config-file"])
@pytest.mark.parametrize(
    ("other", "named"), [({"weights": b"others"}, "weights"), ({"size": 96}, "config"), ({"image": "2.png"}, "data")]
)
def test_another_model_of_the_same_name_does_not_get_its_numbers(tmp_path, measured, capsys, study, way, other, named):
    def run(folder):
        files = ["--config-file", f"{folder}/config.yaml", "--weights", f"{folder}/model_final.pth"]
        models = ["--runs", str(folder)] if way == "--runs" else files
        return main(["study", *study, *models, "--output", str(tmp_path / "out")])

    first, second = tmp_path / "a" / "dense", tmp_path / "b" / "dense"
    write_training(first)
    assert run(first) == 0
    number = len(measured)
    assert run(first) == 0  # nothing has changed
    write_training(second, **other)
    capsys.readouterr()
    assert run(second) == 2
    assert f"made from other files ({named})" in capsys.readouterr().err
    assert len(measured) == number


def test_a_training_in_another_folder_keeps_its_numbers(tmp_path, measured):
    for folder in (tmp_path / "a" / "dense", tmp_path / "b" / "dense"):
        write_training(folder)
    command = ["study", "referred", "--output", str(tmp_path / "out"), "--runs"]
    assert main([*command, str(tmp_path / "a" / "dense")]) == 0
    assert main([*command, str(tmp_path / "b" / "dense")]) == 0
    assert len(measured) == 1


def test_several_data_sets_are_refused(tmp_path, monkeypatch, capsys):
    write_training(tmp_path / "a" / "dense")
    names = "dataloader.test.dataset.names=[trained_val,trees_val]"
    command = ["study", "referred", "--runs", str(tmp_path / "a" / "dense"), "--output", str(tmp_path / "out")]
    assert main([*command, "--opts", names]) == 2
    message = "evaluates on 2 data sets (trained_val, trees_val), but this command measures one; choose it: --opts "
    assert f"{message}dataloader.test.dataset.names=trained_val" in capsys.readouterr().err


def test_weights_that_are_not_there_are_named(tmp_path, capsys):
    write_training(tmp_path / "a" / "dense")
    files = ["--config-file", str(tmp_path / "a" / "dense" / "config.yaml"), "--weights", "gone.pth"]
    assert main(["study", "referred", *files, "--output", str(tmp_path / "out")]) == 2
    assert "--weights gone.pth does not exist" in capsys.readouterr().err
