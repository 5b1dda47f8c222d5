"""Attention has the same FLOPs in training and in eval mode, those of the formula."""

import warnings
from importlib import import_module

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from sparse_detr.analysis.flops import FLOP_HANDLES, register_flop_handles
from sparse_detr.ops import available_backends, fused_deformable_attention, multi_scale_deformable_attention

SHAPES = ((4, 6), (2, 3))
BATCH, QUERIES, KEYS, CHANNELS, HEADS = 2, 5, 7, 16, 4
SELF_ATTENTION_FLOPS = BATCH * (4 * QUERIES * CHANNELS**2 + 2 * QUERIES * QUERIES * CHANNELS)
CROSS_ATTENTION_FLOPS = BATCH * (2 * (QUERIES + KEYS) * CHANNELS**2 + 2 * QUERIES * KEYS * CHANNELS)


@pytest.fixture(autouse=True)
def handles():
    register_flop_handles()


class SelfAttention(nn.Module):
    def __init__(self, *, need_weights: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class CrossAttention(SelfAttention):
    def forward(self, query, memory):
        return self.attention(query, memory, memory, need_weights=self.need_weights)[0]


def analysis(module: nn.Module, *inputs: torch.Tensor) -> FlopCountAnalysis:
    counted = FlopCountAnalysis(module, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted.total()
    return counted


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_self_attention_has_the_flops_of_the_formula_in_training_and_in_eval(training, need_weights):
    module = SelfAttention(need_weights=need_weights).train(training)
    assert analysis(module, torch.randn(BATCH, QUERIES, CHANNELS)).total() == SELF_ATTENTION_FLOPS


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_cross_attention_has_the_flops_of_the_formula_in_training_and_in_eval(training, need_weights):
    module = CrossAttention(need_weights=need_weights).train(training)
    inputs = torch.randn(BATCH, QUERIES, CHANNELS), torch.randn(BATCH, KEYS, CHANNELS)
    assert analysis(module, *inputs).total() == CROSS_ATTENTION_FLOPS


def test_self_attention_in_eval_runs_the_fused_kernel_that_fvcore_does_not_count():
    counted = analysis(SelfAttention(need_weights=False).eval(), torch.randn(BATCH, QUERIES, CHANNELS))
    assert dict(counted.by_operator()) == {"_native_multi_head_attention": SELF_ATTENTION_FLOPS}
    assert not counted.unsupported_ops()


def test_an_encoder_layer_counts_the_same_in_training_and_in_eval():
    layer = nn.TransformerEncoderLayer(CHANNELS, HEADS, dim_feedforward=32, batch_first=True)
    x = torch.randn(BATCH, QUERIES, CHANNELS)
    assert analysis(layer.train(), x).total() == analysis(layer.eval(), x).total()


def test_values_narrower_than_keys_count_by_their_own_width():
    class Attention(nn.Module):
        def forward(self, query, key, value):
            return nn.functional.scaled_dot_product_attention(query, key, value)

    query, key, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 1)
    assert analysis(Attention(), query, key, value).total() == 2 * 3 * 5 * (4 + 1)


@pytest.mark.parametrize("backend", [name for name, why in available_backends().items() if why is None])
def test_deformable_attention_counts_four_for_a_channel_of_a_sample_with_every_backend(backend):
    class Attention(nn.Module):
        def forward(self, value, references, offsets, logits):
            plain = multi_scale_deformable_attention(value, SHAPES, offsets, logits, backend=backend)
            return plain + fused_deformable_attention(value, SHAPES, references, offsets, logits, backend=backend)

    shapes = (2, 30, 4, 8), (2, 5, 2, 4), (2, 5, 4, 2, 3, 2), (2, 5, 4, 2, 3)
    # triton and cuda take tensors on the GPU.
    device = "cuda" if backend in ("triton", "cuda") else "cpu"
    counted = analysis(Attention(), *(torch.rand(shape, device=device) for shape in shapes))
    samples = 2 * 5 * 4 * 2 * 3
    assert counted.total() == 2 * (4 * samples * 8)


def test_registering_again_changes_nothing_and_keeps_the_handles_of_fvcore(monkeypatch):
    supported_ops = import_module("fvcore.nn.flop_count")._DEFAULT_SUPPORTED_OPS
    own = object()
    monkeypatch.setitem(supported_ops, "aten::scaled_dot_product_attention", own)
    before = dict(supported_ops)
    register_flop_handles()
    assert supported_ops == before
    assert set(FLOP_HANDLES) <= set(supported_ops)
