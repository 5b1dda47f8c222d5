"""Detect in a folder of images with Ray Data: a `Predictor` takes its batches as it is.

    pip install "ray[data]"
    python examples/with_ray_data.py detector photos found.parquet

`detector` is a folder of `sparse-detr pack`.
"""

import os
import sys

import ray

from sparse_detr import Predictor


def main(detector: str, photos: str, output: str) -> int:
    """Write a row for every image; return the number of detections."""
    images = ray.data.read_images(photos, mode="RGB", include_paths=True)
    found = images.map_batches(
        Predictor,
        fn_constructor_args=(os.path.abspath(detector),),
        fn_constructor_kwargs={"score_threshold": 0.3},
        batch_size=8,
        concurrency=1,
    ).materialize()
    found.write_parquet(output)
    return sum(len(row["scores"]) for row in found.iter_rows())


if __name__ == "__main__":
    print(f"{main(*sys.argv[1:])} objects")
