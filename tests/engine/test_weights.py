"""Loading of weights into a model."""

import math
import os
import pickle

import pytest
import torch

from sparse_detr.engine.checkpointer import TrainingCheckpointer
from sparse_detr.engine.weights import check_finite_weights, load_weights
from sparse_detr.errors import UserError
from tests.engine.toys import ToyDetector


def save(path, checkpoint):
    torch.save(checkpoint, path)
    return str(path)


def weights_plus(value):
    return {name: entry + value for name, entry in ToyDetector().state_dict().items()}


def loaded(path, **options):
    model = ToyDetector()
    load_weights(model, path, skip_other_classes=False, **options)
    return model.head.bias.item() - ToyDetector().head.bias.item()


@pytest.mark.parametrize(("ema", "difference"), [(False, 1), (True, 2)])
def test_plain_or_averaged_weights_are_loaded_as_asked(tmp_path, ema, difference):
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in weights_plus(2).items()}}
    path = save(tmp_path / "both.pth", {"model": weights_plus(1), "ema": averaged})
    assert loaded(path, ema=ema) == pytest.approx(difference)


def test_an_error_about_the_content_of_a_file_names_the_file(tmp_path):
    path = save(tmp_path / "optimizer.pth", {"optimizer": {"state": {}}})
    with pytest.raises(UserError, match=r"optimizer\.pth: no weights found: it holds optimizer \(dict\)"):
        loaded(path)


class Intruder:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_resuming_from_a_pickle_runs_no_code(tmp_path):
    (tmp_path / "model_0000001.pkl").write_bytes(pickle.dumps({"model": Intruder(tmp_path / "created")}))
    (tmp_path / "last_checkpoint").write_text("model_0000001.pkl")
    checkpointer = TrainingCheckpointer(ToyDetector(), str(tmp_path))
    with pytest.raises(UserError, match="could run code"):
        checkpointer.load(str(tmp_path / "model_0000001.pkl"))
    assert not (tmp_path / "created").exists()


def test_names_of_a_model_zoo_are_matched_by_their_ends(tmp_path):
    arrays = {"weight": torch.full((1, 8), 3.0).numpy(), "bias": torch.full((1,), 3.0).numpy()}
    content = {"model": arrays, "__author__": "me", "matching_heuristics": True}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    model = torch.nn.ModuleDict({"stem": torch.nn.Linear(8, 1)})
    load_weights(model, tmp_path / "zoo.pkl", skip_other_classes=False)
    assert model["stem"].weight.tolist() == [[3.0] * 8]


def test_a_model_zoo_file_of_another_model_is_refused(tmp_path):
    content = {"model": {"other": torch.ones(1).numpy()}, "__author__": "me", "matching_heuristics": True}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="no entry of the checkpoint has a name of this model"):
        loaded(tmp_path / "zoo.pkl")


def test_whole_numbers_are_no_weights(tmp_path):
    weights = {**weights_plus(0), "head.bias": torch.ones(1, dtype=torch.int8)}
    with pytest.raises(UserError, match=r"head\.bias is of 8-bit numbers, which need a scale"):
        loaded(save(tmp_path / "int8.pth", weights))


def test_a_path_may_contain_a_question_mark(tmp_path):
    assert loaded(save(tmp_path / "what?#.pth", {"model": weights_plus(1)})) == pytest.approx(1)


def test_an_address_that_cannot_be_fetched_is_named():
    with pytest.raises(UserError, match=r"unknown://x\.pkl cannot be fetched"):
        loaded("unknown://x.pkl")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is a folder; give a checkpoint in it"):
        loaded(tmp_path)


def test_names_of_one_parameter_may_both_be_nan(tmp_path):
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(1, 1)})
    model["other"] = model["one"]
    weights = {name: torch.full_like(value, math.nan) for name, value in model.state_dict().items()}
    load_weights(model, save(tmp_path / "nan.pth", weights), skip_other_classes=False)
    with pytest.raises(UserError, match=r"some\.pth holds NaN or infinite values in 4 of 4 tensors: one\.weight"):
        check_finite_weights(model, "some.pth")


def test_finite_weights_pass_the_check():
    check_finite_weights(ToyDetector(), "some.pth")
