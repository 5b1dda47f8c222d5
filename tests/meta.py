"""Models without memory, for tests that only look at shapes and settings."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch


@contextmanager
def meta_device():
    """`torch.device("meta")`, but for the drop rates of Detectron2's Swin: it takes them from a tensor."""
    with torch.device("meta"), mock.patch.object(torch, "linspace", partial(torch.linspace, device="cpu")):
        yield
