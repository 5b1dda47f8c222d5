"""Draw detections, kept tokens, token scores and decoder attention on images."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.errors import UserError
from sparse_detr.files import make_folder

CONFIG_IS_CODE = "a config is code: load only configs you trust"
DEVICE_KEYS = ("train.device", "MODEL.DEVICE")
MAX_REASONS = 10  # skipped images that are named
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help=f"the model's config, of either kind; {CONFIG_IS_CODE}"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of a training or of `convert`")
    parser.add_argument("--ema", action="store_true", help="load the averaged weights of the checkpoint")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders or glob patterns")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for pictures and detections")
    parser.add_argument("--score-threshold", type=float, default=0.3, metavar="S", help="lowest score shown (0.3)")
    parser.add_argument("--keep-ratio", type=float, metavar="R", help="refine this share of the tokens instead")
    parser.add_argument("--max-images", type=int, metavar="N", help="stop after N images")
    parser.add_argument("--train-json", metavar="FILE", help="COCO file that the model was trained on: its classes")
    parser.add_argument("--opts", nargs="*", default=[], metavar="override", help="overrides in the config's own style")


def run(args: argparse.Namespace) -> int:
    """Draw every image that can be read; 1 if none can."""
    check_arguments(args)
    require_detectron2()
    files = find_images(args.input)[: args.max_images]
    make_folder(args.output)
    detector = load_detector(args)
    if detector.is_dense:
        print("This model has a dense encoder: it keeps every token, so there are no pictures of tokens and scores.")
    skipped = draw_images(detector, files, args.output, args.score_threshold)
    drawn = len(files) - len(skipped)
    print(f"{drawn} of {len(files)} images drawn, {len(skipped)} skipped.")
    for reason in skipped[:MAX_REASONS]:
        print(f"  skipped {reason}")
    if len(skipped) > MAX_REASONS:
        print(f"  ... and {len(skipped) - MAX_REASONS} more")
    print(f"Pictures (*_overview.png shows all of an image) and detections (*.json) are in {args.output}")
    return 0 if drawn else 1


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that mean nothing.

    Raises:
        UserError: names the option, its value and what it may be.
    """
    if not args.weights.strip():
        raise UserError("--weights is empty; give the checkpoint of a training or of `sparse-detr convert`")
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold {args.score_threshold:g} is no score; give a number from 0 to 1")
    if args.keep_ratio is not None and not 0 < args.keep_ratio <= 1:
        raise UserError(f"--keep-ratio {args.keep_ratio:g} is no share; give a number above 0, at most 1")
    if args.max_images is not None and args.max_images < 1:
        raise UserError(f"--max-images {args.max_images} leaves nothing to draw; give 1 or more")


def find_images(inputs: Sequence[str]) -> list[str]:
    """Return the files that the command line names: images themselves, those in folders, those that a pattern matches.

    Raises:
        UserError: one of the inputs gives no image.
    """
    found: dict[str, None] = {}
    for given in inputs:
        if os.path.isdir(given):
            paths = [str(path) for path in sorted(Path(given).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
        else:
            paths = [given] if os.path.isfile(given) else sorted(filter(os.path.isfile, glob.glob(given)))
        if not paths:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(
                f"--input {given}: no image found; give an image, a folder of images ({kinds}) or a pattern"
            )
        found.update(dict.fromkeys(paths))
    return list(found)


@dataclass(frozen=True)
class Detector:
    """A model with what must be done to its inputs.

    Args:
        model: in eval mode.
        mapper: record of a file -> model input, as in evaluation.
        class_names: by class index.
        weights: the file that they came from.
        budget: share of the tokens to refine; None for the model's own.
    """

    model: Any
    mapper: Callable[[dict[str, Any]], dict[str, Any] | None]
    class_names: Sequence[str]
    weights: str
    budget: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the encoder keeps every token, whatever they are."""
        from sparse_detr.modeling.selection import KeepAllTokens

        return isinstance(self.model.selector, KeepAllTokens)


def load_detector(args: argparse.Namespace) -> Detector:
    """Build the model of the config, load its weights and find its preprocessing and class names."""
    import torch

    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr.config import load_config
    from sparse_detr.config.run import make_run
    from sparse_detr.config.settings import check_device
    from sparse_detr.engine.weights import check_finite_weights, load_weights

    cfg = load_config(args.config_file, args.opts)
    if any(key in word for word in args.opts for key in DEVICE_KEYS):
        check_device(cfg)
    elif not torch.cuda.is_available():
        _set(cfg, *DEVICE_KEYS, "cpu")
    names = class_names(cfg, args.train_json)
    if args.train_json:
        _set(cfg, "model.num_classes", "MODEL.DETR.NUM_CLASSES", len(names))
    model = make_run(cfg).build_model().eval()
    load_weights(model, args.weights, skip_other_classes=False, ema=args.ema)
    check_finite_weights(model, args.weights)
    mapper = preprocessing(cfg)
    detector = Detector(model=model, mapper=mapper, class_names=names, weights=args.weights, budget=args.keep_ratio)
    if detector.is_dense and args.keep_ratio not in (None, 1):
        raise UserError(f"--keep-ratio {args.keep_ratio}: this model has a dense encoder; leave the option out")
    return detector


def draw_images(detector: Detector, files: Sequence[str], output: Path, score_threshold: float) -> list[str]:
    """Write the pictures of every file; returns why files could not be read, in words."""
    import torch
    from tqdm import tqdm

    from sparse_detr.analysis.tokens import object_tokens, watch_object_rows
    from sparse_detr.data.images import BadImageError, read_image
    from sparse_detr.visualization import list_detections, token_maps
    from sparse_detr.visualization.pictures import write_files

    skipped: list[str] = []
    for file_name, stem in zip(tqdm(files, desc="drawing", unit="image"), unique_stems(files), strict=True):
        try:
            image = read_image(file_name, value_range=getattr(detector.mapper, "value_range", None))
            sample = detector.mapper({"file_name": file_name})
        except BadImageError as error:
            skipped.append(str(error))
            continue
        if sample is None:  # the mapper has said why
            skipped.append(file_name)
            continue
        with torch.no_grad(), watch_object_rows(detector.model.encoder) as rows:
            found = detector.model.outputs([sample], detector.budget, attention_map=True)
            instances = detector.model.detections(found, [sample])[0]["instances"]
        detections = list_detections(instances, detector.class_names, score_threshold)
        caption = f"score at least {score_threshold:g}"
        maps = token_maps(found, objects=object_tokens(found.selection, rows))
        origin = {
            "file_name": file_name,
            "weights": detector.weights,
            "class_names": list(detector.class_names),
            "score_threshold": score_threshold,
        }
        write_files(output / stem, image, detections, maps, caption=caption, origin=origin)
    return skipped


def unique_stems(files: Sequence[str]) -> list[str]:
    """Names to write the results of every file under; files of the same name get a number."""
    stems: list[str] = []
    for file_name in files:
        stem, copy = Path(file_name).stem, 2
        while stem in stems:
            stem, copy = f"{Path(file_name).stem}-{copy}", copy + 1
        stems.append(stem)
    return stems


def preprocessing(cfg: Any) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """The preprocessing that the config evaluates with."""
    from detectron2.config import CfgNode, instantiate
    from omegaconf import OmegaConf

    from sparse_detr.data.mapper import DetrDatasetMapper

    if isinstance(cfg, CfgNode):
        return DetrDatasetMapper(cfg, is_train=False)
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
    if mapper is None:
        raise UserError(
            "the config has no dataloader.test.mapper, which says how images are resized for the model; "
            "give the config that the training was started with, and --train-json"
        )
    return instantiate(mapper)


def class_names(cfg: Any, train_json: str | None) -> Sequence[str]:
    """Names of the classes, from a COCO file, the own data in the config, or its data set; [] if they are unknown."""
    from detectron2.data import MetadataCatalog

    from sparse_detr.data.annotations import read_coco_file

    own_json = train_json or _setting(cfg, "train.own_data.train_json", "DATASETS.OWN.TRAIN_JSON")
    if train_json or (own_json and os.path.isfile(own_json)):
        return list(read_coco_file(own_json).class_names.values())
    for key in ("test", "train"):
        names = _setting(cfg, f"dataloader.{key}.dataset.names", f"DATASETS.{key.upper()}")
        for name in [names] if isinstance(names, str) else names or []:
            if classes := MetadataCatalog.get(name).get("thing_classes"):
                return classes
    print("The names of the classes are unknown (--train-json FILE tells them): numbers are shown.")
    return []


def _setting(cfg: Any, lazy_key: str, yacs_key: str) -> Any:
    """A value of a config of either kind, None where it is missing."""
    from detectron2.config import CfgNode
    from omegaconf import OmegaConf

    if not isinstance(cfg, CfgNode):
        return OmegaConf.select(cfg, lazy_key)
    for part in yacs_key.split("."):
        cfg = cfg.get(part) if cfg is not None else None
    return cfg


def _set(cfg: Any, lazy_key: str, yacs_key: str, value: Any) -> None:
    """Set a value in a config of either kind."""
    from detectron2.config import CfgNode
    from omegaconf import OmegaConf

    if isinstance(cfg, CfgNode):
        cfg.merge_from_list([yacs_key, value])
    else:
        OmegaConf.update(cfg, lazy_key, value)
