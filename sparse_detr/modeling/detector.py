"""The detector: every paper's model is this flow with other parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

# ruff: noqa: E402 - the check must come before what it checks for
from sparse_detr._detectron2 import require_detectron2

require_detectron2()

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances

from sparse_detr.modeling.heads import Heads, Predictions
from sparse_detr.modeling.initialization import initialize_transformer
from sparse_detr.modeling.inputs import check_images, check_sizes, check_targets
from sparse_detr.modeling.queries import Queries
from sparse_detr.structures import DetectorOutput, PredictionGroup, Targets, TokenSelection, geometry_dtype


class GeneralizedDETR(nn.Module):
    """A detection transformer over multi-scale tokens, some of which its encoder may leave as they are.

    In training mode `forward` returns weighted losses, else one `{"instances": Instances}` an image, as Detectron2
    expects of a meta-architecture. Inputs are never changed.

    Args:
        backbone: image batch -> dict of maps.
        in_features: the maps to use, fine to coarse.
        tokenizer: maps -> tokens.
        proposals: a box for every token.
        projection: what scorers and the proposal head read tokens through; None where nothing does.
        selector: which tokens the encoder refines.
        encoder: refines them.
        queries: encoded tokens -> decoder queries.
        denoising: adds queries that start from noisy true boxes, where there are true boxes to learn from.
        decoder: queries -> predictions.
        heads: class and box heads.
        attention_map: where the decoder looked.
        auxiliary_proposals: proposals that only teach the proposal head, where the queries come from elsewhere.
        supervision: what the token scores learn from.
        criterion: losses of every prediction group.
        postprocess: predictions -> detections.
        num_classes: logits of every head.
        class_channels: for every class of the data set, the logit that stands for it, where a model has more logits
            than classes (91 for the category ids of COCO); None if they are the same.
        supervise_surplus_rows: train on the rows that fill the batch where images keep different numbers of tokens, as
            the public implementation does.
        pixel_mean, pixel_std: of the image format that the data loader gives, one number a channel.
        size_divisibility: pad the batch to a multiple of it, for backbones that must have it.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        in_features: Sequence[str],
        tokenizer: nn.Module,
        proposals: nn.Module,
        projection: nn.Module | None,
        selector: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        denoising: nn.Module,
        decoder: nn.Module,
        heads: Heads,
        attention_map: nn.Module,
        auxiliary_proposals: nn.Module,
        supervision: nn.Module,
        criterion: nn.Module,
        postprocess: nn.Module,
        num_classes: int,
        class_channels: Sequence[int] | None = None,
        supervise_surplus_rows: bool = False,
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        size_divisibility: int = 0,
    ):
        super().__init__()
        self.backbone, self.in_features, self.tokenizer = backbone, tuple(in_features), tokenizer
        self.proposals, self.projection, self.selector = proposals, projection, selector
        self.encoder, self.queries, self.denoising, self.decoder = encoder, queries, denoising, decoder
        self.decoder_heads = nn.ModuleList(heads.decoder)
        self.proposal_head = heads.proposals
        self.encoder_heads = nn.ModuleList(heads.encoder)
        self.attention_map, self.supervision = attention_map, supervision
        self.auxiliary_proposals = auxiliary_proposals
        self.criterion, self.postprocess = criterion, postprocess
        self.num_classes, self.class_channels = num_classes, class_channels
        self.supervise_surplus_rows, self.size_divisibility = supervise_surplus_rows, size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        for part in (projection, selector, encoder, queries, decoder):
            if part is not None:
                part.apply(initialize_transformer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that the first encoder layer refines, in the current mode."""
        return self.selector.keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        """Share of the tokens that an encoder layer refines, on the mean over the layers."""
        return self.selector.mean_keep_ratio

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """Refine another share of the tokens from now on; no weight depends on it.

        Raises:
            ValueError: the ratio is not in (0, 1], or the model has a dense encoder and the ratio is not 1.
        """
        self.selector.set_keep_ratio(keep_ratio)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Weighted losses in training mode, else detections; see Detectron2's documentation of meta-architectures.

        Args:
            batched_inputs: one dict an image: `image` (3, h, w) and, for training, `instances` with `gt_boxes` and
                `gt_classes`; `height` and `width`, which detections are scaled to, default to those of the image.
        """
        return self.losses(batched_inputs) if self.training else self.detect(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses by name, in either mode; their sum is what training minimises.

        Raises:
            UserError: an image or its `instances` cannot be right; see `sparse_detr.modeling.inputs`.
        """
        check_images(batched_inputs, len(self.pixel_mean))
        targets = [self._targets(image) for image in batched_inputs]
        images = self._preprocess(batched_inputs)
        output = self._run(images, targets, supervised=True, attention_map=self.supervision.needs_attention_map)
        with torch.autocast(self.device.type, enabled=False):
            output = replace(
                output, groups=tuple(map(_full_precision, output.groups)), token_scores=_widen(output.token_scores)
            )
            return self.criterion(output.groups, targets) | self.supervision(output, targets)

    def detect(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections, scaled to `height` and `width` of every image and clipped to it.

        Raises:
            UserError: an image cannot be right; see `sparse_detr.modeling.inputs`.
        """
        check_images(batched_inputs, len(self.pixel_mean))
        check_sizes(batched_inputs)
        images = self._preprocess(batched_inputs)
        output = self._run(images, None, supervised=False, attention_map=False)
        return self.detections(output, batched_inputs)

    def detections(self, output: DetectorOutput, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections of an output of `outputs`, as `detect` gives them."""
        group = output.predictions
        if self.class_channels is not None:
            group = replace(group, logits=group.logits[..., self.class_channels])
        results = []
        for instances, image in zip(self.postprocess(group, output.image_sizes), batched_inputs, strict=True):
            height, width = image.get("height", instances.image_size[0]), image.get("width", instances.image_size[1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results

    def outputs(self, batched_inputs: list[dict[str, Any]], *, attention_map: bool = True) -> DetectorOutput:
        """Everything that the detector computes: all prediction groups, token scores, selection, attention map.

        Args:
            batched_inputs: as for `forward`; `instances` are not looked at.
            attention_map: compute the decoder attention map.
        """
        check_images(batched_inputs, len(self.pixel_mean))
        return self._run(self._preprocess(batched_inputs), None, supervised=True, attention_map=attention_map)

    def _run(
        self, images: ImageList, targets: Sequence[Targets] | None, *, supervised: bool, attention_map: bool
    ) -> DetectorOutput:
        """The flow; `targets` add denoising queries, `supervised` adds what only losses need."""
        sizes = tuple((int(h), int(w)) for h, w in images.image_sizes)
        features = self.backbone(images.tensor)
        tokens = self.tokenizer([features[name] for name in self.in_features], sizes, images.tensor.shape[-2:])
        proposals = self.proposals(tokens.pyramid, tokens.position.dtype)
        selected = self.selector(tokens, proposals, self.projection)
        encoded = self.encoder(tokens, selected.selection, scores=selected.ranking, head=self.proposal_head)
        memory = replace(tokens, content=encoded.memory)
        proposed = {"proposals": proposals, "projection": self.projection, "head": self.proposal_head}
        queries = self.queries(encoded.memory, **proposed)
        noisy = self.denoising(queries, targets)
        decoded = self.decoder(noisy, memory, self.decoder_heads, need_samples=attention_map)
        denoised, decoded = decoded.split(noisy.num_denoising)
        groups = layer_groups("decoder", "", decoded.predictions, valid=queries.valid)
        predictions = groups[-1]
        if supervised:
            groups += denoising_groups(noisy, denoised.predictions)
            others = (queries.proposals, self.auxiliary_proposals(encoded.memory, **proposed), selected.predictions)
            groups += [group for group in others if group is not None]
            groups += self._encoder_groups(encoded.layers, selected.selection, proposals.box_logits)
        looked = self.attention_map(decoded.samples, tokens.pyramid, queries.valid) if attention_map else None
        return DetectorOutput(
            groups=tuple(groups),
            predictions=predictions,
            pyramid=tokens.pyramid,
            selection=selected.selection,
            token_scores=selected.scores,
            attention_map=looked,
            image_sizes=sizes,
        )

    def _encoder_groups(
        self, layers: Sequence[Tensor], selection: TokenSelection, box_logits: Tensor
    ) -> list[PredictionGroup]:
        groups = []
        for i, (head, layer) in enumerate(zip(self.encoder_heads, layers, strict=False)):
            kept = selection.at_layer(i)
            predictions = head(layer, kept.gather(box_logits))
            valid = None if self.supervise_surplus_rows else kept.row_mask
            groups.append(PredictionGroup(f"encoder_{i}", f"_enc_{i}", predictions.logits, predictions.boxes, valid))
        return groups

    def _preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, then pad with zeros at the right and bottom."""
        images = [(image["image"].to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _targets(self, image: dict[str, Any]) -> Targets:
        known = self.num_classes if self.class_channels is None else len(self.class_channels)
        check_targets(image, known)
        instances = image["instances"]
        height, width = instances.image_size
        scale = self.pixel_mean.new_tensor([width, height, width, height], dtype=geometry_dtype(self.pixel_mean.dtype))
        boxes = box_convert(instances.gt_boxes.tensor.to(scale), "xyxy", "cxcywh") / scale
        labels = instances.gt_classes.long()
        if self.class_channels is not None:
            labels = torch.tensor(self.class_channels, device=labels.device)[labels]
        return Targets(labels=labels.to(self.device), boxes=boxes)


def layer_groups(name: str, suffix: str, layers: Sequence[Predictions], **facts: Any) -> list[PredictionGroup]:
    """A group for every decoder layer; the last one's losses have no number. `facts` are true of every group."""
    ends = [f"{suffix}_{i}" for i in range(len(layers) - 1)] + [suffix]
    return [
        PredictionGroup(f"{name}_{i}", end, layer.logits, layer.boxes, **facts)
        for i, (end, layer) in enumerate(zip(ends, layers, strict=True))
    ]


def denoising_groups(queries: Queries, layers: Sequence[Predictions]) -> list[PredictionGroup]:
    """Groups of the denoising queries, if there are any, which come with their matches."""
    denoising = queries.denoising
    if denoising is None:
        return []
    valid = None if queries.valid is None else queries.valid[:, : denoising.num_queries]
    return layer_groups("denoising", "_dn", layers, valid=valid, matches=denoising.matches, repeats=denoising.repeats)


def _widen(x: Tensor | None) -> Tensor | None:
    """Half precision to float32."""
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def _full_precision(group: PredictionGroup) -> PredictionGroup:
    return replace(group, logits=_widen(group.logits), boxes=_widen(group.boxes))  # type: ignore[arg-type]
