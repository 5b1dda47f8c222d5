"""What would make the first iterations slow."""

import torch


def skip_fuser_on_cpu(device: str) -> None:
    """Keep TorchScript from compiling fused kernels on the CPU.

    Detectron2 scripts small functions; their profiling and compilation costs far more there than the kernels win.
    """
    if torch.device(device).type == "cpu":
        torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])
