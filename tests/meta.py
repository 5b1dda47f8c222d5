"""Models without memory, for tests that read only shapes and settings."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch


@contextmanager
def meta_device():
    """Use `torch.device("meta")`, except for the drop rates of Detectron2's Swin, which it reads from a tensor."""
    with torch.device("meta"), mock.patch.object(torch, "linspace", partial(torch.linspace, device="cpu")):
        yield
