"""Where models run."""

import torch


def default_device(wanted: str | torch.device | None = None) -> torch.device:
    """`wanted`, if it is one; else the accelerator (CUDA, MPS, XPU, ...), where there is one; else the CPU."""
    # torch names the accelerator that it is built for even on a machine without it
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(wanted or found or "cpu")
