"""The command `sparse-detr convert`."""

import argparse
import pickle

import numpy as np
import pytest
import torch

from sparse_detr.checkpoint import load_file
from sparse_detr.cli import convert
from sparse_detr.errors import UserError


@pytest.fixture
def public_file(tmp_path):
    path = tmp_path / "public.pth"
    weights = {
        "transformer.level_embed": torch.zeros(1, 2),
        "input_proj.0.0.weight": torch.ones(2, 3, 1, 1),
        "transformer.decoder.layers.0.norm1.weight": torch.ones(2),
        "class_embed.0.weight": torch.arange(91.0)[:, None],
        "class_embed.0.bias": torch.arange(91.0),
    }
    torch.save({"model": weights, "args": argparse.Namespace(num_queries=300)}, path)
    return path


def run(*words):
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args([str(word) for word in words]))


def test_convert_writes_weights_and_prints_the_recipe_that_they_need(public_file, tmp_path, capsys):
    output = tmp_path / "new" / "converted.pth"
    assert run(public_file, output, "--classes", 80) == 0
    written = load_file(output)
    assert written["model"]["decoder_heads.0.class_embed.bias"][:2].tolist() == [1, 2]
    assert written["metadata"]["arguments"]["num_classes"] == 80
    printed = capsys.readouterr().out
    assert "recipe:    deformable_detr" in printed
    assert "num_queries=300" in printed
    assert f"wrote {output}" in printed


def test_an_existing_file_is_kept_without_force(public_file, tmp_path):
    output = tmp_path / "kept.pth"
    output.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        run(public_file, output)
    assert output.read_text() == "mine"
    assert run(public_file, output, "--force") == 0


def test_averaged_weights_are_converted_on_request(public_file, tmp_path):
    checkpoint = load_file(public_file)
    averaged = {f"module.{name}": value + 1 for name, value in checkpoint["model"].items()}
    torch.save({**checkpoint, "ema": {"n_averaged": torch.tensor(2), **averaged}}, public_file)
    assert run(public_file, tmp_path / "plain.pth") == 0
    assert run(public_file, tmp_path / "averaged.pth", "--ema") == 0
    plain, averaged = (load_file(tmp_path / name)["model"] for name in ("plain.pth", "averaged.pth"))
    assert all(torch.equal(averaged[name], value + 1) for name, value in plain.items())


def test_averaged_weights_of_this_projects_trainings_are_written_alone(tmp_path):
    plain = {"tokenizer.level_embed": torch.zeros(1, 2)}
    averaged = {"n_averaged": torch.tensor(2), "module.tokenizer.level_embed": torch.ones(1, 2)}
    torch.save({"model": plain, "ema": averaged, "iteration": 7}, tmp_path / "model_final.pth")
    assert run(tmp_path / "model_final.pth", tmp_path / "averaged.pth", "--ema") == 0
    assert load_file(tmp_path / "averaged.pth")["model"]["tokenizer.level_embed"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("file/converted.pth", "is a file, but a folder is needed"),
        ("folder", "cannot write the file .*folder: a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(public_file, tmp_path, output, words):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=words):
        run(public_file, tmp_path / output, "--force")


@pytest.mark.parametrize("share", ["1.5", "-1", "nan"])
def test_a_min_match_outside_0_to_1_is_refused(public_file, tmp_path, share):
    with pytest.raises(UserError, match="--min-match .* is no share"):
        run(public_file, tmp_path / "converted.pth", f"--min-match={share}")


def test_files_of_the_model_zoo_need_no_conversion(tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"conv1_w": np.ones(2, np.float32)}))
    with pytest.raises(UserError, match="needs no conversion; give it as train.init_checkpoint"):
        run(tmp_path / "R-50.pkl", tmp_path / "converted.pth")


def test_too_many_unknown_entries_fail_and_write_nothing(public_file, tmp_path, capsys):
    checkpoint = load_file(public_file)
    checkpoint["model"]["label_enc.weight"] = torch.zeros(3)
    torch.save(checkpoint, public_file)
    output = tmp_path / "converted.pth"
    assert run(public_file, output) == 1
    assert "only 83.3% of the file is known" in capsys.readouterr().out
    assert not output.exists()
    assert run(public_file, output, "--min-match", 0.8) == 0
    assert "unknown entries that are left out: 1; the model may lack as many" in capsys.readouterr().out


def test_aliases_that_differ_fail(public_file, tmp_path):
    checkpoint = load_file(public_file)
    checkpoint["model"]["transformer.decoder.class_embed.0.bias"] = torch.ones(91)
    torch.save(checkpoint, public_file)
    with pytest.raises(UserError, match="differ by up to 89"):
        run(public_file, tmp_path / "converted.pth")


def test_backbone_weights_are_checked_against_the_backbone_alone(tmp_path, monkeypatch, capsys):
    weights = {
        "patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
        "layers.0.blocks.0.attn.qkv.bias": torch.zeros(288),
        "norm.weight": torch.ones(768),
    }
    torch.save({"model": weights}, tmp_path / "swin.pth")
    model = torch.nn.Module()
    model.head = torch.nn.Linear(2, 2)
    model.backbone = torch.nn.ParameterDict({"other": torch.zeros(1)})
    monkeypatch.setattr(convert, "_model", lambda config_file: model)
    assert run(tmp_path / "swin.pth", tmp_path / "out.pth", "--config-file", "some.py") == 1
    printed = capsys.readouterr().out
    assert "missing: other" in printed
    assert "head" not in printed
    assert "only 0.0% of the backbone weights fit" in printed


@pytest.mark.parametrize(("filled", "code"), [(True, 0), (False, 1)])
def test_the_config_is_compared_by_the_share_of_its_model_that_is_filled(
    public_file, tmp_path, monkeypatch, capsys, filled, code
):
    model = torch.nn.Module()
    model.tokenizer = torch.nn.Module()
    model.tokenizer.level_embed = torch.nn.Parameter(torch.zeros(1, 2) if filled else torch.zeros(4, 2))
    monkeypatch.setattr(convert, "_model", lambda config_file: model)
    assert run(public_file, tmp_path / "converted.pth", "--config-file", "some.py") == code
    assert f"{1 - code} matched" in capsys.readouterr().out
