"""Mixed precision, on GPU and CPU."""

from contextlib import AbstractContextManager

import torch
from torch.amp import GradScaler

from sparse_detr.errors import UserError

_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and loss scaling for one of "off", "bf16" and "fp16".

    Only fp16 needs a scaler: bf16 has the exponent range of fp32.
    """

    def __init__(self, *, name: str, device: torch.device) -> None:
        if name not in _DTYPES:
            raise UserError(f"unknown precision {name!r}; choose one of {', '.join(_DTYPES)}")
        self.name = name
        self.device_type = device.type
        self.scaler = GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Return the context for the forward pass."""
        dtype = _DTYPES[self.name]
        return torch.autocast(self.device_type, dtype=dtype, enabled=dtype is not None)

    def scaler_copes(self) -> bool:
        """Return whether the scaler skips a step with a non-finite gradient, whose cause may be its own loss scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0
