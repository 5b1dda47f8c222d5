"""Look at detections beside the truth in FiftyOne.

pip install fiftyone
sparse-detr predict --config-file detector --input images --output found --score-threshold 0.1
python examples/with_fiftyone.py images val.json found/detections.json
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import fiftyone


def main(images: str, truth: str, found: str) -> fiftyone.Dataset:
    """Return a data set with the fields `truth` and `found`."""
    boxes = {name: boxes_by_file(path) for name, path in (("truth", truth), ("found", found))}
    dataset = fiftyone.Dataset()
    for file in sorted(set(boxes["truth"]) | set(boxes["found"])):
        sample = fiftyone.Sample(filepath=str(Path(images, file).resolve()))
        for name, files in boxes.items():
            sample[name] = fiftyone.Detections(detections=[fiftyone.Detection(**box) for box in files.get(file, [])])
        dataset.add_sample(sample)
    return dataset


def boxes_by_file(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the boxes of a COCO file by name of the image: x, y, width and height in shares of the image."""
    content = json.loads(Path(path).read_text())
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in content["annotations"]:
        image = images[row["image_id"]]
        x, y, width, height = row["bbox"]
        box = [x / image["width"], y / image["height"], width / image["width"], height / image["height"]]
        score = {"confidence": row["score"]} if "score" in row else {}
        found[image["file_name"]].append({"label": names[row["category_id"]], "bounding_box": box, **score})
    return dict(found)


if __name__ == "__main__":
    fiftyone.launch_app(main(*sys.argv[1:])).wait()
