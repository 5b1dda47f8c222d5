"""Detectors of other packages with the call of ours: images of any size in, `{"instances": Instances}` out."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from sparse_detr.benchmark.contestants import Batch, Contestant, parts_of, present, unchanged
from sparse_detr.checkpoint import invert_conversion
from sparse_detr.checkpoint.evidence import RESNETS
from sparse_detr.checkpoint.name_maps import count_indices
from sparse_detr.engine.weights import TRAINING_ONLY
from sparse_detr.errors import UserError
from sparse_detr.modeling.decoder import NoRefinement
from sparse_detr.modeling.detector import TopKDetections, as_instances
from sparse_detr.structures import PredictionGroup

RF_DETR = {"rf-detr-nano": "RFDETRNano", "rf-detr-small": "RFDETRSmall", "rf-detr-medium": "RFDETRMedium"}
KINDS = ("transformers", "detectron2:CONFIG", *RF_DETR)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RF_DETECTIONS = 300
SAME_OUTPUTS = 1e-3
CROP = 256  # pixels of the images on which outputs are compared


@dataclass(frozen=True)
class Reference:
    """Our model, which rivals are made like.

    Args:
        name: for notes.
        model: in eval mode.
        image_format: "RGB" or "BGR", of the inputs.
        is_trained: it has trained weights.
        device: of all models.
        images: two inputs, for a comparison of outputs.
    """

    name: str
    model: nn.Module
    image_format: str
    is_trained: bool
    device: str
    images: Batch


def make_rival(name: str, ours: Reference) -> Contestant:
    """Return the detector that a name of the command line asks for.

    Args:
        name: `transformers`, `rf-detr-nano|small|medium`, or `detectron2:CONFIG`, with `=WEIGHTS` behind it or random
            weights; CONFIG is a file, or a name in Detectron2's model zoo.
        ours: what it is timed beside.

    Raises:
        UserError: the name is unknown, or its package is not installed.
    """
    if name == "transformers":
        return transformers_rival(ours)
    if name in RF_DETR:
        return rf_detr_rival(name, ours)
    kind, _, config = name.partition(":")
    if kind == "detectron2" and config:
        return detectron2_rival(config, ours)
    raise UserError(f"--rival {name} is unknown; give {', '.join(KINDS)}")


def require(package: str, option: str) -> ModuleType:
    """Import the package that a rival needs.

    Raises:
        UserError: it is not installed, or something that it needs is not.
    """
    if find_spec(package) is None:
        raise UserError(f"--rival {option} needs the package {package}; install it: pip install {package}")
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"--rival {option}: the package {package} is installed but cannot be imported ({error}); install it with "
            f"all that it needs: pip install --force-reinstall {package}"
        ) from error


# Detectron2


def detectron2_rival(config: str, ours: Reference) -> Contestant:
    """Return a model of Detectron2; `config` may end in `=WEIGHTS`."""
    from sparse_detr.config.load import load_config
    from sparse_detr.config.model import build_detector
    from sparse_detr.engine.weights import load_trained_weights

    path, _, weights = config.partition("=")
    cfg = load_config(_config_file(path))
    model = build_detector(cfg, device=ours.device).eval()
    load_trained_weights(model, weights)
    turned = _image_format(cfg) != ours.image_format
    return Contestant(
        f"detectron2 {Path(path).stem}",
        "" if weights else "random weights: few boxes reach its suppression",
        model,
        parts_of(model),
        prepare=_with_turned_channels if turned else unchanged,
    )


def _config_file(path: str) -> str:
    if os.path.isfile(path):
        return path
    spec = find_spec("detectron2")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (found := Path(folder) / "model_zoo" / "configs" / path).is_file():
            return str(found)
    raise UserError(f"--rival detectron2:{path}: there is no such file, nor such a config in Detectron2's model zoo")


def _image_format(cfg: Any) -> str:
    from sparse_detr.config.kinds import kind_of

    kind = kind_of(cfg)
    return kind.choose(
        lazy=lambda: kind.get("dataloader.test.mapper.image_format") or "BGR", yacs=lambda: cfg.INPUT.FORMAT
    )()


def _with_turned_channels(batch: Batch) -> Batch:
    return [{**image, "image": image["image"].flip(0)} for image in batch]


# transformers


class TransformersDetector(nn.Module):
    """A detector of `transformers` behind the normalisation, padding and post-processing of ours.

    Args:
        model: a `...ForObjectDetection`.
        ours: a `GeneralizedDETR`.
    """

    def __init__(self, model: nn.Module, ours: Any) -> None:
        super().__init__()
        self.public = model
        self.num_classes, self.class_channels = ours.num_classes, ours.class_channels
        self.postprocess = ours.postprocess
        self.size_divisibility = ours.size_divisibility
        self.register_buffer("pixel_mean", ours.pixel_mean.clone(), persistent=False)
        self.register_buffer("pixel_std", ours.pixel_std.clone(), persistent=False)

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Return logits (B, Q, classes), boxes (B, Q, 4) as cxcywh in [0, 1], and the (h, w) of every image."""
        images = [(image["image"].to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in batch]
        padded = ImageList.from_tensors(images, self.size_divisibility)
        mask = torch.zeros_like(padded.tensor[:, 0], dtype=torch.long)
        for i, (height, width) in enumerate(padded.image_sizes):
            mask[i, :height, :width] = 1
        found = self.public(pixel_values=padded.tensor, pixel_mask=mask)
        return found.logits, found.pred_boxes, padded.image_sizes

    def forward(self, batch: Batch) -> list[dict[str, Any]]:
        """Return the detections of every image."""
        logits, boxes, sizes = self.predict(batch)
        found = self.postprocess(PredictionGroup("decoder", "", logits, boxes), sizes, self.class_channels)
        return [
            {"instances": detector_postprocess(instances, image.get("height", size[0]), image.get("width", size[1]))}
            for instances, image, size in zip(found, batch, sizes, strict=True)
        ]


PUBLIC_PARTS = {
    "backbone": ("public.model.backbone",),
    "tokenizer": ("public.model.position_embedding", "public.model.input_proj", "public.model.input_projection"),
    "encoder": ("public.model.encoder",),
    "decoder": ("public.model.decoder",),
}


def transformers_rival(ours: Reference) -> Contestant:
    """Return the model of `transformers` with the weights of ours; if it has none, its Deformable DETR of our sizes."""
    require("transformers", "transformers")
    if not hasattr(ours.model, "tokenizer"):
        raise UserError(
            f"--rival transformers is made like our model, and a {type(ours.model).__name__} is Detectron2's; leave it "
            "out"
        )
    try:
        model, note, is_trained = _with_our_weights(ours)
    except UserError as error:
        model = _build_public("DeformableDetr", ours.model)
        model, is_trained = _wrapped(model, ours), False
        model.postprocess = TopKDetections()
        note = f"dense Deformable DETR with random weights, time only: it has no {ours.name} ({error})"
    return Contestant("transformers", note, model, present(model, PUBLIC_PARTS), is_trained=is_trained)


def _with_our_weights(ours: Reference) -> tuple[TransformersDetector, str, bool]:
    """Return the model, a note with the largest difference to our outputs, and whether it is as trained as ours."""
    public = _build_public(_public_class(ours.model), ours.model)
    weights = {name: value for name, value in ours.model.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    public.load_state_dict(invert_conversion(weights, public.state_dict()), strict=True)
    model = _wrapped(public, ours)
    difference = largest_difference(model, ours)
    same = difference < SAME_OUTPUTS
    equal = f"our weights; largest difference of logits and boxes {difference:.1e}"
    return model, equal if same else f"{equal}: it computes otherwise, see `behavior`", ours.is_trained and same


def _wrapped(public: nn.Module, ours: Reference) -> TransformersDetector:
    return TransformersDetector(public.eval(), ours.model).to(ours.device).eval()


@torch.no_grad()
def largest_difference(model: TransformersDetector, ours: Reference) -> float:
    """Return the largest difference of logits and boxes to ours, in float64 on a padded batch of two crops."""
    sides = ((CROP, CROP * 3 // 4), (CROP * 5 // 8, CROP))
    batch = [
        {**image, "image": image["image"][:, :height, :width]}
        for image, (height, width) in zip(ours.images, sides, strict=False)
    ]
    with _in_double(model), _in_double(ours.model):
        logits, boxes, _ = model.predict(batch)
        found = ours.model.outputs(batch, attention_map=False).predictions
    pairs = ((found.logits, logits), (found.boxes, boxes))
    return max(float((mine - other).abs().max()) for mine, other in pairs)


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """Compute in float64; float32 weights come back unchanged."""
    model.double()
    try:
        yield
    finally:
        model.float()


def _public_class(model: Any) -> str:
    """Return the class of `transformers` whose weights ours could be."""
    names = model.state_dict()
    if "tokenizer.level_embed" in names:
        return "DeformableDetr"
    return "ConditionalDetr" if any(name.startswith("decoder.query_position.scale.") for name in names) else "Detr"


def _build_public(kind: str, model: Any) -> nn.Module:
    """Return a model of `transformers` with random weights and the sizes of ours."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**public_sizes(kind, model))
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def public_sizes(kind: str, model: Any) -> dict[str, Any]:
    """Return the arguments of a config of `transformers` for a model of our sizes; where ours has none, the paper's."""
    weights = model.state_dict()
    hidden, embed_dim = weights["decoder.layers.0.ffn.linear1.weight"].shape
    layers = {stack: count_indices(weights, rf"{stack}\.layers\.(\d+)\.") for stack in ("encoder", "decoder")}
    attention = [module for module in model.decoder.layers[0].modules() if hasattr(module, "num_heads")]
    heads = next((module.num_heads for module in attention), 8)
    blocks = count_indices(weights, r"backbone\.res4\.(\d+)\.")
    sizes = {
        "d_model": embed_dim,
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_ffn_dim": hidden,
        "decoder_ffn_dim": hidden,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "num_queries": _num_queries(model),
        "num_labels": model.num_classes,
        "backbone": f"resnet{RESNETS.get((blocks, True), 50)}",
        "dilation": _is_dilated(model),
    }
    return sizes | _deformable_sizes(model) if kind == "DeformableDetr" else sizes


def _deformable_sizes(model: Any) -> dict[str, Any]:
    weights = model.state_dict()
    points = next((module.num_points for module in model.decoder.modules() if hasattr(module, "num_points")), 4)
    two_stage = any(name.startswith("queries.start.position_projection.") for name in weights)
    refines = not isinstance(getattr(model.decoder, "refinement", None), NoRefinement | None)
    return {
        "num_feature_levels": len(weights["tokenizer.level_embed"]) if "tokenizer.level_embed" in weights else 4,
        "encoder_n_points": points,
        "decoder_n_points": points,
        "two_stage": two_stage,
        "two_stage_num_proposals": _num_queries(model),
        "with_box_refine": refines or two_stage,
    }


def _num_queries(model: Any) -> int:
    embedding = model.state_dict().get("queries.embedding.weight")
    return getattr(model.queries, "num_queries", None) or (300 if embedding is None else len(embedding))


def _is_dilated(model: Any) -> bool:
    shapes = getattr(model.backbone, "output_shape", dict)()
    return "res5" in shapes and shapes["res5"].stride == 16


# RF-DETR


class RfDetrDetector(nn.Module):
    """A detector of the package `rfdetr`, which takes squares of one size.

    Args:
        model: its PyTorch module, or its traced form: pixels (B, 3, side, side) -> a dict with `pred_logits` and
            `pred_boxes`, or a tuple of boxes and logits.
        side: of the square in pixels.
    """

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.public, self.side = model, side
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)

    def resize(self, batch: Batch) -> Batch:
        """Return the images as squares, with pixels in [0, 1]."""
        size = (self.side, self.side)
        resized = [
            nn.functional.interpolate(image["image"][None].float(), size=size, mode="bilinear", antialias=True)[0]
            for image in batch
        ]
        return [{**image, "image": pixels / 255} for image, pixels in zip(batch, resized, strict=True)]

    def forward(self, batch: Batch) -> list[dict[str, Any]]:
        """Return the detections of every image, in the pixels of its `height` and `width`."""
        pixels = torch.stack([image["image"].to(self.mean) for image in batch])
        found = self.public((pixels - self.mean) / self.std)
        logits, boxes = (found["pred_logits"], found["pred_boxes"]) if isinstance(found, dict) else (found[1], found[0])
        best, flat = logits.sigmoid().flatten(1).topk(min(RF_DETECTIONS, logits[0].numel()))
        rows, labels = flat // logits.shape[-1], flat % logits.shape[-1]
        sizes = [(image.get("height", self.side), image.get("width", self.side)) for image in batch]
        return [
            {"instances": as_instances(size, boxes[i, rows[i]], best[i], labels[i])} for i, size in enumerate(sizes)
        ]


def rf_detr_rival(name: str, ours: Reference, *, traced: bool = False) -> Contestant:
    """Return a model of RF-DETR with random weights, at its own image size.

    Args:
        name: of `RF_DETR`.
        ours: what it is timed beside.
        traced: take the form that the package makes for inference, a TorchScript trace of one image.
    """
    package = require("rfdetr", name)
    if not hasattr(package, RF_DETR[name]):
        raise UserError(f"--rival {name}: this rfdetr has no {RF_DETR[name]}; update it: pip install -U rfdetr")
    with _without_advice("rf-detr"):
        wrapper = getattr(package, RF_DETR[name])(pretrain_weights=None, device=ours.device)
        if traced:
            wrapper.inference(batch_size=1)
    public = wrapper.model.inference_model if traced else wrapper.model.model
    model = RfDetrDetector(public, wrapper.model.resolution).to(ours.device).eval()
    turned = ours.image_format == "BGR"

    def prepare(batch: Batch) -> Batch:
        return model.resize(_with_turned_channels(batch) if turned else batch)

    parts = {"backbone": ("public.backbone",), "transformer": ("public.transformer",)}
    note = f"random weights, time only; its own size {model.side}x{model.side}; FLOPs not counted"
    return Contestant(
        f"{name}, traced" if traced else name,
        note,
        model,
        {} if traced else present(model, parts),
        prepare=prepare,
        counts_flops=False,
    )


@contextmanager
def _without_advice(logger: str) -> Iterator[None]:
    """Keep back warnings that ask for pre-trained weights."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
