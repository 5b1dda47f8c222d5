"""Converted public checkpoints give what the public code gave: outputs, selections, losses, gradients, detections.

The expected numbers come from the public implementations, run in float64 on the CPU with dropout off and without
denoising queries: the Sparse DETR repository (which contains Deformable DETR), those of the authors of DINO and
DAB-DETR, and detrex. `golden/cases.py` says how their inputs are made. Every case goes through the converter, which
also says which recipe to build. Tolerances: outputs 1e-5 (sums of all logits 2e-5), losses 1e-5 relative, gradient
norms 1e-4 relative.
"""

import dataclasses
import re
from contextlib import contextmanager, nullcontext

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
from tests.golden.cases import NAMES, GoldenCase, names_with

pytestmark = pytest.mark.slow

BACKBONES = {
    "resnet(50)": lambda: recipes.resnet(50),
    "resnet(50, num_maps=1)": lambda: recipes.resnet(50, num_maps=1),
    "resnet(50, freeze_at=1)": lambda: recipes.resnet(50, freeze_at=1),
    "resnet(50, freeze_at=1, num_maps=1)": lambda: recipes.resnet(50, freeze_at=1, num_maps=1),
    "swin_tiny()": recipes.swin_tiny,
}
# our part of a loss's name -> the public one, by repository
PUBLIC_LOSS = {
    "sparse_detr": {"loss_class": "loss_ce", "loss_token_score": "loss_mask_prediction"},
    "official": {"loss_class": "loss_ce", "_enc": "_interm"},
    "detrex": {"loss_foreground": "select_loss"},
}


def convert(case):
    """The case's checkpoint under our names, from a file like those of the public training script."""
    file = {"model": case.state_dict(), "args": case.saved_arguments, "epoch": 49}
    return convert_checkpoint({key: value for key, value in file.items() if value is not None})


def build(converted):
    """The model that the converter's description asks for, without denoising queries, with the converted weights."""
    description = converted.description
    recipe, backbone = getattr(recipes, description.recipe), BACKBONES[description.backbone]()
    config = recipe(backbone=backbone, behavior="released", **description.arguments)
    for key, value in description.overrides.items():
        OmegaConf.update(config, key, value)
    if "num_queries" in config.denoising:
        config.denoising.num_queries = 0
    model = instantiate(config)
    model.load_state_dict(converted.state_dict, strict=True)
    return model.eval()


def inputs(case):
    """The case's batch in Detectron2's format; detections are asked for at the case's target sizes."""
    return [
        as_record(image, boxes, labels, target_size)
        for image, (boxes, labels), target_size in zip(case.images(), case.targets(), case.target_sizes, strict=True)
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
        with geometry_in_float32() if self.case.repository == "sparse_detr" else nullcontext():
            with torch.no_grad():
                self.output = self.model.outputs(self.inputs, attention_map="dam_no_half_pixel" in self.expected)
            self.losses = self.model.losses(self.inputs)
        self.groups = {group.name: group for group in self.output.groups}
        sum(self.losses.values()).backward()


@pytest.fixture(scope="module", params=NAMES)
def run(request):
    return Run(request.param)


def cases_with(output):
    """Run a test with the cases that store an output."""
    return pytest.mark.parametrize("run", names_with(output), indirect=True)


def near(ours, public, *, absolute=1e-5):
    """Within `absolute`, or 1e-4 relative for numbers over 10."""
    tolerance = (1e-4 * public.abs().double()).where(public.abs() > 10, absolute)
    error = (ours.double() - public.double()).abs()
    assert (error <= tolerance).all(), f"off by up to {error.max():.2e}"


@cases_with("spatial_shapes")
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


def test_supervised_proposals_are_the_same(run):
    """Those of all tokens, or of the chosen ones, best first."""
    logits = run.expected.get("enc_logits_max", run.expected.get("enc_logits"))
    if logits is None:
        assert "proposals" not in run.groups
        return
    near(run.groups["proposals"].logits.amax(-1), logits)
    near(run.groups["proposals"].boxes, run.expected["enc_boxes"])


def test_encoder_layers_predict_the_same_for_every_row_of_the_batch(run):
    expected = {name for name in run.expected if name.startswith("enc_aux") and name.endswith("boxes")}
    assert len(expected) == len([name for name in run.groups if name.startswith("encoder_")])
    for layer in range(len(expected)):
        group = run.groups[f"encoder_{layer}"]
        near(group.logits.amax(-1), run.expected[f"enc_aux{layer}_logits_max"])
        near(group.boxes, run.expected[f"enc_aux{layer}_boxes"])


@cases_with("token_scores")
def test_the_same_tokens_are_kept_for_the_same_scores(run):
    near(run.output.token_scores, run.expected["token_scores"])
    assert run.output.selection.indices.equal(run.expected["token_topk"])
    assert run.output.selection.counts.tolist() == run.expected["token_counts"].tolist()


@cases_with("temp_backbone_mask_prediction")
def test_every_token_has_the_same_foreground_score(run):
    """As the loss sees it, before padding gets the lowest."""
    near(run.output.token_scores, run.expected["temp_backbone_mask_prediction"].squeeze(-1))


@cases_with("dam_no_half_pixel")
def test_the_decoder_attention_map_is_the_same(run):
    near(run.output.attention_map, run.expected["dam_no_half_pixel"])


@cases_with("token_scores")
def test_the_rows_of_the_selection_cover_the_same_share_of_attention(run):
    prefix = "corr_mask_attn_map_dec_"
    public = {name.removeprefix(prefix): value for name, value in run.case.losses.items() if name.startswith(prefix)}
    attention, pyramid = run.output.attention_map, run.output.pyramid
    rows = torch.zeros_like(pyramid.padding_mask).scatter(1, run.output.selection.indices, True)  # with surplus rows
    ours = {"all": covered_attention(rows, attention).mean().item()}
    per_level = covered_attention_per_level(rows, attention, pyramid).mean(0).tolist()
    ours |= {str(level): share for level, share in enumerate(per_level)}
    assert {name: ours[name] for name in public} == pytest.approx(public, rel=1e-5)


def public_loss_name(name, repository):
    """`loss_class_enc_0` -> `loss_ce_enc_0`, and so on."""
    for ours, public in PUBLIC_LOSS[repository].items():
        name = name.replace(ours, public)
    return name


def test_every_loss_is_the_same(run):
    """Without denoising queries their losses are 0, but not absent."""
    ours = {public_loss_name(name, run.case.repository): value.item() for name, value in run.losses.items()}
    denoising = re.compile(r"loss_(ce|class|bbox|giou)_dn(_\d)?")
    public = run.case.weighted_losses | {name: 0.0 for name in run.case.losses if denoising.fullmatch(name)}
    assert ours == pytest.approx(public, rel=1e-5)
    assert sum(ours.values()) == pytest.approx(run.case.facts["total_loss"], rel=1e-5)


def test_every_gradient_has_the_same_norm(run):
    """Without denoising queries nothing reaches the embedding of their labels."""
    public = {run.converted.names[name]: norm for name, norm in run.case.facts["grad_norms"].items()}
    parameters = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    ours = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in parameters.items()}
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
        boxes, scores = (run.expected[f"det{image}_{key}"] for key in ("boxes", "scores"))
        labels = run.expected.get(f"det{image}_labels", run.expected.get(f"det{image}_classes"))
        expected = {"boxes": boxes, "scores": scores, "labels": labels}
        found = lookup(ours["instances"], expected, pixels=pixels, score=score)
        assert len(found) > 10
        assert found.all()


def images_of_detections(run):
    """The batch, or where the public code detected on one image at a time the first."""
    return run.inputs if "det1_boxes" in run.expected else run.inputs[:1]


@cases_with("det0_boxes")
def test_the_same_detections_are_found(run):
    images = images_of_detections(run)
    with torch.no_grad():
        output = run.output if images is run.inputs else run.model.outputs(images, attention_map=False)
    check_detections(run, run.model.detections(output, images), pixels=5e-3, score=1e-5)


@cases_with("det0_boxes")
def test_inference_in_float32_finds_the_same_detections(run):
    with torch.no_grad():
        check_detections(run, build(run.converted)(images_of_detections(run)), pixels=0.05, score=1e-4)
