"""Blame every missed object on a stage: not selected, not proposed, beaten, misclassified or badly localised.

docs/blame.md tells what each word means and how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.checks import check_score, check_share
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides, weights_text
from sparse_detr.cli.demo import MAX_REASONS
from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import make_folder, write_text_atomically

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sparse_detr import Predictor
    from sparse_detr.analysis.blame import LabeledBoxes, Verdict
    from sparse_detr.analysis.blame_report import BlamedObject
    from sparse_detr.analysis.token_recall import TokenRecall
    from sparse_detr.evaluation.tide import Tide
    from sparse_detr.evaluation.truth import TruthFile
    from sparse_detr.structures import DetectorOutput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser)
    add_budget(parser)
    parser.add_argument(
        "--truth", metavar="FILE", help="COCO file of the true boxes (default: the config's evaluation data)"
    )
    parser.add_argument("--images", metavar="DIR", help="folder that the file names in it start from")
    parser.add_argument("--iou", type=float, default=0.5, metavar="IOU", help="IoU from which a box fits (0.5)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S", help="lowest score that counts (0.3; 0 is COCO's AP)"
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="stop after N images")
    parser.add_argument("--worst", type=int, default=9, metavar="N", help="images on the contact sheet (9)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/blame"), metavar="DIR", help="folder (output/blame)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON and nothing else")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables and write the files; return 0, or 1 if no image can be read."""
    check_options(args)
    require_detectron2()
    from sparse_detr.analysis.blame_report import advice, as_tables, summary

    make_folder(args.output)
    predictor, data = load(args)
    found = blame_images(predictor, data, args)
    for reason in found.skipped[:MAX_REASONS]:
        print(f"skipped {reason}", file=sys.stderr)
    if len(found.skipped) > MAX_REASONS:
        print(f"... and {len(found.skipped) - MAX_REASONS} more", file=sys.stderr)
    if not found.images:
        print("no image can be read", file=sys.stderr)
        return 1
    tide, problem = _tide(data, found, args)
    sums = summary(found.objects, list(data.class_names.values()))
    has_selector = not predictor.is_dense
    sentences = advice(found.objects, score_threshold=args.score_threshold, has_selector=has_selector)
    record = {
        "data": data.name,
        "other_data": data.others,
        "images": len(found.images),
        "skipped": len(found.skipped),
        "iou": args.iou,
        "score_threshold": args.score_threshold,
        "max_detections": data.limit,
        "budget": None if args.budget is None else str(args.budget),
        "weights": weights_text(predictor.weights, averaged=args.ema),
        **sums,
        "tide": None if tide is None else {"counts": tide.counts, "delta_ap": tide.delta_ap},
        "differs_from_coco": None if tide is None else _differences(found.objects, tide),
        "proposals_can_be_told": found.proposals_can_be_told,
        "advice": sentences,
    }
    _write(record, predictor, data, found, args)
    if args.json:
        print(json.dumps(_without_nan(record)))
        return 0
    print(as_tables(sums, record["tide"]))
    print()
    print("\n".join(_remarks(record, problem)))
    print("\n".join(sentences))
    print(f"tables, a row an object and pictures are in {args.output}: blame.json, blame.csv, blame.png, worst.png")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    if not args.weights.strip():
        raise UserError("--weights is empty; give the checkpoint of a training or of `sparse-detr convert`")
    check_share("--iou", args.iou)
    check_score("--score-threshold", args.score_threshold)
    args.budget = checked_budget("--budget", args.budget)
    if (args.truth is None) != (args.images is None):
        raise UserError("--truth and --images go together; give both, or none for the config's evaluation data")
    for option, value in (("--max-images", args.max_images), ("--worst", args.worst)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value} leaves nothing to do; give 1 or more")


@dataclass(frozen=True)
class TrueObjects:
    """The true objects of a data set.

    Args:
        truth: content of a COCO file, checked.
        folder: that its file names start from.
        class_names: by category id, ascending; the model's classes have the same order.
        name: of the data set, or the path of the file.
        others: names of the config's other evaluation data, which are not looked at.
        limit: how many detections of a class in an image count.
    """

    truth: dict[str, Any]
    folder: str
    class_names: dict[int, str]
    name: str
    others: list[str]
    limit: int


@dataclass
class Blamed:
    """What a run over the images gives.

    Args:
        objects: all true objects of the images that could be read.
        detections: COCO results of the detections that count.
        images: ids of the images that could be read.
        skipped: why others could not.
        proposals_can_be_told: whether the queries of the model start at places of their own.
    """

    objects: list[BlamedObject] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    proposals_can_be_told: bool = True


def load(args: argparse.Namespace) -> tuple[Predictor, TrueObjects]:
    """Load the detector and the true objects that the arguments name.

    Raises:
        UserError: one of them cannot be used, or the model has other classes than the data.
    """
    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr import Predictor
    from sparse_detr.config import load_config
    from sparse_detr.config.limits import evaluation_limit
    from sparse_detr.config.num_classes import model_classes
    from sparse_detr.data.annotations import read_coco_file
    from sparse_detr.data.records import ground_truth
    from sparse_detr.evaluation.truth import TruthFile

    cfg = load_config(args.config_file, args.opts)
    if args.truth:
        file, others = TruthFile(args.truth, args.truth, args.images), []
    else:
        file, others = _evaluation_file(cfg, args.opts)
    coco = read_coco_file(file.path)
    truth = ground_truth(coco)
    if not truth["annotations"]:
        raise UserError(f"{file.path} has no true boxes that can be used; `sparse-detr check-data` says why")
    data = TrueObjects(
        truth=truth,
        folder=file.images,
        class_names=coco.class_names,
        name=file.name,
        others=others,
        limit=_limit_of(truth, cfg) if args.truth else evaluation_limit(file.name, cfg),
    )
    predictor = Predictor(cfg, args.weights, ema=args.ema, budget=args.budget)
    known, names = model_classes(predictor.model), list(coco.class_names.values())
    if known not in (None, len(names)):
        raise UserError(f"{file.path} has {len(names)} classes, but the model {known}; give the data of this model")
    if predictor.class_names and predictor.class_names != names:
        raise UserError(
            f"the classes of {file.path} are {', '.join(names[:5])}, but those of the model "
            f"{', '.join(predictor.class_names[:5])}; give the data of this model"
        )
    return predictor, data


def _evaluation_file(cfg: Any, overrides: Sequence[str]) -> tuple[TruthFile, list[str]]:
    """Return the file of the config's first evaluation set, and the names of the others."""
    from sparse_detr.config.own_data import use_own_data
    from sparse_detr.config.run import make_run
    from sparse_detr.evaluation.truth import truth_file

    remedy = "give --truth and --images"
    use_own_data(cfg, {}, overrides)
    names = [name for evaluation_set in make_run(cfg).evaluation_sets for name in evaluation_set.names]
    if not names:
        raise UserError(f"the config names no evaluation data; {remedy}")
    return truth_file(names[0], remedy=remedy), names[1:]


def _limit_of(truth: Mapping[str, Any], cfg: Any) -> int:
    """Return how many detections of a class in an image count: the config's number, COCO's, or more if boxes need it.

    Args:
        truth: content of a COCO file.
        cfg: a config of either kind.
    """
    from sparse_detr.config.limits import COCO_LIMIT, chosen_limit

    boxes = Counter((item["image_id"], item["category_id"]) for item in truth["annotations"] if not item["iscrowd"])
    return chosen_limit(cfg) or max(COCO_LIMIT, *boxes.values(), 0)


def blame_images(predictor: Predictor, data: TrueObjects, args: argparse.Namespace) -> Blamed:
    """Run the detector over the images and judge every true object; images that cannot be read are skipped."""
    from tqdm import tqdm

    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in data.truth["annotations"]:
        if not annotation["iscrowd"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    blamed = Blamed()
    images = sorted(data.truth["images"], key=lambda image: image["id"])[: args.max_images]
    for image in tqdm(images, desc="blaming", unit="image"):
        try:
            _blame_image(predictor, data, image, by_image.get(image["id"], []), args, blamed)
        except ImageError as error:
            blamed.skipped.append(str(error))
    return blamed


def _blame_image(
    predictor: Predictor,
    data: TrueObjects,
    image: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    args: argparse.Namespace,
    blamed: Blamed,
) -> None:
    """Judge the objects of one image, and add them and its detections to `blamed`."""
    import torch

    from sparse_detr.analysis.blame import LabeledBoxes, counted, judge, starts_on
    from sparse_detr.analysis.token_recall import selected_tokens, token_recall
    from sparse_detr.analysis.tokens import watch_queries

    with watch_queries(getattr(predictor.model, "decoder", torch.nn.Identity())) as queries:
        found = predictor.outputs(str(Path(data.folder, image["file_name"])), attention_map=False)
    output, instances = found.output, found.instances[0].to("cpu")
    size = found.inputs[0]["height"], found.inputs[0]["width"]
    truth, relative = _true_boxes(annotations, list(data.class_names), size)
    there = relative.to(output.pyramid.device)
    [recall] = token_recall(selected_tokens(output.selection, output.pyramid), [there], output.pyramid)
    starts = queries[0].reference_points[0]
    proposed = starts_on(starts if queries[0].valid is None else starts[queries[0].valid[0]], there)
    detections = counted(
        LabeledBoxes(instances.pred_boxes.tensor, instances.pred_classes, instances.scores),
        score_threshold=args.score_threshold,
        limit=data.limit,
    )
    verdicts = judge(
        truth,
        detections,
        _final_boxes(predictor.model, output, size),
        selected=recall.is_hit.cpu(),
        proposed=None if proposed is None else proposed.cpu(),
        iou_threshold=args.iou,
    )
    blamed.images.append(image["id"])
    blamed.detections += _coco_results(image["id"], detections, list(data.class_names))
    blamed.proposals_can_be_told &= proposed is not None
    blamed.objects += _objects(image, annotations, data.class_names, truth, verdicts, recall)


def _true_boxes(
    annotations: Sequence[dict[str, Any]], category_ids: Sequence[int], size: tuple[int, int]
) -> tuple[LabeledBoxes, Tensor]:
    """Return the true objects of an image of (height, width) in pixels, and their boxes as cxcywh in [0, 1] of it."""
    import torch
    from torchvision.ops import box_convert

    from sparse_detr.analysis.blame import LabeledBoxes, clip_to_image

    boxes = box_convert(torch.tensor([item["bbox"] for item in annotations]).view(-1, 4), "xywh", "xyxy")
    labels = torch.tensor([category_ids.index(item["category_id"]) for item in annotations], dtype=torch.long)
    scale = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return LabeledBoxes(boxes, labels), box_convert(clip_to_image(boxes, size) / scale, "xyxy", "cxcywh")


def _objects(
    image: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    class_names: dict[int, str],
    truth: LabeledBoxes,
    verdicts: Sequence[Verdict],
    recall: TokenRecall,
) -> list[BlamedObject]:
    """Return the records of the true objects of an image."""
    from sparse_detr.analysis.blame_report import BlamedObject, size_of

    names = list(class_names.values())
    shares, of_levels, hits = recall.share.tolist(), recall.share_of_levels.tolist(), recall.is_hit.tolist()
    rows = zip(annotations, truth.boxes.tolist(), verdicts, shares, of_levels, hits, strict=True)
    return [
        BlamedObject(
            image_id=image["id"],
            annotation_id=annotation["id"],
            file_name=image["file_name"],
            class_name=class_names[annotation["category_id"]],
            size=size_of(annotation["area"]),
            box=tuple(box),
            verdict=verdict.verdict,
            detail=verdict.detail,
            tide=verdict.tide,
            best_iou=verdict.best_iou,
            seen_as="" if verdict.best_label is None else names[verdict.best_label],
            token_share=share,
            token_shares=tuple(level_shares),
            is_hit=hit,
        )
        for annotation, box, verdict, share, level_shares, hit in rows
    ]


def _final_boxes(model: Any, output: DetectorOutput, size: tuple[int, int]) -> LabeledBoxes:
    """Return the boxes of all queries of the last decoder layer in pixels of the image, with their best class."""
    from torchvision.ops import box_convert

    from sparse_detr.analysis.blame import LabeledBoxes, clip_to_image

    group = output.predictions
    rows = group.valid_rows[0]
    scores = model.postprocess.classification.scores(group.logits[0, rows])
    if model.class_channels is not None:
        scores = scores[:, model.class_channels]
    boxes = box_convert(group.boxes[0, rows], "cxcywh", "xyxy").cpu()
    boxes = boxes * boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return LabeledBoxes(clip_to_image(boxes, size), scores.argmax(-1).cpu())


def _coco_results(image_id: int, detections: LabeledBoxes, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    from torchvision.ops import box_convert

    boxes = box_convert(detections.boxes.double(), "xyxy", "xywh").tolist()
    rows = zip(boxes, detections.labels.tolist(), detections.scores.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in rows
    ]


def _tide(data: TrueObjects, blamed: Blamed, args: argparse.Namespace) -> tuple[Tide | None, str]:
    """Return TIDE's errors of the detections; None and the reason where there are none to be had."""
    from sparse_detr.evaluation.tide import tide_errors

    read = set(blamed.images)
    truth = {
        **data.truth,
        "images": [image for image in data.truth["images"] if image["id"] in read],
        "annotations": [item for item in data.truth["annotations"] if item["image_id"] in read],
    }
    if not blamed.detections:
        return None, "no detection counts, so that TIDE has no errors to class"
    try:
        return tide_errors(truth, blamed.detections, iou_threshold=args.iou, limit=data.limit), ""
    except UserError as error:
        return None, str(error)


def _differences(objects: Sequence[BlamedObject], tide: Tide) -> int:
    """Return how many objects are found here and not by hotcoco, or the other way round."""
    from sparse_detr.analysis.blame import FOUND

    return sum((item.verdict == FOUND) != (item.annotation_id in tide.found) for item in objects)


def _remarks(record: dict[str, Any], problem: str) -> list[str]:
    """Return what a reader must know of the tables."""
    remarks = [f"true boxes: {record['data']}"]
    if record["other_data"]:
        others = ", ".join(record["other_data"])
        remarks.append(f"the config's other evaluation data are left out: {others}; give --truth and --images for them")
    if problem:
        remarks.append(problem)
    else:
        same = record["differs_from_coco"]
        remarks.append(
            "found objects: the same as hotcoco's (COCO's matching)"
            if not same
            else f"found objects: {same} differ from hotcoco's (COCO's matching), by rounding of IoU at the threshold"
        )
        remarks.append("hotcoco gives TIDE's totals; the classes of single misses are computed here from the matches")
    if not record["proposals_can_be_told"]:
        remarks.append("all queries of this model start at one point, so `not proposed` cannot be told")
    return remarks


def _write(
    record: dict[str, Any], predictor: Predictor, data: TrueObjects, blamed: Blamed, args: argparse.Namespace
) -> None:
    """Write the numbers and the pictures."""
    from sparse_detr.analysis.blame_report import as_csv
    from sparse_detr.visualization.blame import draw_bars, worst_images_page
    from sparse_detr.visualization.pictures import write_picture

    write_text_atomically(args.output / "blame.json", json.dumps(_without_nan(record), indent=1) + "\n")
    write_text_atomically(args.output / "blame.csv", as_csv(blamed.objects))
    title = (
        f"{len(blamed.objects)} objects in {len(blamed.images)} images, IoU {args.iou:g}, "
        f"score at least {args.score_threshold:g}"
    )
    draw_bars(record, args.output / "blame.png", title=title)

    def read(file_name: str) -> np.ndarray:
        return predictor.read(str(Path(data.folder, file_name)))

    write_picture(args.output / "worst.png", worst_images_page(blamed.objects, read, args.worst))


def _without_nan(value: Any) -> Any:
    """Return the value with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
