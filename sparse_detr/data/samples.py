"""Choose images that show all classes, and map them as the training does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparse_detr.data.box_habits import class_counts
from sparse_detr.data.check import Checked
from sparse_detr.data.records import training_records
from sparse_detr.data.stream import SAMPLE, seeded_rng

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]


def augmented_samples(
    checked: Checked, mapper: Mapper, number: int, *, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[int], str]]:
    """Return images after a mapper of the training, chosen by chance so that rare classes are among them.

    Yields:
        image (height, width, 3) uint8 RGB, boxes (T, 4) x1, y1, x2, y2 in its pixels, class indices, file name.
    """
    names = {image["file_name"]: number for number, image in checked.coco.sound_images.items()}
    records = {record["image_id"]: record for record in training_records(checked.coco, str(checked.images))}
    for position, name in enumerate(_choose(checked, number, seed)):
        with seeded_rng(SAMPLE, seed, position):
            sample = mapper(records[names[name]])
        if sample is None:
            continue
        image = sample["image"].permute(1, 2, 0).numpy()
        if getattr(mapper, "image_format", "RGB") == "BGR":
            image = image[..., ::-1]
        instances = sample["instances"]
        yield np.ascontiguousarray(image), instances.gt_boxes.tensor.numpy(), instances.gt_classes.tolist(), name


def _choose(checked: Checked, number: int, seed: int) -> list[str]:
    """Return file names: for each class, rarest first, an image with it; then any."""
    coco, random = checked.coco, np.random.default_rng(seed)
    targets = coco.is_target(checked.unusable)
    with_class: dict[int, list[str]] = {}
    for item, used in zip(coco.sound_annotations, targets):
        if used:
            with_class.setdefault(item["category_id"], []).append(coco.sound_images[item["image_id"]]["file_name"])
    usable = sorted({image["file_name"] for image in coco.sound_images.values()} - checked.unusable)
    chosen: list[str] = []
    for category_id, _ in reversed(class_counts(coco, targets).most_common()):
        left = sorted(set(with_class[category_id]) - set(chosen))
        if left and len(chosen) < number:
            chosen.append(left[int(random.integers(len(left)))])
    others = [usable[index] for index in random.permutation(len(usable)) if usable[index] not in set(chosen)]
    return [*chosen, *others][:number]
