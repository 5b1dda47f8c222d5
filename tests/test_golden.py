"""Converted public checkpoints give what the public code gave: outputs, selections, losses, gradients, detections.

The expected numbers come from the public Sparse DETR repository (which contains Deformable DETR), run in float64 on the
CPU in `eval()`; `golden/cases.py` says how its inputs are made. Every case goes through the converter, which also says
which recipe to build. Tolerances: outputs 1e-5 (sums of 91 logits 2e-5), losses 1e-5 relative, gradient norms 1e-4
relative.
"""

import dataclasses
from argparse import Namespace
from contextlib import contextmanager

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torchvision.ops import box_convert, clip_boxes_to_image, remove_small_boxes

from sparse_detr import recipes
from sparse_detr.analysis.tokens import covered_attention, covered_attention_per_level
from sparse_detr.checkpoint import convert_checkpoint
from sparse_detr.modeling import encoder, tokenizer
from sparse_detr.modeling.queries import ProposalGenerator
from tests.golden.cases import NAMES, GoldenCase

pytestmark = pytest.mark.slow

BACKBONES = {"resnet(50)": recipes.resnet, "swin_tiny()": recipes.swin_tiny}
PUBLIC_LOSS = {"class": "ce", "bbox": "bbox", "giou": "giou", "token_score": "mask_prediction"}


def convert(case):
    """The case's checkpoint under our names, from a file like those of the public training script."""
    arguments = Namespace(
        num_queries=case.facts["num_queries"],
        eff_specific_head="eff_specific_head" in case.options,
        rho=case.keep_ratio or 0.0,
    )
    return convert_checkpoint({"model": case.state_dict(), "args": arguments, "epoch": 49})


def build(converted):
    """The model that the converter's description asks for, with the converted weights."""
    description = converted.description
    recipe, backbone = getattr(recipes, description.recipe), BACKBONES[description.backbone]()
    config = recipe(backbone=backbone, behavior="released", **description.arguments)
    for key, value in description.overrides.items():
        OmegaConf.update(config, key, value)
    model = instantiate(config)
    model.load_state_dict(converted.state_dict, strict=True)
    return model.eval()


def inputs(case):
    """The case's batch in Detectron2's format; detections are asked for at the case's target sizes."""
    return [
        as_record(image, boxes, labels, target_size)
        for image, (boxes, labels), target_size in zip(
            case.images(), case.targets(), case.facts["target_image_sizes"], strict=True
        )
    ]


def as_record(image, boxes, labels, target_size):
    height, width = image.shape[-2:]
    scale = boxes.new_tensor([width, height, width, height])
    instances = Instances(
        (height, width), gt_boxes=Boxes(box_convert(boxes, "cxcywh", "xyxy") * scale), gt_classes=labels
    )
    return {"image": image, "height": target_size[0], "width": target_size[1], "instances": instances}


@contextmanager
def geometry_in_float32():
    """Round as the public run did, whose geometry was float32 in a float64 model."""
    embed, generate = tokenizer.embed_tokens, ProposalGenerator.forward

    def embed_in_float32(*args, dtype, **options):
        return embed(*args, dtype=torch.float32, **options).to(dtype)

    def reference_points_in_float32(pyramid, dtype):
        ratios = pyramid.valid_ratios(torch.float32)
        sizes = torch.tensor(pyramid.spatial_shapes).flip(-1)
        levels, cells = pyramid.cells[:, 0], pyramid.cells[:, 1:].flip(-1)
        centers = (cells + 0.5) / (ratios * sizes)[:, levels]
        return (centers[:, :, None] * ratios[:, None]).to(dtype)

    def generate_in_float32(self, pyramid, dtype):
        proposals = generate(self, pyramid, torch.float32)
        return dataclasses.replace(proposals, box_logits=proposals.box_logits.to(dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "embed_tokens", embed_in_float32)
        patch.setattr(encoder, "encoder_reference_points", reference_points_in_float32)
        patch.setattr(ProposalGenerator, "forward", generate_in_float32)
        yield


class Run:
    """A case computed here in float64: `expected` beside `output`, `losses` and the model with its gradients."""

    def __init__(self, name):
        self.case = GoldenCase(name)
        self.expected = self.case.outputs
        self.converted = convert(self.case)
        self.model = build(self.converted).double()
        self.inputs = inputs(self.case)
        with geometry_in_float32():
            with torch.no_grad():
                self.output = self.model.outputs(self.inputs, attention_map=True)
            self.losses = self.model.losses(self.inputs)
        self.groups = {group.name: group for group in self.output.groups}
        sum(self.losses.values()).backward()


@pytest.fixture(scope="module", params=NAMES)
def run(request):
    return Run(request.param)


def near(ours, public, *, absolute=1e-5):
    """Within `absolute`, or 1e-4 relative for numbers over 10."""
    tolerance = (1e-4 * public.abs().double()).where(public.abs() > 10, absolute)
    error = (ours.double() - public.double()).abs()
    assert (error <= tolerance).all(), f"off by up to {error.max():.2e}"


def public_loss_name(name):
    """`loss_class_enc_0` -> `loss_ce_enc_0`."""
    kind = next(kind for kind in PUBLIC_LOSS if name.startswith(f"loss_{kind}"))
    return name.replace(f"loss_{kind}", f"loss_{PUBLIC_LOSS[kind]}")


def test_tokens_lie_on_the_same_pyramid(run):
    assert run.output.pyramid.spatial_shapes == tuple(map(tuple, run.expected["spatial_shapes"].tolist()))
    assert run.output.pyramid.padding_mask.equal(run.expected["mask_flatten"])


def test_last_decoder_layer_predicts_the_same(run):
    near(run.output.predictions.logits, run.expected["pred_logits"])
    near(run.output.predictions.boxes, run.expected["pred_boxes"])


@pytest.mark.parametrize("layer", range(5))
def test_earlier_decoder_layers_predict_the_same(run, layer):
    group = run.groups[f"decoder_{layer}"]
    near(group.logits.sum(-1), run.expected[f"aux{layer}_logits_sum"], absolute=2e-5)
    near(group.boxes, run.expected[f"aux{layer}_boxes"])


def test_proposals_of_all_tokens_are_the_same(run):
    if "enc_boxes" not in run.expected:
        assert "proposals" not in run.groups
        return
    near(run.groups["proposals"].logits.amax(-1), run.expected["enc_logits_max"])
    near(run.groups["proposals"].boxes, run.expected["enc_boxes"])


def test_encoder_layers_predict_the_same_for_every_row_of_the_batch(run):
    expected = {name for name in run.expected if name.startswith("enc_aux") and name.endswith("boxes")}
    assert len(expected) == len([name for name in run.groups if name.startswith("encoder_")])
    for layer in range(len(expected)):
        group = run.groups[f"encoder_{layer}"]
        near(group.logits.amax(-1), run.expected[f"enc_aux{layer}_logits_max"])
        near(group.boxes, run.expected[f"enc_aux{layer}_boxes"])


def test_the_same_tokens_are_kept_for_the_same_scores(run):
    if "token_scores" not in run.expected:
        assert run.output.token_scores is None
        return
    near(run.output.token_scores, run.expected["token_scores"])
    assert run.output.selection.indices.equal(run.expected["token_topk"])
    assert run.output.selection.counts.tolist() == run.expected["token_counts"].tolist()


def test_the_decoder_attention_map_is_the_same(run):
    near(run.output.attention_map, run.expected["dam_no_half_pixel"])


def test_the_rows_of_the_selection_cover_the_same_share_of_attention(run):
    public = {
        name.removeprefix("corr_mask_attn_map_dec_"): value
        for name, value in run.case.facts["losses"].items()
        if name.startswith("corr_") and "token_scores" in run.expected
    }
    attention, pyramid = run.output.attention_map, run.output.pyramid
    rows = torch.zeros_like(pyramid.padding_mask).scatter(1, run.output.selection.indices, True)  # with surplus rows
    ours = {"all": covered_attention(rows, attention).mean().item()}
    per_level = covered_attention_per_level(rows, attention, pyramid).mean(0).tolist()
    ours |= {str(level): share for level, share in enumerate(per_level)}
    assert {name: ours[name] for name in public} == pytest.approx(public, rel=1e-5)


def test_every_loss_is_the_same(run):
    public = {name: value for name, value in run.case.facts["losses"].items() if name.startswith("loss_")}
    weights = run.case.facts["weight_dict"]
    ours = {public_loss_name(name): value.item() for name, value in run.losses.items()}
    assert ours == pytest.approx({name: weights[name] * value for name, value in public.items()}, rel=1e-5)
    assert sum(ours.values()) == pytest.approx(run.case.facts["total_loss"], rel=1e-5)


def test_every_gradient_has_the_same_norm(run):
    public = {run.converted.names[name]: norm for name, norm in run.case.facts["grad_norms"].items()}
    ours = {name: p.grad.norm().item() for name, p in run.model.named_parameters() if p.requires_grad}
    assert ours == pytest.approx(public, rel=1e-4, abs=1e-9)


def lookup(instances, expected, *, pixels, score):
    """For every stored detection that is clear of the cut, whether one of the same label, box and score was found.

    Scores lie as near as 1e-7 to each other, so ranks are not compared.

    Args:
        instances: our detections of an image.
        expected: stored `boxes` (xyxy, absolute), `labels`, `scores`.
        pixels, score: tolerances.
    """
    boxes = clip_boxes_to_image(expected["boxes"], instances.image_size)
    clear = expected["scores"] > expected["scores"][-1] + score
    clear &= torch.zeros_like(clear).index_fill(0, remove_small_boxes(boxes, 2 * pixels), True)
    same = instances.pred_classes == expected["labels"][:, None]
    same &= (instances.pred_boxes.tensor - boxes[:, None]).abs().amax(-1) < pixels
    same &= (instances.scores - expected["scores"][:, None]).abs() < score
    return same.any(1)[clear]


def check_detections(run, detections, *, pixels, score):
    for image, ours in enumerate(detections):
        expected = {key: run.expected[f"det{image}_{key}"] for key in ("boxes", "labels", "scores")}
        found = lookup(ours["instances"], expected, pixels=pixels, score=score)
        assert len(found) > 10
        assert found.all()


def test_the_same_detections_are_found(run):
    check_detections(run, run.model.detections(run.output, run.inputs), pixels=5e-3, score=1e-5)


def test_inference_in_float32_finds_the_same_detections(run):
    with torch.no_grad():
        check_detections(run, build(run.converted)(run.inputs), pixels=0.5, score=1e-3)
