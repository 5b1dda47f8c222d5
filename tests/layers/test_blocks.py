"""Multi-layer perceptrons and the inverse sigmoid."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import MLP, FeedForward, inverse_sigmoid


def test_inverse_sigmoid_undoes_the_sigmoid_and_is_finite_at_the_ends():
    x = torch.tensor([-4.0, -0.5, 0, 3], dtype=torch.float64)
    assert_close(inverse_sigmoid(x.sigmoid()), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0, 0.25, 1, 2])).tolist()
    assert ends == pytest.approx([-11.512925, -11.512925, -1.0986123, 11.512925, 11.512925])


def test_mlp_has_relu_between_its_layers_but_not_after_the_last():
    mlp = MLP(sizes=(1, 2, 1))
    with torch.no_grad():
        for layer, weight in zip(mlp.layers, ([[1.0], [-1.0]], [[-1.0, -2.0]]), strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    # x = 3: relu(3, -3) = (3, 0) -> -3; x = -2: relu(-2, 2) = (0, 2) -> -4
    assert mlp(torch.tensor([[3.0], [-2.0]])).flatten().tolist() == [-3, -4]


def test_feed_forward_is_two_linear_layers_with_relu_and_has_dropout_in_training_only():
    torch.manual_seed(0)
    ffn = FeedForward(embed_dim=4, feedforward_dim=8, dropout=0.5)
    x = torch.randn(100, 4)
    expected = ffn.linear2(ffn.linear1(x).relu())
    assert_close(ffn.eval()(x), expected)
    assert (ffn.train()(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
