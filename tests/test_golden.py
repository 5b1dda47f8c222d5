"""Converted public checkpoints give the results of the public code: outputs, losses, gradients, detections.

The expected numbers come from the public implementations, run in float64 on the CPU without dropout: the Sparse DETR
repository (which contains Deformable DETR), the repositories of the authors of DINO and DAB-DETR, and detrex.
`golden/cases.py` makes the inputs. Denoising is off, except in cases that store its noise. Every case goes through the
converter, which also finds the recipe and the backbone, so a new case is a new folder.

Outputs are stored as float32, losses and gradient norms as float64. All computation here is float64, also pixel means
and true boxes. Then outputs agree to the last bit of float32; losses agree within 3e-15 and gradient norms within
2e-11, measured. The Sparse DETR repository computed its geometry in float32, which is imitated here, so its cases agree
less well: outputs within 3e-6, sums of all logits within 2e-5, losses within 8e-8, gradient norms within 4e-6.
"""

import contextlib
import dataclasses
import inspect
import re
from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.backbone.swin import SwinTransformerBlock
from detectron2.structures import Boxes, Instances
from torch.utils.checkpoint import checkpoint
from torchvision.ops import box_convert, clip_boxes_to_image, remove_small_boxes

from sparse_detr.analysis.tokens import covered_attention, covered_attention_per_level
from sparse_detr.checkpoint import convert_checkpoint
from sparse_detr.checkpoint.evidence import RESNETS, SWINS, backbone_call
from sparse_detr.config import model_config
from sparse_detr.config.converted import backbone_spec
from sparse_detr.modeling.detector import GeneralizedDETR
from sparse_detr.modeling.encoder import deformable as encoder
from sparse_detr.modeling.heads import ProposalGenerator
from sparse_detr.modeling.tokenizers import multi_scale as tokenizer
from sparse_detr.modeling.training import denoising
from tests.conftest import give_back_memory
from tests.golden.cases import NAMES, GoldenCase, names_with
from tests.meta import meta_device

pytestmark = pytest.mark.slow

# our part of a loss's name -> the public one, by repository
PUBLIC_LOSS = {
    "sparse_detr": {"loss_class": "loss_ce", "loss_token_score": "loss_mask_prediction"},
    "official": {"loss_class": "loss_ce", "_enc": "_interm", "loss_polled_scores": "sample_reg_loss"},
    "detrex": {"loss_foreground": "select_loss", "loss_polled_scores": "sample_reg_loss"},
}


def convert(case):
    """Convert the checkpoint of the case from a file in the form of the public training script."""
    file = {"model": case.state_dict(), "args": case.saved_arguments, "epoch": 49}
    return convert_checkpoint({key: value for key, value in file.items() if value is not None})


def build(converted, *, denoising_queries=0):
    """Build the model that the converter describes, with the converted weights."""
    config = model_config(converted.description)
    if "num_queries" in config.denoising:
        config.denoising.num_queries = denoising_queries
    model = instantiate(config)
    model.load_state_dict(converted.state_dict, strict=True)
    return model.eval()


def in_float64(model):
    """Convert the model to float64, with our pixel means as they were before rounding to float32."""
    model.double()
    for name in ("pixel_mean", "pixel_std"):
        numbers = getattr(model, name).flatten()
        exact = torch.tensor(inspect.signature(GeneralizedDETR).parameters[name].default, dtype=torch.float64)
        if numbers.equal(exact.float().double()):
            getattr(model, name).copy_(exact.view(-1, 1, 1))
    return model


def inputs(case):
    """Make the batch of the case in Detectron2's format; detections are scaled to its target sizes."""
    return [
        as_record(image, boxes, labels, target_size)
        for image, (boxes, labels), target_size in zip(case.images(), case.targets(), case.target_sizes, strict=True)
    ]


def as_record(image, boxes, labels, target_size):
    height, width = image.shape[-2:]
    scale = boxes.new_tensor([width, height, width, height])
    corners = box_convert(boxes, "cxcywh", "xyxy") * scale
    instances = Instances((height, width), gt_boxes=Boxes(corners), gt_classes=labels)
    instances.gt_boxes.tensor = corners  # `Boxes` rounds to float32
    return {"image": image, "height": target_size[0], "width": target_size[1], "instances": instances}


@contextmanager
def geometry_in_float32():
    """Round geometry to float32 in a float64 model, as the public run did."""
    embed, generate = tokenizer.embed_tokens, ProposalGenerator.forward

    def embed_in_float32(*args, dtype, **options):
        return embed(*args, dtype=torch.float32, **options).to(dtype)

    def reference_points_in_float32(pyramid, dtype):
        ratios = pyramid.valid_ratios(torch.float32)
        sizes = torch.tensor(pyramid.spatial_shapes).flip(-1)
        levels, cells = pyramid.cells[:, 0], pyramid.cells[:, 1:].flip(-1)
        centers = (cells + 0.5) / (ratios * sizes)[:, levels]
        return (centers[:, :, None] * ratios[:, None]).to(dtype)

    def generate_in_float32(self, pyramid, dtype, **parts):
        proposals = generate(self, pyramid, torch.float32, **parts)
        return dataclasses.replace(proposals, box_logits=proposals.box_logits.to(dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "embed_tokens", embed_in_float32)
        patch.setattr(encoder, "encoder_reference_points", reference_points_in_float32)
        patch.setattr(ProposalGenerator, "forward", generate_in_float32)
        yield


@contextmanager
def given_noise(noise):
    """Replace the random numbers of denoising by stored ones (B, G, 2, n, 10); every box is chosen."""

    def numbers(true, sizes):
        return noise.new_zeros(len(noise), sizes[0]), noise.flatten(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "_random_numbers", numbers)
        yield


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Tolerances of a case: of outputs and logit sums relative to at least 1, of losses and gradient norms relative.

    Boxes of detections have an absolute tolerance in `pixels`, because Detectron2 rounds them to float32; scores have
    an absolute one too.
    """

    output: float
    sums: float
    loss: float
    gradient: float
    pixels: float
    score: float


EXACT = Tolerances(output=1e-7, sums=1e-7, loss=1e-10, gradient=1e-8, pixels=1e-3, score=1e-6)
GEOMETRY_IN_FLOAT32 = Tolerances(output=1e-5, sums=2e-5, loss=1e-6, gradient=1e-5, pixels=5e-3, score=1e-5)


def residual_blocks(backbone):
    return [module for module in backbone.modules() if isinstance(module, (BottleneckBlock, SwinTransformerBlock))]


def recompute_activations(modules):
    """Store only the inputs of a module for its backward pass, which takes a fraction of the memory."""
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


class Run:
    """The results of a case in float64: `expected`, and our `output`, `losses`, `gradient_norms` and detections.

    The model, its gradients and its graph take gigabytes, so they are freed before a test reads the numbers.
    """

    def __init__(self, name):
        self.case = GoldenCase(name)
        self.expected = self.case.outputs
        self.tolerances = GEOMETRY_IN_FLOAT32 if self.case.repository == "sparse_detr" else EXACT
        batch = inputs(self.case)
        self.images = batch if "det1_boxes" in self.expected else batch[:1]  # those with stored detections
        model = self._build()
        if "det0_boxes" in self.expected:
            with torch.no_grad():
                self.detections_in_float32 = model(self.images)
        give_back_memory()
        self._compute(in_float64(model), batch)
        del model
        give_back_memory()

    def _build(self):
        converted = convert(self.case)
        self.names = converted.names
        return build(converted, denoising_queries=self.case.denoising_queries)

    def _compute(self, model, batch):
        model.supervision.needs_attention_map |= "dam_no_half_pixel" in self.expected
        recompute_activations([*model.encoder.layers, *model.decoder.layers, *residual_blocks(model.backbone)])
        model.supervision.register_forward_pre_hook(self._keep_output)
        self.sums = {}
        for i, layer in enumerate(model.encoder.layers):
            for name, module in ((f"layer{i}_sum", layer), (f"layer{i}_attention_sum", layer.self_attn)):
                module.register_forward_hook(partial(self._keep_sum, name))
        model.encoder.register_forward_hook(partial(self._keep_sum, "memory_sum"))
        self.gradient_norms = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.gradient_norms[name] = 0.0
                parameter.register_post_accumulate_grad_hook(partial(self._take_norm, name))
        with contextlib.ExitStack() as public:
            if self.case.repository == "sparse_detr":
                public.enter_context(geometry_in_float32())
            if self.case.denoising_queries:
                public.enter_context(given_noise(self.expected["dn_noise"].double()))
            losses = model.losses(batch)
            sum(losses.values()).backward()
        self.losses = {name: loss.item() for name, loss in losses.items()}
        if "det0_boxes" in self.expected:
            whole = len(self.images) == len(batch)
            with torch.no_grad():
                output = self.output if whole else model.outputs(self.images, attention_map=False)
                self.detections = model.detections(output, self.images)

    def _take_norm(self, name, parameter):
        """Store the norm of a gradient; called once in a backward pass, when the gradient is complete."""
        assert self.gradient_norms[name] == 0.0
        self.gradient_norms[name] = parameter.grad.norm().item()
        parameter.grad = None

    def _keep_sum(self, name, module, arguments, result):
        """Store the sum over channels of the tokens that a part of the encoder gives."""
        if name in self.expected:
            self.sums[name] = getattr(result, "memory", result).detach().sum(-1)

    def _keep_output(self, supervision, arguments):
        output = arguments[0]
        groups = [
            dataclasses.replace(group, logits=group.logits.detach(), boxes=group.boxes.detach())
            for group in output.groups
        ]
        scores = None if output.token_scores is None else output.token_scores.detach()
        self.groups = {group.name: group for group in groups}
        self.output = dataclasses.replace(
            output, groups=tuple(groups), predictions=self.groups["decoder_5"], token_scores=scores
        )


@pytest.fixture(scope="module", params=NAMES)
def run(request):
    return Run(request.param)


def cases_with(output):
    """Parametrise a test with the cases that store an output."""
    return pytest.mark.parametrize("run", names_with(output), indirect=True)


def near(run, ours, public, *, sums=False):
    """Compare within the tolerance of the case."""
    tolerance = run.tolerances.sums if sums else run.tolerances.output
    error = (ours.double() - public.double()).abs() / public.double().abs().clamp(min=1)
    assert error.max() <= tolerance, f"off by up to {error.max():.2e}"


@cases_with("spatial_shapes")
def test_tokens_lie_on_the_same_pyramid(run):
    assert run.output.pyramid.spatial_shapes == tuple(map(tuple, run.expected["spatial_shapes"].tolist()))
    assert run.output.pyramid.padding_mask.equal(run.expected["mask_flatten"])


def test_last_decoder_layer_predicts_the_same(run):
    near(run, run.output.predictions.logits, run.expected["pred_logits"])
    near(run, run.output.predictions.boxes, run.expected["pred_boxes"])


@pytest.mark.parametrize("layer", range(5))
def test_earlier_decoder_layers_predict_the_same(run, layer):
    group = run.groups[f"decoder_{layer}"]
    near(run, group.logits.sum(-1), run.expected[f"aux{layer}_logits_sum"], sums=True)
    near(run, group.boxes, run.expected[f"aux{layer}_boxes"])


def test_supervised_proposals_are_the_same(run):
    """Proposals of all tokens, or of the chosen ones, best first."""
    logits = run.expected.get("enc_logits_max", run.expected.get("enc_logits"))
    if logits is None:
        assert "proposals" not in run.groups
        return
    near(run, run.groups["proposals"].logits.amax(-1), logits)
    near(run, run.groups["proposals"].boxes, run.expected["enc_boxes"])


def test_encoder_layers_predict_the_same_for_every_row_of_the_batch(run):
    expected = {name for name in run.expected if name.startswith("enc_aux") and name.endswith("boxes")}
    assert len(expected) == len([name for name in run.groups if name.startswith("encoder_")])
    for layer in range(len(expected)):
        group = run.groups[f"encoder_{layer}"]
        near(run, group.logits.amax(-1), run.expected[f"enc_aux{layer}_logits_max"])
        near(run, group.boxes, run.expected[f"enc_aux{layer}_boxes"])


@cases_with("refined_ranges")
def test_every_encoder_layer_refines_the_same_range_of_tokens(run):
    layers = [run.output.selection.at_layer(i).indices for i in range(len(run.expected["refined_ranges"]))]
    for indices, (start, stop) in zip(layers, run.expected["refined_ranges"].tolist(), strict=True):
        assert indices.equal(torch.arange(start, stop).expand(len(indices), -1))


@cases_with("memory_sum")
def test_every_encoder_layer_and_its_attention_give_the_same_tokens(run):
    """Padding tokens differ: their positions do, and nothing reads them."""
    expected = {name for name in run.expected if name.endswith("_sum")} & set(run.sums)
    assert len(expected) == 2 * len(run.expected["refined_ranges"]) + 1
    for name in expected:
        layer = re.match(r"layer(\d+)", name)
        selection = run.output.selection
        valid = selection.at_layer(int(layer[1])).valid if layer else ~run.output.pyramid.padding_mask
        near(run, run.sums[name][valid], run.expected[name][valid], sums=True)


@cases_with("token_scores")
def test_the_same_tokens_are_kept_for_the_same_scores(run):
    near(run, run.output.token_scores, run.expected["token_scores"])
    assert run.output.selection.indices.equal(run.expected["token_topk"])
    assert run.output.selection.counts.tolist() == run.expected["token_counts"].tolist()


@cases_with("temp_backbone_mask_prediction")
def test_every_token_has_the_same_foreground_score(run):
    """The score as the loss reads it, before padding gets the lowest score."""
    near(run, run.output.token_scores, run.expected["temp_backbone_mask_prediction"].squeeze(-1))


@cases_with("dam_no_half_pixel")
def test_the_decoder_attention_map_is_the_same(run):
    near(run, run.output.attention_map, run.expected["dam_no_half_pixel"])


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
    """Return the public name of a loss, such as `loss_ce_enc_0` for `loss_class_enc_0`."""
    for ours, public in PUBLIC_LOSS[repository].items():
        name = name.replace(ours, public)
    return name


def test_every_loss_is_the_same(run):
    """Without denoising queries, their losses are 0 but present."""
    ours = {public_loss_name(name, run.case.repository): value for name, value in run.losses.items()}
    denoising_loss = re.compile(r"loss_(ce|class|bbox|giou)_dn(_\d)?")
    absent = {name: 0.0 for name in run.case.losses if denoising_loss.fullmatch(name)}
    public = absent | run.case.weighted_losses
    assert ours == pytest.approx(public, rel=run.tolerances.loss)
    assert sum(ours.values()) == pytest.approx(run.case.facts["total_loss"], rel=run.tolerances.loss)


def test_every_gradient_has_the_same_norm(run):
    """Without denoising queries, the label embedding gets no gradient."""
    public = {run.names[name]: norm for name, norm in run.case.facts["grad_norms"].items()}
    assert run.gradient_norms == pytest.approx(public, rel=run.tolerances.gradient, abs=1e-12)


def lookup(instances, expected, *, pixels, score, complete):
    """Return for every stored detection above the cut whether a detection of the same label, box and score was found.

    Scores differ by as little as 1e-7, so ranks are not compared.

    Args:
        instances: our detections of an image.
        expected: stored `boxes` (xyxy, absolute), `labels`, `scores`.
        pixels, score: tolerances.
        complete: nothing was cut off.
    """
    boxes = clip_boxes_to_image(expected["boxes"], instances.image_size)
    clear = expected["scores"] > expected["scores"].min() + (-1 if complete else score)
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
        complete = len(scores) == run.expected["pred_logits"].shape[1]  # one detection for each query, in DETR
        found = lookup(ours["instances"], expected, pixels=pixels, score=score, complete=complete)
        assert len(found) > 10
        assert found.all()


@cases_with("det0_boxes")
def test_the_same_detections_are_found(run):
    check_detections(run, run.detections, pixels=run.tolerances.pixels, score=run.tolerances.score)


@cases_with("det0_boxes")
def test_inference_in_float32_finds_the_same_detections(run):
    """The tolerance of scores is less where those of a case lie so near to each other that none is above the cut."""
    scores = run.expected["det0_scores"]
    score = max(1e-5, min(1e-4, (scores.max() - scores.min()).item() / 5))
    check_detections(run, run.detections_in_float32, pixels=0.05, score=score)


@cases_with("dn_pred_boxes")
def test_denoising_queries_predict_the_same(run):
    """Queries of every slot of every group, with or without a box."""
    near(run, run.groups["denoising_5"].boxes, run.expected["dn_pred_boxes"])
    near(run, run.groups["denoising_5"].logits.sum(-1), run.expected["dn_pred_logits_sum"], sums=True)
    for layer in range(5):
        near(run, run.groups[f"denoising_{layer}"].boxes, run.expected[f"dn_aux{layer}_boxes"])
        near(run, run.groups[f"denoising_{layer}"].logits.sum(-1), run.expected[f"dn_aux{layer}_logits_sum"], sums=True)


def backbones_that_the_converter_names():
    for (_, bottlenecks), depth in RESNETS.items():
        for freeze, maps, dilation in product((None, 1), (None, 1, 2, 4), (None, True) if bottlenecks else (None,)):
            options = {"freeze_at": freeze, "num_maps": maps, "dilation": dilation}
            yield backbone_call("resnet", depth, {key: value for key, value in options.items() if value is not None})
    for size in SWINS.values():
        for image_size, maps in product((None, 384), (None, 1, 4)):
            options = {"image_size": image_size, "num_maps": maps}
            yield backbone_call("swin", size, {key: value for key, value in options.items() if value is not None})
    yield "swin_tiny()"


@pytest.mark.parametrize("call", list(backbones_that_the_converter_names()))
def test_every_backbone_that_the_converter_names_can_be_built(call):
    backbone = backbone_spec(call)
    with meta_device():
        assert set(backbone.in_features) <= set(instantiate(backbone.config).output_shape())


@pytest.mark.parametrize("call", ["resnet(open('/'))", "resnet", "__import__('os')", "os.system('true')", "resnet(50"])
def test_a_text_that_is_no_recipe_is_not_executed(call):
    with pytest.raises(ValueError, match="a backbone is named by a call of a recipe"):
        backbone_spec(call)
