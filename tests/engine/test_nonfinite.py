"""A non-finite number stops the training before the step; the error says where it came from; it can be run again."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from sparse_detr.engine.nonfinite import NonFiniteError, pack_batch, tensors_in, unpack_batch
from sparse_detr.engine.replay import replay_bundle
from sparse_detr.engine.training import train
from tests.engine.toys import ToyDetector, toy_run


class Poisoned(nn.Module):
    """A layer that divides by zero after `after` calls in training."""

    def __init__(self, after=3):
        super().__init__()
        self.calls, self.after = 0, after

    def forward(self, x):
        self.calls += 1
        return x if self.calls <= self.after else x / (x - x)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def poisoned_model(after=3):
    model = ToyDetector()
    model.dropout = nn.Sequential(model.dropout, Poisoned(after))
    return model


def train_until_it_stops(folder, model, **settings):
    with pytest.raises(NonFiniteError) as error:
        train(toy_run(folder, model=model, **settings))
    return str(error.value)


def test_message_names_iteration_images_and_the_first_bad_tensor(tmp_path):
    message = train_until_it_stops(tmp_path, poisoned_model(after=3))
    assert "stopped at iteration 3 before the optimiser step" in message
    assert "loss loss_a, loss_b is not finite" in message
    assert "first bad tensor: output of dropout.1 (Poisoned)" in message
    assert ".png (id " in message


def test_no_step_is_taken_with_a_non_finite_loss(tmp_path):
    model = poisoned_model(after=2)
    train_until_it_stops(tmp_path, model, checkpointer={"period": 1})
    last = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert torch.equal(model.head.weight, last["model"]["head.weight"])


def test_non_finite_gradient_is_named_by_its_parameter(tmp_path):
    model = ToyDetector()
    model.backbone.register_forward_hook(lambda module, inputs, output: BadGradient.apply(output))
    message = train_until_it_stops(tmp_path, model)
    assert "gradient is not finite; first bad tensor: gradient of backbone.weight and 1 more" in message


def test_non_finite_parameter_is_named_beside_the_module(tmp_path):
    model = ToyDetector()
    model.head.bias.data.fill_(float("nan"))
    message = train_until_it_stops(tmp_path, model)
    assert "first bad tensor: output of head (Linear), with parameter head.bias" in message


def test_a_part_that_refuses_nan_gives_the_same_message(tmp_path):
    class Matcher(nn.Module):
        def forward(self, x):
            if x.isnan().any():
                raise ValueError("matrix contains invalid numeric entries")
            return x

    model = poisoned_model()
    model.head = nn.Sequential(model.head, Matcher())
    message = train_until_it_stops(tmp_path, model)
    assert "forward pass (matrix contains invalid numeric entries)" in message
    assert "output of dropout.1 (Poisoned)" in message


def test_an_error_without_non_finite_numbers_is_not_changed(tmp_path):
    model = ToyDetector()
    model.head = nn.Linear(9, 1)
    model.head.register_forward_pre_hook(lambda module, inputs: (_ for _ in ()).throw(ValueError("other")))
    with pytest.raises(ValueError, match="other"):
        train(toy_run(tmp_path, model=model))


def test_a_bundle_is_read_without_running_code_and_repeats_the_failure(tmp_path):
    train_until_it_stops(tmp_path, poisoned_model(after=3))
    bundle = torch.load(tmp_path / "nonfinite_iter_0000003.pth", weights_only=True)
    replay = replay_bundle(bundle, poisoned_model(after=0))
    assert replay.first_bad_tensor == "output of dropout.1 (Poisoned)"


def test_replay_repeats_the_losses_exactly(tmp_path):
    model = ToyDetector()
    model.backbone.register_forward_hook(lambda module, inputs, output: BadGradient.apply(output))
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output["loss_a"].item()))
    train_until_it_stops(tmp_path, model)
    bundle = torch.load(tmp_path / "nonfinite_iter_0000000.pth", weights_only=True)
    replay = replay_bundle(bundle, ToyDetector())  # has dropout; this one's gradient is sound
    assert replay.losses["loss_a"] == seen[0]
    assert not replay.first_bad_tensor


def test_an_unpacked_batch_equals_the_packed_one():
    instances = Instances((4, 6), gt_boxes=Boxes(torch.rand(2, 4)), gt_classes=torch.tensor([0, 1]))
    batch = [{"image": torch.rand(3, 4, 6), "instances": instances, "file_name": "a.png", "image_id": 7}]
    (item,) = unpack_batch(pack_batch(batch))
    assert torch.equal(item["image"], batch[0]["image"])
    assert torch.equal(item["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)
    assert item["instances"].image_size == (4, 6)
    assert (item["file_name"], item["image_id"]) == ("a.png", 7)


def test_tensors_are_found_in_nested_structures():
    instances = Instances((1, 1), gt_boxes=Boxes(torch.zeros(1, 4)))
    nested = {"a": [torch.zeros(1), (torch.zeros(2), "text")], "b": instances}
    assert [tuple(t.shape) for t in tensors_in(nested)] == [(1,), (2,), (1, 4)]
