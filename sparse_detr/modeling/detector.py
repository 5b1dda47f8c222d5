"""The detector as a meta-architecture of Detectron2: images in, losses or `Instances` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

# ruff: noqa: E402 - the check must come before what it checks for
from sparse_detr._detectron2 import require_detectron2

require_detectron2()

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage

from sparse_detr.modeling.classification import Classification, SigmoidFocal, SoftmaxNoObject
from sparse_detr.modeling.effort import FULL, AnyEffort, Effort, ElasticEffort
from sparse_detr.modeling.heads import Heads, Predictions
from sparse_detr.modeling.initialization import initialize_transformer
from sparse_detr.modeling.inputs import check_images, check_sizes, check_targets
from sparse_detr.modeling.transformer import DetectionTransformer, Encoded
from sparse_detr.structures import DetectorOutput, PredictionGroup, Queries, Targets, Tokens, at_most, geometry_dtype


class GeneralizedDETR(DetectionTransformer):
    """A `DetectionTransformer` as a meta-architecture of Detectron2, with matching and losses.

    In training mode `forward` returns weighted losses, else one `{"instances": Instances}` an image. It never changes
    its inputs.

    Args:
        attention_map: sums the attention that the decoder pays to every token.
        auxiliary_proposals: proposals that only train the proposal head, in models whose queries do not come from
            proposals.
        supervision: the loss of the token scores.
        criterion: the losses of every prediction group.
        postprocess: predictions -> detections.
        num_classes: number of classes of every head.
        class_channels: for every class of the data set, the index of its logit, in models with more logits than
            classes (91 for the category ids of COCO); None if class and index are the same.
        supervise_surplus_rows: also train on the rows that only fill the batch because images keep different numbers of
            tokens, as the public implementation does.
        training_effort: what a training step runs of the decoder; None for all of it.
        distillation: losses of a training step towards a run of the whole model, see `Distillation`; None for none.
        initialize: sets the initial weights of one module; called for all modules of the transformer.
        pixel_mean, pixel_std: mean and standard deviation of pixels in the format of the data loader, one number a
            channel.
        size_divisibility: height and width of the batch are padded to a multiple of it, for backbones that need it.
        parts: the other parts, see `DetectionTransformer`.
    """

    def __init__(
        self,
        *,
        heads: Heads,
        attention_map: nn.Module,
        auxiliary_proposals: nn.Module,
        supervision: nn.Module,
        criterion: nn.Module,
        postprocess: nn.Module,
        num_classes: int,
        class_channels: Sequence[int] | None = None,
        supervise_surplus_rows: bool = False,
        training_effort: ElasticEffort | None = None,
        distillation: nn.Module | None = None,
        initialize: Callable[[nn.Module], None] = initialize_transformer,
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        size_divisibility: int = 0,
        **parts: Any,
    ):
        super().__init__(heads=heads, **parts)
        self.attention_map, self.supervision = attention_map, supervision
        self.auxiliary_proposals = auxiliary_proposals
        self.criterion, self.postprocess = criterion, postprocess
        self.num_classes, self.class_channels = num_classes, class_channels
        self.supervise_surplus_rows, self.size_divisibility = supervise_surplus_rows, size_divisibility
        self.training_effort, self.distillation = training_effort or ElasticEffort(), distillation
        self.effort(self.training_effort.largest)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        for part in (self.projection, self.selector, self.encoder, self.queries, self.decoder):
            if part is not None:
                part.apply(initialize)

    def transformer(self) -> DetectionTransformer:
        """Return the part that needs PyTorch alone, for export and compilation; it shares the detector's weights."""
        heads = Heads(list(self.decoder_heads), self.proposal_head, list(self.encoder_heads))
        shared = DetectionTransformer(
            backbone=self.backbone,
            in_features=self.in_features,
            tokenizer=self.tokenizer,
            proposals=self.proposals,
            projection=self.projection,
            selector=self.selector,
            encoder=self.encoder,
            queries=self.queries,
            denoising=self.denoising,
            decoder=self.decoder,
            heads=heads,
        )
        shared.training = self.training
        return shared

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that the first encoder layer refines, in the current mode."""
        return self.selector.keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        """Share of the tokens that an encoder layer refines: the mean over the layers."""
        return self.selector.mean_keep_ratio

    def forward(  # type: ignore[override]
        self, batched_inputs: list[dict[str, Any]], budget: AnyEffort | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return weighted losses in training mode, else detections; see Detectron2's documentation.

        Args:
            batched_inputs: one dict an image: `image` (3, h, w) and, for training, `instances` with `gt_boxes` and
                `gt_classes`; detections are scaled to `height` and `width`, by default those of the image.
            budget: how many tokens the encoder refines: a share of the tokens, above 0 and at most 1, or a `Budget`;
                or an `Effort`, or its text like `0.3+decoder:2+queries:100`, for decoder layers and queries too. None
                for the model's own budget. No weight depends on it.

        Raises:
            UserError: an image or its `instances` are wrong; see `sparse_detr.modeling.inputs`.
            ValueError: the share is out of range, or the encoder is dense and the share is not 1.
        """
        return self.losses(batched_inputs, budget) if self.training else self.detect(batched_inputs, budget)

    def losses(
        self, batched_inputs: list[dict[str, Any]], budget: AnyEffort | None = None, *, denoising: bool = True
    ) -> dict[str, Tensor]:
        """Return weighted losses by name, in training and in eval mode; training minimises their sum.

        Training without a budget draws one, where the model has elastic parts, and may distil; see
        `sparse_detr.modeling.effort` and `Distillation`.

        Args:
            batched_inputs, budget: as for `forward`.
            denoising: with the denoising queries and their losses, in models that have them.

        Raises:
            UserError: an image or its `instances` are wrong; see `sparse_detr.modeling.inputs`.
        """
        check_images(batched_inputs, len(self.pixel_mean))
        targets = self.targets(batched_inputs)
        images = self._preprocess(batched_inputs)
        tokens = self._tokens(images)
        if budget is None and self.training:
            budget = self.training_effort.draw(len(batched_inputs))
        need_map = self.supervision.needs_attention_map
        noised = targets if denoising else None
        output = self._run(tokens, images, noised, self.effort(budget), supervised=True, attention_map=need_map)
        output = _in_full_precision(output)
        with torch.autocast(self.device.type, enabled=False):
            losses = self.criterion(output.groups, targets) | self.supervision(output, targets)
        if self.training and self.distillation is not None:
            losses |= self._full_losses(self.distillation, tokens, images, targets, output.predictions)
        return losses

    def _full_losses(
        self,
        distillation: nn.Module,
        tokens: Tokens,
        images: ImageList,
        targets: Sequence[Targets],
        student: PredictionGroup,
    ) -> dict[str, Tensor]:
        """Run the whole model on the same tokens; return the losses of the student, and its own with the end `_full`.

        Its token scores have no loss of their own: where every token is kept, there is nothing to rank.
        """
        trains = bool(distillation.trains_all)
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            teacher = self._run(tokens, images, targets, FULL, supervised=trains, attention_map=False)
        teacher = _in_full_precision(teacher)
        with torch.autocast(self.device.type, enabled=False):
            losses = distillation(student, teacher.predictions, self.criterion)
            own = self.criterion(teacher.groups, targets) if trains else {}
        return losses | {f"{name}_full": loss for name, loss in own.items()}

    def targets(self, batched_inputs: list[dict[str, Any]]) -> list[Targets]:
        """Return the true boxes of every image as the losses take them: cxcywh in [0, 1], and the logits' classes.

        Raises:
            UserError: the `instances` of an image cannot be right; see `sparse_detr.modeling.inputs`.
        """
        return [self._targets_of(image) for image in batched_inputs]

    def detect(
        self, batched_inputs: list[dict[str, Any]], budget: AnyEffort | None = None
    ) -> list[dict[str, Instances]]:
        """Return detections, scaled to `height` and `width` of every image and clipped to the image.

        Raises:
            UserError: an image is wrong; see `sparse_detr.modeling.inputs`.
        """
        check_images(batched_inputs, len(self.pixel_mean))
        check_sizes(batched_inputs)
        images = self._preprocess(batched_inputs)
        effort = self.effort(budget)
        output = self._run(self._tokens(images), images, None, effort, supervised=False, attention_map=False)
        return self.detections(output, batched_inputs)

    def detections(self, output: DetectorOutput, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Return the detections of what `outputs` returned, in the form of `detect`."""
        found = self.postprocess(output.predictions, output.image_sizes, self.class_channels)
        results = []
        for instances, image in zip(found, batched_inputs, strict=True):
            height, width = image.get("height", instances.image_size[0]), image.get("width", instances.image_size[1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results

    def outputs(
        self,
        batched_inputs: list[dict[str, Any]],
        budget: AnyEffort | None = None,
        *,
        attention_map: bool = True,
    ) -> DetectorOutput:
        """Return everything that the detector computes: all predictions, token scores, selection, attention map.

        Args:
            batched_inputs: as for `forward`; `instances` are not read.
            budget: as for `forward`.
            attention_map: compute the decoder attention map.
        """
        check_images(batched_inputs, len(self.pixel_mean))
        images = self._preprocess(batched_inputs)
        effort = self.effort(budget)
        return self._run(self._tokens(images), images, None, effort, supervised=True, attention_map=attention_map)

    def _tokens(self, images: ImageList) -> Tokens:
        return self.tokenize(images.tensor, _sizes(images))

    def _run(
        self,
        tokens: Tokens,
        images: ImageList,
        targets: Sequence[Targets] | None,
        effort: Effort,
        *,
        supervised: bool,
        attention_map: bool,
    ) -> DetectorOutput:
        """Run the flow on the tokens of images.

        `targets` add denoising queries, `supervised` adds the groups that only losses need.
        """
        encoded = self.encode(tokens, effort.tokens)
        queries = self.query(encoded, targets, num_queries=effort.num_queries)
        decoded = self.decode(queries, encoded, need_samples=attention_map, num_layers=effort.decoder_layers)
        denoised, decoded = decoded.split(queries.num_denoising)
        valid = None if queries.valid is None else queries.valid[:, queries.num_denoising :]
        groups = layer_groups("decoder", "", decoded.predictions, valid=valid)
        predictions = groups[-1]
        if supervised:
            groups += denoising_groups(queries, denoised.predictions) + self._token_groups(encoded, queries)
        return DetectorOutput(
            groups=tuple(groups),
            predictions=predictions,
            pyramid=tokens.pyramid,
            selection=encoded.selected.selection,
            token_scores=encoded.selected.scores,
            attention_map=self.attention_map(decoded.samples, tokens.pyramid, valid) if attention_map else None,
            image_sizes=_sizes(images),
        )

    def _token_groups(self, encoded: Encoded, queries: Queries) -> list[PredictionGroup]:
        """Return the supervised predictions of tokens: of proposals, of the scorer and of encoder layers."""
        auxiliary = self.auxiliary_proposals(encoded.memory.content, encoded.proposals)
        found = [queries.proposals, auxiliary, encoded.selected.predictions]
        groups = [group for group in found if group is not None]
        for i, (head, layer) in enumerate(zip(self.encoder_heads, encoded.layers, strict=False)):
            kept = encoded.selected.selection.at_layer(i)
            predictions = head(layer, kept.gather(encoded.proposals.box_logits))
            valid = None if self.supervise_surplus_rows else kept.valid
            groups.append(PredictionGroup(f"encoder_{i}", f"_enc_{i}", predictions.logits, predictions.boxes, valid))
        return groups

    def _preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images, then pad them with zeros at the right and bottom."""
        images = [(image["image"].to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _targets_of(self, image: dict[str, Any]) -> Targets:
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


class TopKDetections(nn.Module):
    """The best (query, class) pairs of an image, without threshold (Deformable DETR, appendix A.4).

    Args:
        classification: what the logits mean; `SigmoidFocal` if None.
        num_detections: largest number of detections of an image.
        suppress_duplicates: of these, in eval mode, drop those whose IoU with a better one of the same class is above
            this number; None to keep them, since a model that is trained enough has none.

    Raises:
        ValueError: `suppress_duplicates` is not between 0 and 1.
    """

    def __init__(
        self,
        *,
        classification: Classification | None = None,
        num_detections: int = 100,
        suppress_duplicates: float | None = None,
    ):
        super().__init__()
        self.classification, self.num_detections = classification or SigmoidFocal(), num_detections
        self.suppress_duplicates = _checked_iou(suppress_duplicates)

    def forward(
        self,
        group: PredictionGroup,
        image_sizes: Sequence[tuple[int, int]],
        class_channels: Sequence[int] | None = None,
    ) -> list[Instances]:
        """Return one `Instances` an image with `pred_boxes` in pixels, `scores` and `pred_classes`.

        Args:
            group: predictions.
            image_sizes: (h, w) of every image.
            class_channels: see `GeneralizedDETR`.
        """
        scores = self.classification.scores(group.logits)
        if class_channels is not None:
            scores = scores[..., class_channels]
        valid = [None] * len(image_sizes) if group.valid is None else list(group.valid)
        found = [
            self._detect(scores[image], group.boxes[image], valid[image], size)
            for image, size in enumerate(image_sizes)
        ]
        return found if self.training else without_duplicates(found, self.suppress_duplicates)

    def choose(self, scores: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the detections of a batch, as many of every image, with tensors alone.

        Args:
            scores: (B, Q, classes).
            valid: (B, Q) bool, False on queries that only fill the batch; None if every query counts.

        Returns:
            Scores (B, D), best first, 0 on what only fills the batch; the queries (B, D) and classes (B, D).
        """
        scores = _without_surplus(scores, valid)
        num_classes = scores.shape[-1]
        best, flat = scores.flatten(1).topk(at_most(self.num_detections, scores.shape[1] * num_classes))
        return best, torch.div(flat, num_classes, rounding_mode="floor"), flat % num_classes

    def _detect(self, scores: Tensor, boxes: Tensor, valid: Tensor | None, size: tuple[int, int]) -> Instances:
        if valid is not None:
            scores, boxes = scores[valid], boxes[valid]
        best, flat = scores.flatten().topk(min(self.num_detections, scores.numel()))
        query = torch.div(flat, scores.shape[-1], rounding_mode="floor")
        return as_instances(size, boxes[query], best, flat % scores.shape[-1])


class BestClassDetections(nn.Module):
    """The best class of every query, one detection a query, without threshold (DETR, section 3).

    Args:
        classification: what the logits mean; `SoftmaxNoObject` if None.
        suppress_duplicates: see `TopKDetections`.

    Raises:
        ValueError: `suppress_duplicates` is not between 0 and 1.
    """

    def __init__(self, *, classification: Classification | None = None, suppress_duplicates: float | None = None):
        super().__init__()
        self.classification = classification or SoftmaxNoObject()
        self.suppress_duplicates = _checked_iou(suppress_duplicates)

    def forward(
        self,
        group: PredictionGroup,
        image_sizes: Sequence[tuple[int, int]],
        class_channels: Sequence[int] | None = None,
    ) -> list[Instances]:
        """Return one `Instances` an image, in the order of the queries; see `TopKDetections`."""
        scores = self.classification.scores(group.logits)
        if class_channels is not None:
            scores = scores[..., class_channels]
        best, classes = scores.max(-1)
        rows = [slice(None)] * len(image_sizes) if group.valid is None else list(group.valid)
        found = [
            as_instances(size, group.boxes[image, rows[image]], best[image, rows[image]], classes[image, rows[image]])
            for image, size in enumerate(image_sizes)
        ]
        return found if self.training else without_duplicates(found, self.suppress_duplicates)

    def choose(self, scores: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the detections of a batch, one a query, in the order of the queries; see `TopKDetections.choose`."""
        best, classes = _without_surplus(scores, valid).max(-1)
        return best, torch.arange(scores.shape[1], device=scores.device).expand_as(classes), classes


def _checked_iou(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise ValueError(f"suppress_duplicates is an IoU above 0 and below 1, or None, got {value}")
    return value


def without_duplicates(found: list[Instances], max_iou: float | None) -> list[Instances]:
    """Drop the detections whose IoU with a better one of the same image and class is above a number; None drops none.

    The others keep their order.
    """
    return found if max_iou is None else [_suppressed(instances, max_iou) for instances in found]


def _suppressed(instances: Instances, max_iou: float) -> Instances:
    boxes = instances.pred_boxes.tensor.float()  # the kernel has no bfloat16
    kept = batched_nms(boxes, instances.scores.float(), instances.pred_classes, max_iou)
    return instances[kept.sort().values]


def _without_surplus(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Return the scores (B, Q, classes) with 0 on queries that only fill the batch."""
    return scores if valid is None else torch.where(valid[..., None], scores, 0)


def as_instances(size: tuple[int, int], boxes: Tensor, scores: Tensor, classes: Tensor) -> Instances:
    """Return the detections of an image (h, w): boxes (D, 4) cxcywh in [0, 1], scores (D,) and classes (D,)."""
    height, width = size
    result = Instances(size)
    result.pred_boxes = Boxes(box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height]))
    result.scores, result.pred_classes = scores, classes
    return result


class TrainingIteration:
    """The number of optimiser steps that Detectron2's training loop has taken; 0 outside of such a loop."""

    def __call__(self) -> int:
        return get_event_storage().iter if has_event_storage() else 0


def layer_groups(name: str, suffix: str, layers: Sequence[Predictions], **fields: Any) -> list[PredictionGroup]:
    """Return a group for every decoder layer, each with `fields`; the losses of the last one have no number."""
    ends = [f"{suffix}_{i}" for i in range(len(layers) - 1)] + [suffix]
    return [
        PredictionGroup(f"{name}_{i}", end, layer.logits, layer.boxes, **fields)
        for i, (end, layer) in enumerate(zip(ends, layers, strict=True))
    ]


def denoising_groups(queries: Queries, layers: Sequence[Predictions]) -> list[PredictionGroup]:
    """Return the groups of the denoising queries, which come with their matches; none without such queries."""
    denoising = queries.denoising
    if denoising is None:
        return []
    valid = None if queries.valid is None else queries.valid[:, : denoising.num_queries]
    return layer_groups("denoising", "_dn", layers, valid=valid, matches=denoising.matches, repeats=denoising.repeats)


def _sizes(images: ImageList) -> tuple[tuple[int, int], ...]:
    return tuple((int(h), int(w)) for h, w in images.image_sizes)


def _in_full_precision(output: DetectorOutput) -> DetectorOutput:
    """Return the output with all that losses read in at least float32."""
    groups = tuple(map(_full_precision, output.groups))
    last = next(group for group, old in zip(groups, output.groups, strict=True) if old is output.predictions)
    return replace(output, groups=groups, predictions=last, token_scores=_widen(output.token_scores))


def _widen(x: Tensor | None) -> Tensor | None:
    """Convert half precision to float32."""
    return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x


def _full_precision(group: PredictionGroup) -> PredictionGroup:
    return replace(group, logits=_widen(group.logits), boxes=_widen(group.boxes))  # type: ignore[arg-type]
