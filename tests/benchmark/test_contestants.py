"""Our models as contestants: their parts, budgets, forms and FLOPs."""

import copy
import json
import sys
import types

import pytest
import torch

from sparse_detr.analysis.cost import gigaflops
from sparse_detr.benchmark.contestants import Contestant, our_contestants, parts_of
from sparse_detr.benchmark.images import ImageStream
from sparse_detr.benchmark.timing import PartTimer
from sparse_detr.errors import UserError
from tests.modeling.tiny import MODELS, build, picture


@pytest.fixture
def stand_in(monkeypatch):
    """A module `sparse_detr.inference` whose `optimize_to` copies the model and remembers the precision."""
    module, calls = types.ModuleType("sparse_detr.inference"), []

    def optimize_to(model, precision):
        calls.append(precision)
        return copy.deepcopy(model)

    module.optimize_to = optimize_to
    monkeypatch.setitem(sys.modules, "sparse_detr.inference", module)
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_every_model_take_time_and_sum_to_the_whole(name):
    model = build(name, dtype=torch.float32).eval()
    (contestant,) = our_contestants(model, name, is_trained=False)
    assert {"backbone", "tokenizer", "selection", "encoder", "queries", "decoder"} == set(contestant.parts)
    batch = [picture(96, 64), picture(64, 96)]
    times = PartTimer(contestant.modules())(lambda: contestant.detect(batch))
    assert all(times[part] > 0 for part in contestant.parts)
    assert times["rest"] > 0  # pre- and post-processing


@pytest.mark.parametrize("name", ["sparse", "imfa", "dino", "anchor"])
def test_the_flops_of_the_parts_sum_to_those_of_the_model(name):
    model = build(name, dtype=torch.float32).eval()
    (contestant,) = our_contestants(model, name, is_trained=False)
    image = picture(96, 64)
    found, expected = contestant.gigaflops(image), gigaflops(model, image["image"])
    assert sum(found.values()) == pytest.approx(expected["total"])
    assert found["backbone"] > 0
    assert found["encoder"] > 0
    assert 0 <= found["rest"] < 0.2 * expected["total"]
    inside = found["encoder"] if name == "imfa" else 0  # its encoder layers run between those of the decoder
    assert found["decoder"] + inside == pytest.approx(expected["decoder"])


def test_every_budget_is_a_contestant_and_costs_what_it_should():
    small, half = our_contestants(build("sparse", dtype=torch.float32), "s", is_trained=True, budgets=(0.1, 0.5))
    assert [small.name, half.name] == ["s, keep 10 %", "s, keep 50 %"]
    image = picture(96, 64)
    assert small.gigaflops(image)["encoder"] < half.gigaflops(image)["encoder"]
    (levels,) = our_contestants(small.model, "s", is_trained=True, budgets=("levels:0.1,0.5,1,1",))
    assert levels.name == "s, keep levels:0.1,0.5,1,1"
    alone = small.model.outputs([image], 0.5, attention_map=False)
    assert torch.equal(
        half.detect([image])[0]["instances"].scores, small.model.detections(alone, [image])[0]["instances"].scores
    )


def test_a_time_means_the_measured_budget_of_each_form(stand_in, tmp_path):
    rows = [("0.5", "plain", 20), ("0.1", "plain", 10), ("0.5", "fp32", 12)]
    entries = [
        {"budget": budget, "form": form, "scores": {"AP": 50.0 + time}, "milliseconds": {"p50": time}}
        for budget, form, time in rows
    ]
    table = tmp_path / "sweep.json"
    table.write_text(json.dumps({"entries": entries}))
    model, options = build("sparse", dtype=torch.float32), {"is_trained": True, "precisions": ("fp32",)}
    plain, fused = our_contestants(model, "s", budgets=(f"ms:15@{table}",), **options)
    assert (plain.budget, fused.budget) == ("0.1", "0.5")
    assert plain.name == f"s, keep ms:15@{table} = 0.1"
    with pytest.raises(UserError, match="every budget of .* takes longer; the fastest, 0.1, takes 10 ms"):
        our_contestants(model, "s", budgets=(f"ms:5@{table}",), **options)


@pytest.mark.parametrize(("name", "what"), [("topk", "refines every token"), ("lite", "refines levels, not a share")])
def test_a_model_without_tokens_to_choose_refuses_a_budget(name, what):
    with pytest.raises(UserError, match=f"{what}.*; leave --budget out"):
        our_contestants(build(name), name, is_trained=False, budgets=(0.5,))


def test_optimised_forms_stand_beside_the_plain_model(stand_in):
    plain, fp32, bf16, int8 = our_contestants(
        build("sparse", dtype=torch.float32), "s", is_trained=False, precisions=("fp32", "bf16", "int8")
    )
    assert [c.name for c in (plain, fp32, bf16, int8)] == ["s", "s, fp32 form", "s, bf16 form", "s, int8 form"]
    assert stand_in == ["fp32", "bf16", "int8"]
    assert fp32.model is not plain.model
    assert fp32.parameters == plain.parameters
    assert fp32.gigaflops(picture(64, 64)) is None
    assert fp32.parts == plain.parts
    assert fp32.note.startswith("random weights, optimised")


def test_forms_and_ratios_combine(stand_in):
    found = our_contestants(
        build("sparse", dtype=torch.float32), "s", is_trained=False, budgets=(0.1, 0.3), precisions=("bf16",)
    )
    assert [c.name for c in found] == [
        *("s, keep 10 %", "s, bf16 form, keep 10 %"),
        *("s, keep 30 %", "s, bf16 form, keep 30 %"),
    ]


class Foreign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.anchors, self.head = torch.nn.Linear(2, 3), torch.nn.Identity(), torch.nn.Linear(3, 1)


def test_parts_of_another_model_are_its_children_with_weights():
    assert parts_of(Foreign()) == {"backbone": ("backbone",), "head": ("head",)}
    assert Contestant("f", "", Foreign(), {}).parameters == 2 * 3 + 3 + 3 + 1


def test_another_model_has_no_inference_form(stand_in):
    with pytest.raises(UserError, match="--optimize has no form of a Foreign, which is Detectron2's own model; leave"):
        our_contestants(Foreign(), "f", is_trained=False, precisions=("fp32",))
    assert stand_in == []


class TestImageStream:
    def test_files_come_in_order_and_start_anew(self):
        stream = ImageStream(["a", "b", "c"], lambda record: record)
        taken = [item["file_name"] for size in (2, 2, 1) for item in stream.batch(size)]
        assert taken == ["a", "b", "c", "a", "b"]
        assert (stream.used, stream.num_files) == (5, 3)

    def test_unusable_images_are_left_out(self):
        stream = ImageStream(["a", "bad", "c"], lambda record: None if record["file_name"] == "bad" else record)
        assert [item["file_name"] for item in stream.batch(4)] == ["a", "c", "a", "c"]
        assert stream.num_files == 2

    def test_without_a_usable_image_there_is_an_error(self):
        with pytest.raises(UserError, match="none of the images can be used"):
            ImageStream(["bad"], lambda record: None).batch(1)
