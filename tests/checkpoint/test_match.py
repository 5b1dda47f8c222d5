"""Comparison of a state dict with a model, and loading for fine-tuning."""

import pytest
import torch
from torch import nn

from sparse_detr.checkpoint import convert_checkpoint, load_for_finetuning, match_report
from sparse_detr.errors import UserError
from tests.golden.cases import GoldenCase


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.class_embed = nn.Linear(4, num_classes)
        self.box_embed = nn.Linear(4, 4)


class Detector(nn.Module):
    """A body and two heads, which are one module if `tied`."""

    def __init__(self, num_classes=3, tied=False):
        super().__init__()
        self.body = nn.Linear(2, 4)
        first = Head(num_classes)
        self.heads = nn.ModuleList([first, first if tied else Head(num_classes)])


def test_every_name_is_sorted_into_one_group():
    weights = Detector().state_dict()
    del weights["body.bias"]
    weights |= {"extra": torch.zeros(1), "body.weight": torch.zeros(4, 3)}
    report = match_report(Detector(), weights)
    assert report.missing == ("body.bias",)
    assert report.unexpected == ("extra",)
    assert report.misshapen == {"body.weight": ((4, 3), (4, 2))}
    assert len(report.matched) == 8
    assert report.model_share == 0.8
    assert report.file_share == 0.8
    assert "missing: body.bias" in str(report)
    assert "body.weight: file [4, 3], model [4, 2]" in str(report)


def test_finetuning_skips_and_lists_class_rows_and_loads_the_rest():
    source, model = Detector(num_classes=5), Detector(num_classes=3)
    untouched = model.heads[0].class_embed.weight.detach().clone()
    report = load_for_finetuning(model, source.state_dict())
    assert report.skipped_classes == tuple(
        f"heads.{i}.class_embed.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    )
    torch.testing.assert_close(model.heads[1].box_embed.weight, source.heads[1].box_embed.weight)
    torch.testing.assert_close(model.heads[0].class_embed.weight, untouched)


def test_an_entry_of_another_shape_is_an_error_and_changes_nothing():
    model = Detector()
    before = model.body.bias.detach().clone()
    weights = Detector().state_dict() | {"body.weight": torch.zeros(9, 2)}
    with pytest.raises(UserError, match=r"body\.weight: file \[9, 2\], model \[4, 2\]"):
        load_for_finetuning(model, weights)
    torch.testing.assert_close(model.body.bias, before)


def test_separate_weights_for_one_shared_parameter_are_an_error():
    with pytest.raises(UserError, match="separate weights where the model shares one"):
        load_for_finetuning(Detector(tied=True), Detector(tied=False).state_dict())


def test_equal_copies_of_a_shared_parameter_load():
    source, model = Detector(tied=True), Detector(tied=True)
    report = load_for_finetuning(model, source.state_dict())
    assert report.untied == ()
    assert report.model_share == 1
    torch.testing.assert_close(model.heads[1].box_embed.bias, source.heads[0].box_embed.bias)


def test_a_file_that_shares_no_name_points_to_convert():
    with pytest.raises(UserError, match="sparse-detr convert"):
        load_for_finetuning(Detector(), {"transformer.level_embed": torch.zeros(4, 2)})


def test_long_lists_are_shortened_in_the_report():
    report = match_report(nn.Identity(), {f"entry{i}": torch.zeros(1) for i in range(40)})
    assert str(report).count("unexpected:") == 13
    assert "... and 28 more" in str(report)


def test_a_public_file_finetunes_on_three_classes():
    from detectron2.config import instantiate

    from sparse_detr.recipes import sparse_detr

    weights = convert_checkpoint(GoldenCase("sparse_detr_r50_rho_0.1").state_dict()).state_dict
    model = instantiate(sparse_detr(num_classes=3, behavior="released"))
    report = load_for_finetuning(model, weights)
    assert len(report.skipped_classes) == 2 * (6 + 1 + 5)
    assert len(report.matched) == len(weights) - 24
    torch.testing.assert_close(model.tokenizer.level_embed.detach(), weights["tokenizer.level_embed"])
