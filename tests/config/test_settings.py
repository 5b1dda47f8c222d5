import pytest
import torch
from omegaconf import OmegaConf

from sparse_detr.config.settings import check_device_of
from sparse_detr.errors import UserError


def test_a_config_from_a_gpu_machine_is_refused_without_a_gpu_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="'cuda'.*add train.device=cpu"):
        check_device_of(OmegaConf.create({"train": {"device": "cuda"}}))
    check_device_of(OmegaConf.create({"train": {"device": "cpu"}}))
