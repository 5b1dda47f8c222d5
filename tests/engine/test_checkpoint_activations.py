"""Activation checkpointing: the same losses and gradients, with activations computed again."""

import copy

import pytest
import torch

from sparse_detr.backbones import MobileNetV2
from sparse_detr.engine.checkpoint_activations import checkpoint_activations
from sparse_detr.errors import UserError
from tests.modeling.tiny import build, picture


def losses_and_gradients(model, images):
    torch.manual_seed(0)
    model.zero_grad()
    losses = model.train()(images)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["sparse", "dino", "detr"])
def test_losses_and_gradients_are_identical_with_dropout_too(name):
    model = build(name, dropout=0.3)
    images = [picture(70, 90), picture(64, 64)]
    plain = losses_and_gradients(copy.deepcopy(model), images)
    checkpoint_activations(model, ["encoder", "decoder"])
    again = losses_and_gradients(model, images)
    assert again[0] == plain[0]
    assert again[1].keys() == plain[1].keys()
    assert all(torch.equal(again[1][key], plain[1][key]) for key in plain[1])


def saved_bytes(model, images):
    """Return the bytes that autograd keeps for the backward pass, each storage once."""
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.train()(images)
    del losses
    return sum(sizes.values())


def test_a_layer_keeps_its_inputs_only():
    model, images = build("sparse"), [picture(200, 260)]
    before = saved_bytes(model, images)
    checkpoint_activations(model, ["encoder"])
    assert saved_bytes(model, images) < 0.8 * before


def test_a_backbone_is_checkpointed_by_block_and_frozen_blocks_are_left_alone():
    model = torch.nn.Module()
    model.backbone = MobileNetV2(out_features=("stride8",), freeze_at=2)
    checkpoint_activations(model, ["backbone"])
    wrapped = ["forward" in vars(block) for block in model.backbone.features]
    assert wrapped == [False] * 4 + [True] * 3
    x = torch.randn(1, 3, 64, 64)
    plain = MobileNetV2(out_features=("stride8",), freeze_at=2)
    plain.load_state_dict(model.backbone.state_dict())
    assert torch.equal(model.backbone(x)["stride8"], plain(x)["stride8"])


def test_the_average_of_the_weights_has_layers_of_its_own():
    """A copy must not call the layers of the original."""
    model = build("sparse")
    checkpoint_activations(model, ["encoder"])
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    layer = average.encoder.layers[0]
    assert layer.forward.args[0].__self__ is layer


@pytest.mark.parametrize(
    ("parts", "message"),
    [(["neck"], "checkpoint_activations has 'neck'; choose from backbone"), (["backbone"], "leave 'backbone' out")],
)
def test_unknown_parts_and_backbones_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        checkpoint_activations(build("sparse"), parts)
