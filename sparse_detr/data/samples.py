"""Choose images that show all classes, and map them as the training does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparse_detr.data.annotations import boxes_per_class, targets_by_image
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
    with_class: dict[int, set[str]] = {}
    for image_id, indices in targets_by_image(coco, checked.unusable).items():
        for index in indices:
            names = with_class.setdefault(coco.sound_annotations[index]["category_id"], set())
            names.add(coco.sound_images[image_id]["file_name"])
    usable = sorted({image["file_name"] for image in coco.sound_images.values()} - checked.unusable)
    chosen: list[str] = []
    for category_id, _ in reversed(boxes_per_class(coco, checked.unusable).most_common()):
        left = sorted(with_class[category_id] - set(chosen))
        if left and len(chosen) < number:
            chosen.append(left[int(random.integers(len(left)))])
    others = [usable[index] for index in random.permutation(len(usable)) if usable[index] not in set(chosen)]
    return [*chosen, *others][:number]
