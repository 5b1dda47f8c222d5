"""Efficient DETR: a number of queries that falls, one head for both parts, and a dense head that detects alone."""

import copy

import pytest
import torch
import torch.distributed as dist
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torchvision.ops import box_iou

from sparse_detr.checkpoint import match_report
from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.modeling.detector import TrainingIteration
from sparse_detr.modeling.queries import FallingNumber, MemoryStart
from sparse_detr.recipes import efficient_detr
from sparse_detr.recipes.efficient_detr import TRAINING_LENGTH
from sparse_detr.solver import detr_parameter_groups
from tests.engine.toys import ToyDetector, toy_loader, toy_trainer
from tests.modeling.tiny import SIZES, build, patch_backbone, picture

BATCH = [picture(64, 96), picture(96, 64, boxes=((0.2, 0.2, 0.6, 0.6),))]
TOKENS = 12 * 12 + 6 * 6 + 3 * 3 + 2 * 2  # of four levels; the batch is 96x96


def one_layer(**options):
    """Return a small model with one decoder layer, as in the paper."""
    return build("efficient", decoder_layers=1, **options)


@pytest.mark.parametrize(("done", "number"), [(0, 300), (1, 298), (50, 200), (99, 102), (100, 100), (1000, 100)])
def test_the_number_falls_by_two_an_iteration_from_300_to_100_in_100(done, number):
    assert FallingNumber(first_number=300, last_number=100, falling_steps=100, iteration=lambda: done)() == number


def test_without_steps_the_number_is_the_last_one():
    assert FallingNumber(first_number=300, last_number=100, falling_steps=None, iteration=lambda: 0)() == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"first_number": 100, "last_number": 300, "falling_steps": 5}, "cannot fall from 100 to 300"),
        ({"first_number": 100, "last_number": 0, "falling_steps": 5}, "cannot fall from 100 to 0"),
        ({"first_number": 300, "last_number": 100, "falling_steps": 0}, "cannot fall in 0 steps"),
    ],
)
def test_a_number_that_cannot_fall_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FallingNumber(iteration=lambda: 0, **options)


def queries_of(model, iteration):
    """Return the number of queries that the decoder gets in an iteration."""
    seen = []
    handle = model.decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].content.shape[1]))
    with EventStorage(iteration), torch.no_grad():
        model.losses(BATCH)
    handle.remove()
    return seen[0]


def test_the_decoder_gets_fewer_and_fewer_queries_in_training_and_always_the_same_at_inference():
    model = one_layer(num_queries=12, first_num_queries=32, falling_steps=100)
    assert [queries_of(model, done) for done in (0, 25, 50, 100, 200)] == [32, 27, 22, 12, 12]
    assert [queries_of(model.eval(), done) for done in (0, 50)] == [12, 12]


def test_no_more_queries_than_tokens_are_taken():
    assert queries_of(one_layer(first_num_queries=5000, falling_steps=9), 0) == TOKENS


class Recorder(ToyDetector):
    """A toy that notes the number of steps at every forward pass."""

    def __init__(self):
        super().__init__()
        self.iteration, self.seen = TrainingIteration(), []

    def forward(self, batch):
        self.seen.append(self.iteration())
        return super().forward(batch)


def test_accumulated_batches_are_one_step_and_a_resumed_training_goes_on():
    model = Recorder()
    toy_trainer(model, accumulate=2).train(0, 2)
    toy_trainer(model, accumulate=2).train(5, 7)
    assert model.seen == [0, 0, 1, 1, 5, 5, 6, 6]
    assert model.iteration() == 0  # outside of a training


def test_detectron2s_own_trainer_counts_the_same():
    model = Recorder()
    SimpleTrainer(model, toy_loader(), torch.optim.SGD(model.parameters(), lr=0.1)).train(3, 6)
    assert model.seen == [3, 4, 5]


def test_nothing_of_the_fall_is_in_the_weights_so_an_old_file_starts_a_new_fall():
    assert not [name for name in one_layer().state_dict() if "training_number" in name]


def test_the_length_is_that_of_the_training_in_a_config_of_either_kind():
    config = OmegaConf.create({"model": efficient_detr(), "train": {"max_iter": 70}}, flags={"allow_objects": True})
    assert config.model.queries.training_number.falling_steps == 70
    lazy = load_config("configs/quick/efficient_detr_mnv2.py", ["train.max_iter=50"])
    assert make_run(lazy).build_model().queries.training_number.falling_steps == 50
    assert efficient_detr(falling_steps=TRAINING_LENGTH).queries.training_number.falling_steps is None
    overrides = ["SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(30,)", "MODEL.DEVICE", "cpu"]
    yaml = make_run(load_config("projects/EfficientDETR/configs/efficient_detr_r50.yaml", overrides)).build_model()
    fall = yaml.queries.training_number
    assert (fall.first_number, fall.last_number, fall.falling_steps) == (300, 100, 40)


def test_one_head_serves_proposals_and_decoder_and_counts_once():
    model, separate = one_layer(), one_layer(share_heads=False)
    assert model.proposal_head is model.decoder_heads[0]
    assert separate.proposal_head is not separate.decoder_heads[0]
    head = sum(p.numel() for p in model.proposal_head.parameters())
    counts = [sum(p.numel() for p in one.parameters()) for one in (model, separate)]
    assert counts[1] - counts[0] == head
    groups = detr_parameter_groups(model=model, base_lr=1.0)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == len([p for p in model.parameters() if p.requires_grad])
    averaged = torch.optim.swa_utils.AveragedModel(model).module
    assert averaged.proposal_head is averaged.decoder_heads[0]


def test_a_file_with_one_head_loads_strictly_and_one_with_two_heads_is_refused():
    model, other = one_layer(seed=1), one_layer(seed=2)
    names = [name for name in model.state_dict() if name.startswith(("proposal_head.", "decoder_heads.0."))]
    assert len(names) == 2 * len(model.proposal_head.state_dict())
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    report = match_report(model, one_layer(share_heads=False).state_dict())
    assert ("decoder_heads.0.class_embed.weight", "proposal_head.class_embed.weight") in report.untied
    back = one_layer(share_heads=False)
    back.load_state_dict(model.state_dict())
    assert torch.equal(back.proposal_head.class_embed.weight, back.decoder_heads[0].class_embed.weight)


def test_with_more_layers_every_layer_has_the_one_head():
    model = build("efficient", decoder_layers=3)
    assert {id(head) for head in model.decoder_heads} == {id(model.proposal_head)}


def gradients(model, inner):
    sum(model(BATCH).values()).backward()
    return {name: p.grad for name, p in inner.named_parameters() if p.requires_grad}


def test_the_head_gets_the_same_gradient_under_ddp(tmp_path):
    model = one_layer().train()
    wrapped = copy.deepcopy(model)
    expected = gradients(model, model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        found = gradients(DistributedDataParallel(wrapped), wrapped)
    finally:
        dist.destroy_process_group()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("detach", [True, False])
def test_content_passes_a_gradient_to_the_encoder_on_request_only(detach):
    memory = torch.randn(1, 3, 64, requires_grad=True)
    content, _ = MemoryStart(embed_dim=64, detach_content=detach)(memory, memory, torch.rand(1, 3, 4))
    assert content.requires_grad is not detach
    assert one_layer(detach_content=detach).queries.start.detach_content is detach


class NoDecoder(nn.Module):
    """No decoder: it must not be asked."""

    def forward(self, *_, **__):
        raise AssertionError("the dense part alone has no decoder")


def test_the_dense_head_alone_learns_to_detect_with_the_set_loss():
    """One picture is learned by heart: the best proposals are its two boxes, each once, without suppression."""
    image = picture(64, 96, boxes=((0.1, 0.2, 0.4, 0.7), (0.5, 0.3, 0.9, 0.8)))
    torch.manual_seed(0)
    model = instantiate(efficient_detr(backbone=patch_backbone(), **{**SIZES, "encoder_layers": 1}))
    model.decoder, (target,) = NoDecoder(), model.targets([image])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def proposals():
        images = model._preprocess([image])
        tokens = model.tokenize(images.tensor, images.image_sizes)
        return model.query(model.encode(tokens)).proposals

    for _ in range(40):
        losses = model.criterion([proposals()], [target])
        assert set(losses) == {"loss_class_enc", "loss_bbox_enc", "loss_giou_enc"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval().postprocess(proposals(), [(64, 96)])
    true = image["instances"]
    overlap = box_iou(found.pred_boxes.tensor[:2], true.gt_boxes.tensor)
    best, match = overlap.max(1)
    assert best.min() > 0.8
    assert sorted(match.tolist()) == [0, 1]
    assert found.pred_classes[:2].tolist() == true.gt_classes[match].tolist()
    assert found.scores[1] > 0.5 > 0.2 > found.scores[2]
