"""What a model in inference form promises beside equal results, and what it refuses."""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.inference import optimize
from sparse_detr.inference.linear import InferenceFeedForward, PackedLinear
from sparse_detr.modeling.selection import EvenBudget
from tests.modeling.test_transformer import batch, flow
from tests.modeling.tiny import MODELS, build, picture

BATCH = [picture(100, 130), picture(64, 96, seed=1)]
KEEPING = ("sparse", "focus", "sparse_dino", "focus_two_stage", "sparse_dab_deformable", "objectness")


def make(name="sparse", dtype=torch.float32, **options):
    return build(name, dtype=dtype, **options).eval()


def scores(model, batch=BATCH, **options):
    with torch.no_grad():
        return torch.cat([result["instances"].scores for result in model(batch, **options)])


@pytest.mark.parametrize("behavior", ["exact", "released"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "random"])
def test_models_of_both_behaviors_give_the_same(name, behavior):
    model = make(name, torch.float64, behavior=behavior)
    with torch.no_grad():
        found, expected = (each.outputs(BATCH).predictions for each in (optimize(model), model))
    valid = slice(None) if expected.valid is None else expected.valid
    assert_close(found.logits[valid], expected.logits[valid], atol=1e-9, rtol=0)
    assert_close(found.boxes[valid], expected.boxes[valid], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("budget", [0.05, 1.0, EvenBudget(keep_ratio=0.5)], ids=["few", "all", "object"])
def test_a_budget_of_the_call_counts(name, budget):
    model = make(name, torch.float64)
    assert_close(scores(optimize(model), budget=budget), scores(model, budget=budget), atol=1e-9, rtol=0)


def test_the_transformer_alone_has_a_form_too():
    model, images = make("dino", torch.float64).transformer(), torch.randn(2, 3, 64, 96).double()
    form = optimize(model)
    assert type(form) is type(model)
    with torch.no_grad():
        for found, expected in zip(form(images), model(images), strict=True):
            assert_close(found, expected, atol=1e-9, rtol=0)


def test_a_second_call_gives_the_same_and_threads_may_share_a_form():
    form = optimize(make())
    expected = scores(form)
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(lambda _: scores(form), range(6)))


@pytest.mark.parametrize("options", [{}, {"int8": True}])
def test_a_form_can_be_copied_and_pickled(options):
    form = optimize(make(), **options)
    expected = scores(form)
    assert torch.equal(scores(copy.deepcopy(form)), expected)
    assert torch.equal(scores(pickle.loads(pickle.dumps(form))), expected)


def test_weights_that_do_not_change_are_the_same_memory():
    model = make()
    form = optimize(model)
    assert form.encoder.layers[0].ffn.linear1.weight.data_ptr() == model.encoder.layers[0].ffn.linear1.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in form.parameters())


def test_a_head_in_two_places_stays_one_head():
    form = optimize(make("sparse_dino", shared_heads=True))
    assert len({id(head) for head in form.decoder_heads}) == 1


def test_int8_weights_stay_near():
    model = make()
    form = optimize(model, int8=True)
    assert any(isinstance(module, PackedLinear) and module.int8 for module in form.modules())
    with torch.no_grad():
        found, expected = (each.outputs(BATCH).predictions.logits for each in (form, model))
    assert 0 < torch.cdist(found, expected).amin(-1).median() < 1


@pytest.mark.parametrize("name", ["one_stage", "sparse"])
def test_rows_that_only_fill_the_batch_pass_no_feed_forward_network_of_the_encoder(name):
    model, numbers = make(name), []
    form = optimize(model)
    for module in form.encoder.modules():
        if isinstance(module, InferenceFeedForward):
            module.register_forward_pre_hook(lambda module, inputs: numbers.append(inputs[0].numel() // 64))
    with torch.no_grad():
        selection = form.outputs(BATCH).selection
    assert numbers == [int(selection.counts.sum())] * 3
    assert selection.counts[0] != selection.counts[1]


def test_training_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"the model is in training mode; call model.eval\(\) first"):
        optimize(make().train())
    form = optimize(make())
    with pytest.raises(RuntimeError, match="an optimised model cannot be trained; train the model that it was made fr"):
        form.train()
    with pytest.raises(RuntimeError, match="an optimised model has no losses; call `losses` of the model that it was"):
        form.eval().losses(BATCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, "float16 is slow on a CPU; give torch.bfloat16, or move the model to a GPU first"),
        ({"dtype": torch.int8}, "dtype is torch.int8; give torch.float32, torch.bfloat16 or torch.float16"),
    ],
)
def test_a_dtype_that_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        optimize(make(), **options)


def test_weights_of_another_dtype_keep_it():
    with pytest.raises(ValueError, match=r"the weights are torch.float64; leave dtype out, or call model.float\(\) fi"):
        optimize(make(dtype=torch.float64), dtype=torch.bfloat16)


def test_what_is_no_detection_transformer_is_named():
    with pytest.raises(ValueError, match="a Linear has no inference form; give a GeneralizedDETR or its transformer"):
        optimize(nn.Linear(2, 2).eval())


def test_a_part_without_a_form_stays_what_it_is():
    class Scorer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.parts = [inner]  # a list that PyTorch does not know
            self.inner = inner

        def forward(self, tokens, proposals):
            return self.parts[0](tokens, proposals)

    model = make(dtype=torch.float64)
    expected = scores(model)
    model.selector.scorer = Scorer(model.selector.scorer)
    form = optimize(model)
    assert form.selector.scorer.parts[0] is form.selector.scorer.inner is not model.selector.scorer.inner
    assert_close(scores(form), expected, atol=1e-9, rtol=0)


@pytest.mark.slow
def test_it_compiles_to_one_graph_for_all_sizes():
    form, graphs = optimize(flow("sparse")), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning of PyTorch about its own code
        compiled = torch.compile(form, backend=count, fullgraph=True, dynamic=True)
        for inputs in (batch(4, 96, 160), batch(2, 131, 97)):
            for found, expected in zip(compiled(*inputs), form(*inputs), strict=True):
                assert_close(found, expected, atol=1e-9, rtol=0)
    torch.compiler.reset()
    assert len(graphs) == 1


def test_an_export_of_one_size_predicts_the_same():
    form, inputs = optimize(flow("focus")), batch()
    with torch.no_grad():
        exported = torch.export.export(form, inputs).module()
        for found, expected in zip(exported(*inputs), form(*inputs), strict=True):
            assert_close(found, expected, atol=1e-9, rtol=0)
