"""One optimiser step: precision, clipping, accumulation."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from sparse_detr.errors import UserError
from tests.engine.toys import ToyDetector, toy_loader, toy_trainer


def run_steps(trainer, count=1):
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(count):
            trainer.storage.iter = trainer.iter
            trainer.run_step()
    return trainer


def set_scale(trainer, scale):
    scaler = trainer.precision.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale})


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_gradient_of_the_whole_model_is_clipped_to_the_norm():
    free, clipped = ToyDetector(dropout=0.0), ToyDetector(dropout=0.0)
    run_steps(toy_trainer(free))
    run_steps(toy_trainer(clipped, clip_grad_norm=0.1))
    assert gradients(free).norm() > 0.1
    torch.testing.assert_close(gradients(clipped), 0.1 * gradients(free) / gradients(free).norm())


def test_gradient_below_the_norm_is_not_changed():
    free, clipped = ToyDetector(dropout=0.0), ToyDetector(dropout=0.0)
    run_steps(toy_trainer(free))
    run_steps(toy_trainer(clipped, clip_grad_norm=1e6))
    assert torch.equal(gradients(free), gradients(clipped))


def test_clipping_sees_the_unscaled_gradient_in_fp16():
    model = ToyDetector(dropout=0.0)
    trainer = toy_trainer(model, precision="fp16", clip_grad_norm=0.1)
    set_scale(trainer, 128.0)
    run_steps(trainer)
    torch.testing.assert_close(gradients(model).norm(), torch.tensor(0.1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_the_cpu_runs_linear_layers_in_that_type(precision):
    model, seen = ToyDetector(), []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run_steps(toy_trainer(model, precision=precision))
    assert seen == [{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert model.head.weight.grad.dtype == torch.float32


def test_overflow_of_the_loss_scale_skips_the_step_and_lowers_the_scale():
    model = ToyDetector()
    before = model.head.weight.clone()
    trainer = toy_trainer(model, precision="fp16")
    set_scale(trainer, 2.0**60)  # too large for float16
    run_steps(trainer)
    assert torch.equal(model.head.weight, before)
    assert trainer.precision.scaler.get_scale() < 2.0**60


def test_unknown_precision_names_the_choices():
    with pytest.raises(UserError, match="'half'; choose one of off, bf16, fp16"):
        toy_trainer(ToyDetector(), precision="half")


def test_accumulated_small_batches_equal_one_large_batch():
    whole, parts = ToyDetector(dropout=0.0), ToyDetector(dropout=0.0)
    run_steps(toy_trainer(whole, loader=toy_loader(batch_size=4)), 3)
    run_steps(toy_trainer(parts, loader=toy_loader(batch_size=2), accumulate=2), 3)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_metrics_hold_the_losses_their_sum_the_gradient_and_the_waiting_time():
    trainer = run_steps(toy_trainer(ToyDetector()))
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert {"loss_a", "loss_b", "total_loss", "grad_norm", "data_time"} <= latest.keys()
    assert latest["total_loss"] == pytest.approx(latest["loss_a"] + latest["loss_b"])
