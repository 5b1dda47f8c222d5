"""Sparse DETR in float32 against numbers of the public code, with weights and backbone maps made by formulas.

The formula of a weight uses the index of its public name in sorted order, so names, shapes and order are tested too.
"""

import json

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import nn

from sparse_detr import recipes
from sparse_detr.checkpoint import convert_checkpoint
from tests.golden.cases import FOLDER

ALIASES = tuple(f"transformer.{part}.{head}_embed." for part in ("decoder", "encoder") for head in ("class", "bbox"))


def formula_weights():
    """Return float32 sine waves by public name, without backbone and aliases; the phase depends on name and index."""
    rows = json.loads((FOLDER / "sparse_detr_r50_rho_0.1" / "checkpoint_keys.json").read_text())
    shapes = {name: shape for name, shape, *_ in rows if not name.startswith(("backbone.", *ALIASES))}
    assert len(shapes) == 359
    return {name: wave(place, name, shapes[name]).float() for place, name in enumerate(sorted(shapes))}


def wave(place, name, shape):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = torch.sin(0.7 * index * (1 + place % 7) + 1.3 * place + 0.001 * index * index).view(shape)
    if len(shape) > 1:
        return values * (2 / values[0].numel()) ** 0.5
    return 0.1 * values + float(name.endswith(".weight"))


class FormulaMaps(nn.Module):
    """Backbone maps of strides 8, 16 and 32 for two images in a 96x128 batch."""

    shapes = ((512, 12, 16), (1024, 6, 8), (2048, 3, 4))

    def __init__(self):
        super().__init__()
        self.maps = {f"level{i}": self.map(i).requires_grad_() for i in range(3)}

    def map(self, level):
        shape = (2, *self.shapes[level])
        index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return torch.sin(0.013 * index * (level + 1) + 0.5 * torch.cos(0.0007 * index)).float().view(shape)

    def forward(self, images):
        return self.maps


def record(labels, boxes):
    centres = torch.tensor(boxes)
    corners = torch.cat([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1)
    scale = torch.tensor([128.0, 96, 128, 96])
    instances = Instances((96, 128), gt_boxes=Boxes(corners * scale), gt_classes=torch.tensor(labels))
    return {"image": torch.zeros(3, 96, 128, dtype=torch.uint8), "instances": instances}


@pytest.fixture(scope="module")
def inputs():
    return [
        record([3, 17], [[0.5, 0.5, 0.2, 0.3], [0.3, 0.4, 0.1, 0.2]]),
        record([5], [[0.6, 0.5, 0.4, 0.3]]),
    ]


@pytest.fixture(scope="module")
def converted():
    return convert_checkpoint(formula_weights())


@pytest.fixture(scope="module")
def model(converted):
    maps = recipes.BackboneSpec(FormulaMaps(), ("level0", "level1", "level2"), (512, 1024, 2048), (8, 16, 32))
    config = recipes.sparse_detr(
        backbone=maps, num_classes=91, num_queries=10, keep_ratio=0.1, dropout=0.0, behavior="released"
    )
    model = instantiate(config).train()
    model.load_state_dict(converted.state_dict, strict=True)
    return model


@pytest.fixture(scope="module")
def output(model, inputs):
    with torch.no_grad():
        return model.outputs(inputs)


@pytest.fixture(scope="module")
def losses(model, inputs):
    return model.losses(inputs)


def test_scores_and_kept_tokens_are_the_same(output):
    assert output.pyramid.spatial_shapes == ((12, 16), (6, 8), (3, 4), (2, 2))
    assert output.selection.counts.tolist() == [26, 26]
    assert output.selection.indices.sum(1).tolist() == [5391, 4297]
    scores = output.token_scores
    assert scores[0, :3].tolist() == pytest.approx([0.05122319, 0.04715460, 0.04252292], rel=1e-5)
    assert (scores.sum().item(), scores.min().item()) == pytest.approx((64.40703, -0.05696174), rel=1e-5)


def test_predictions_are_the_same(output):
    groups = {group.name: group for group in output.groups}
    last = output.predictions
    assert groups["proposals"].logits.sum().item() == pytest.approx(3692.825, rel=1e-4)
    assert (last.logits.sum().item(), last.logits.abs().sum().item()) == pytest.approx((-15.52384, 1381.2158), rel=1e-4)
    assert last.boxes.sum().item() == pytest.approx(24.135033, rel=1e-5)
    assert last.boxes[0, 0].tolist() == pytest.approx([0.2348639, 0.9410669, 0.1153239, 0.4321488], rel=1e-5)


def test_attention_maps_are_the_same(output):
    assert output.attention_map.sum(1).tolist() == pytest.approx([343.8096, 435.9623], rel=1e-4)
    assert output.attention_map.amax(1).tolist() == pytest.approx([30.80281, 53.27045], rel=1e-4)


def test_losses_are_the_same(losses):
    unweighted = {
        "loss_class": 150.61597,
        "loss_bbox": 0.6122596,
        "loss_giou": 1.2762425,
        "loss_class_0": 164.10187,
        "loss_class_enc": 4609.7188,
        "loss_bbox_enc": 0.3174990,
        "loss_giou_enc": 0.8015383,
        "loss_class_enc_0": 453.70444,
        "loss_bbox_enc_0": 0.5437393,
        "loss_class_enc_4": 348.49179,
        "loss_giou_enc_4": 1.0503583,
        "loss_token_score": 0.7465343,
    }
    weights = {"class": 2, "bbox": 5, "giou": 2, "token": 1}
    expected = {name: weights[name.split("_")[1]] * value for name, value in unweighted.items()}
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)
    assert len(losses) == 37
    assert sum(losses.values()).item() == pytest.approx(15237.282, rel=1e-5)


@pytest.mark.parametrize(
    ("which", "norms"),
    [
        (
            "token score",
            {
                "transformer.level_embed": 0.03954065,
                "transformer.enc_output.weight": 0.6745113,
                "transformer.enc_mask_predictor.layer2.4.weight": 0.4865710,
                "input_proj.0.0.weight": 0.5543016,
            },
        ),
        (
            "total",
            {
                "transformer.level_embed": 81.5063,
                "transformer.enc_output.weight": 6772.55,
                "transformer.encoder.layers.0.self_attn.sampling_offsets.weight": 452.532,
                "transformer.decoder.layers.5.cross_attn.value_proj.weight": 192.358,
                "class_embed.7.weight": 1428.47,
                "bbox_embed.6.layers.0.weight": 13.36296,
                "transformer.pos_trans.weight": 444.692,
                "input_proj.3.0.weight": 3888.04,
            },
        ),
    ],
)
def test_gradients_are_the_same(model, converted, losses, which, norms):
    loss = losses["loss_token_score"] if which == "token score" else sum(losses.values())
    parameters = [model.get_parameter(converted.names[name]) for name in norms]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    ours = {name: gradient.norm().item() for name, gradient in zip(norms, gradients, strict=True)}
    assert ours == pytest.approx(norms, rel=1e-4)
