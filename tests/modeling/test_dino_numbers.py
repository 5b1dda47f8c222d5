"""Parameters and losses of DINO against the public implementations, and training on one picture."""

import pytest
import torch
from detectron2.config import instantiate

from sparse_detr.recipes import dino
from tests.modeling.tiny import SIZES, patch_backbone, picture


def tiny_dino(**options):
    torch.manual_seed(0)
    return instantiate(dino(**{"backbone": patch_backbone(), **SIZES, **options}))


# Counted in the public checkpoints, without the frozen normalisation of the backbone. The official checkpoint has one
# label embedding more, which is never read.
@pytest.mark.parametrize(
    ("options", "count"),
    [({"num_classes": 91, "shared_heads": True}, 46_893_182 - 256), ({"num_classes": 80}, 47_650_316)],
    ids=["official", "detrex"],
)
def test_as_many_parameters_as_the_public_implementations(options, count):
    model = instantiate(dino(**options))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("boxes", [((0.1, 0.2, 0.5, 0.7),), ()])
def test_six_layers_have_thirty_nine_losses_with_or_without_boxes(boxes):
    losses = tiny_dino(decoder_layers=6).losses([picture(64, 64, boxes)])
    suffixes = ["", "_0", "_1", "_2", "_3", "_4", "_enc", "_dn", "_dn_0", "_dn_1", "_dn_2", "_dn_3", "_dn_4"]
    assert set(losses) == {f"loss_{kind}{suffix}" for kind in ("class", "bbox", "giou") for suffix in suffixes}
    assert len(losses) == 39


def test_the_weights_of_the_losses_are_one_five_and_two():
    weights = instantiate(dino(backbone=patch_backbone(), **SIZES).criterion).weights
    assert weights == {"class": 1.0, "bbox": 5.0, "giou": 2.0}


@pytest.mark.timeout(200)
def test_training_on_one_picture_detects_its_boxes():
    model, batch = tiny_dino(encoder_layers=1).train(), [picture(96, 96)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(losses["loss_bbox_dn"].item())
    assert sum(history[-10:]) < 0.5 * sum(history[:10])

    found = model.eval()(batch)[0]["instances"]
    true = batch[0]["instances"]
    first, second = found.scores[:2], found.scores[2:]
    assert first.min() > 0.6
    assert second.max() < 0.4
    order = found.pred_classes[:2].argsort()
    torch.testing.assert_close(found.pred_classes[:2][order], true.gt_classes)
    torch.testing.assert_close(found.pred_boxes.tensor[:2][order], true.gt_boxes.tensor, atol=4, rtol=0)
