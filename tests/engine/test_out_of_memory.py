import pytest
import torch

from sparse_detr.engine.trainer import Trainer
from sparse_detr.errors import UserError


class Greedy(torch.nn.Module):
    """A model that runs out of memory."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_running_out_of_memory_names_the_images_and_what_helps():
    model = Greedy()
    batch = [{"image": torch.zeros(3, 20, 30), "file_name": "big.jpg", "instances": [1, 2]}]
    trainer = Trainer(model=model, data_loader=[batch], optimizer=torch.optim.SGD(model.parameters(), 0.1))
    trainer.iter = 0
    with pytest.raises(UserError, match=r"big.jpg 30x20 with 2 boxes.*train.amp.enabled=true"):
        trainer.run_step()
