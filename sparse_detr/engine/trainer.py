"""The training loop: Detectron2's SimpleTrainer with precision, clipping, accumulation and a stop before bad steps."""

import logging
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparse_detr.engine.distributed import largest_of_ranks, without_ddp
from sparse_detr.engine.nonfinite import Failure, stop_training
from sparse_detr.engine.optimizer_state import carry_over, describe_optimizer, restart_schedule
from sparse_detr.engine.out_of_memory import out_of_memory_message
from sparse_detr.engine.precision import Precision
from sparse_detr.engine.random_state import random_state, set_random_state
from sparse_detr.errors import UserError

Batch = list[dict[str, Any]]


class Trainer(SimpleTrainer):
    """Takes one optimiser step an iteration.

    Args:
        model: takes a batch and returns a dict of scalar losses; may be wrapped in DistributedDataParallel.
        data_loader: endless batches.
        precision: "off", "bf16" or "fp16".
        clip_grad_norm: largest L2 norm of the gradient of the whole model; None does not clip.
        accumulate: batches an optimiser step; each counts 1 / accumulate. Losses are normalised by the boxes of a
            batch, so this is close to one batch of all the images, but not equal to it.
        failure_dir: folder for a bundle if a loss or gradient is not finite; "" writes none.
        config_text: written into that bundle, for people to read.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        precision: str = "off",
        clip_grad_norm: float | None = None,
        accumulate: int = 1,
        failure_dir: str = "",
        config_text: str = "",
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device = next(model.parameters()).device
        self.precision = Precision(name=precision, device=self.device)
        self.clip_grad_norm = clip_grad_norm
        self.accumulate = accumulate
        self.failure_dir = failure_dir
        self.config_text = config_text
        self._resumed_random_state: dict[str, Any] | None = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run Detectron2's loop, but until `self.max_iter`, which hooks may lower to end the training early."""
        loop = logging.getLogger("detectron2.engine.train_loop")
        loop.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception:
                loop.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Start the data loader, which draws random numbers, then set the random state of the checkpoint."""
        super().before_train()
        _ = self._data_loader_iter
        if self._resumed_random_state is not None:
            set_random_state(self._resumed_random_state)

    def run_step(self) -> None:
        """Run forward and backward over `accumulate` batches, check the numbers, take one optimiser step."""
        assert self.model.training, "the model was left in eval mode"
        self.optimizer.zero_grad()
        data_time = 0.0
        totals: dict[str, Tensor] = {}
        for micro_step in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            try:
                with self._gradient_exchange(last=micro_step == self.accumulate - 1):
                    losses = self._backward(batch)
            except torch.OutOfMemoryError as error:
                raise UserError(out_of_memory_message(batch)) from error
            totals = {name: totals.get(name, 0.0) + loss for name, loss in losses.items()}
        self.after_backward()
        self._check_and_clip_gradients(batch)
        self._write_metrics(totals, data_time)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()

    def compute_losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of one batch, each divided by the number of accumulated batches."""
        with self.precision.autocast():
            losses = model(batch)
        return {name: loss.float() / self.accumulate for name, loss in losses.items()}

    def _gradient_exchange(self, *, last: bool) -> AbstractContextManager:
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Run forward and backward; return the losses on the host, where one copy brings them all."""
        self._random_state = random_state()
        try:
            losses = self.compute_losses(self.model, batch)
        except UserError:  # the batch is wrong, and the error says why
            raise
        except (ValueError, FloatingPointError) as error:  # a part that refuses NaN, such as the matcher
            self._stop_if_nonfinite_forward(batch, error)
            raise
        total = sum(losses.values())
        *values, host_total = torch.stack([*losses.values(), total]).detach().cpu()
        on_host = dict(zip(losses, values, strict=True))
        if largest_of_ranks(int(not torch.isfinite(host_total)), self.device):
            bad = [name for name, loss in on_host.items() if not torch.isfinite(loss)]
            self._stop(batch, f"loss {', '.join(bad)}" if bad else "")
        self.precision.scaler.scale(total).backward()
        return on_host

    def _check_and_clip_gradients(self, batch: Batch) -> None:
        """Unscale and clip the gradient of the whole model; refuse a non-finite one."""
        self.precision.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        # One call for all gradients where PyTorch has it; its own choice would be a loop on the CPU.
        foreach = True if self.device.type == "cpu" else None
        norm = nn.utils.get_total_norm(gradients, foreach=foreach)
        on_host = norm.item()
        finite = math.isfinite(on_host)
        if largest_of_ranks(int(not finite), self.device):
            if self.precision.scaler_copes():
                return
            self._stop(batch, "" if finite else "gradient")
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, norm, foreach=foreach)
        if comm.is_main_process():
            self.storage.put_scalar("grad_norm", on_host)

    def _stop_if_nonfinite_forward(self, batch: Batch, error: Exception) -> None:
        failure = self._failure(batch, f"forward pass ({error})")
        if failure.first_bad_tensor:
            stop_training(failure, directory=self.failure_dir, config_text=self.config_text, all_ranks=False)

    def _stop(self, batch: Batch, what: str) -> None:
        """Stop every rank; `what` is empty on the ranks whose own numbers are finite."""
        failure = self._failure(batch, what)
        stop_training(failure, directory=self.failure_dir, config_text=self.config_text, all_ranks=True)

    def _failure(self, batch: Batch, what: str) -> Failure:
        return Failure.diagnose(
            model=without_ddp(self.model),
            compute_losses=self.compute_losses,
            batch=batch,
            what=what,
            iteration=self.iter,
            random_state=self._random_state,
            precision=self.precision.name,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return SimpleTrainer's state, the loss scaler's and the names of the optimiser's parameters."""
        return {
            **super().state_dict(),
            "grad_scaler": self.precision.scaler.state_dict(),
            "optimizer_description": describe_optimizer(without_ddp(self.model), self.optimizer),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load iteration, momenta and loss scale of a checkpoint; the settings come from the config."""
        described = state_dict.get("optimizer_description")
        optimizer_state = carry_over(state_dict["optimizer"], described, without_ddp(self.model), self.optimizer)
        super().load_state_dict({**state_dict, "optimizer": optimizer_state})
        for hook in self._hooks:
            if isinstance(hook, hooks.LRScheduler):
                restart_schedule(hook.scheduler, self.optimizer)
        if self.precision.scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.precision.scaler.load_state_dict(state_dict["grad_scaler"])

    def resume_random_state(self, state: dict[str, Any]) -> None:
        """Continue with these random numbers when training starts."""
        self._resumed_random_state = state
