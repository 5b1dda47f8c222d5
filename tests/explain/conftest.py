"""A page of a made-up image, with true boxes, a second model and random weights."""

import numpy as np
import pytest
import torch

from sparse_detr.explain import Choices, Target, explain_image
from sparse_detr.explain.page import page_entry, write_page
from tests.modeling.tiny import build, picture

NAMES = ["cat", "dog </script>", "cow", "hen", "pig"]
BUDGETS = (0.1, 0.5, 1.0)
THRESHOLD = 0.005


def make_story(name="sparse", **options):
    item = picture(96, 128)
    image = item["image"].numpy().transpose(1, 2, 0)
    choices = Choices(score_threshold=THRESHOLD, count=4, draws=1, budgets=BUDGETS, rounds=1)
    model = build(name, dtype=torch.float32).eval()
    return explain_image(model, item, np.ascontiguousarray(image), name=f"{name}.png", choices=choices, **options)


@pytest.fixture(scope="session")
def story():
    truth = [Target(torch.tensor([10.0, 10, 60, 70]), 0), Target(torch.tensor([50.0, 20, 115, 80]), 1)]
    other = build("sparse", seed=1, dtype=torch.float32).eval()
    random_model = build("sparse", seed=2, dtype=torch.float32).eval()
    return make_story(truth=truth, other=(other, picture(96, 128)), random_model=random_model)


@pytest.fixture(scope="session")
def dense_story():
    return make_story("topk")


@pytest.fixture(scope="session")
def page(story, dense_story):
    images = [page_entry(one, NAMES) for one in (story, dense_story)]
    return write_page(images, model="made up", score_threshold=THRESHOLD)
