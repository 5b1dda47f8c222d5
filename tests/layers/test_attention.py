"""Full attention against the layer of PyTorch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.layers import SelfAttention, attention_mask, multi_head_attention

VALID = torch.tensor([[True, True, True, False, False], [True] * 5])
KEEP = torch.ones(5, 5, dtype=torch.bool)
KEEP[2:, :2] = False


def both_layers():
    """Return our layer, and that of PyTorch with the same weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).double()
    nn.init.normal_(theirs.in_proj_bias)
    ours = SelfAttention(embed_dim=32, num_heads=4, dropout=0.0).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("valid", [None, VALID])
def test_self_attention_is_that_of_pytorch_with_any_mask(valid, keep):
    ours, theirs = both_layers()
    content, position = torch.randn(2, 2, 5, 32, dtype=torch.float64)
    query = content + position
    masks = [None if mask is None else ~mask for mask in (valid, keep)]  # those of PyTorch are True on what is not read
    expected, _ = theirs(query, query, content, key_padding_mask=masks[0], attn_mask=masks[1])
    assert_close(ours(content, position, attention_mask(valid, keep)), expected)


def test_a_mask_is_stored_once_for_all_heads():
    assert attention_mask(None, None) is None
    assert torch.equal(attention_mask(None, KEEP), KEEP)
    assert attention_mask(VALID, None).shape == (2, 1, 1, 5)
    both = attention_mask(VALID, KEEP)
    assert both.shape == (2, 1, 5, 5)
    assert both[0, 0].tolist() == [[True] * 3 + [False] * 2] * 2 + [[False, False, True, False, False]] * 3
    assert torch.equal(both[1, 0], KEEP)


def test_values_may_have_other_channels_than_queries_and_keys():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 4)
    result = multi_head_attention(query, key, value, num_heads=2, mask=None, dropout=0.0)
    for head in range(2):
        channels, values = slice(4 * head, 4 * head + 4), slice(2 * head, 2 * head + 2)
        weights = (query[0, :, channels] @ key[0, :, channels].T / 2).softmax(-1)
        assert_close(result[0, :, values], weights @ value[0, :, values])


def test_attention_weights_have_dropout_in_training_only():
    torch.manual_seed(0)
    layer = SelfAttention(embed_dim=32, num_heads=4, dropout=0.5)
    x = torch.randn(1, 5, 32)
    assert not torch.equal(layer(x, x, None), layer(x, x, None))
    layer.eval()
    assert torch.equal(layer(x, x, None), layer(x, x, None))


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="embed_dim 30 must be a multiple of num_heads 4"):
        SelfAttention(embed_dim=30, num_heads=4, dropout=0.0)
