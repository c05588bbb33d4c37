"""Where models run."""

import contextlib
from collections.abc import Iterator

import torch


def default_device(wanted: str | torch.device | None = None) -> torch.device:
    """`wanted`, if it is one; else the accelerator (CUDA, MPS, XPU, ...), where there is one; else the CPU."""
    # torch names the accelerator that it is built for even on a machine without it
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(wanted or found or "cpu")


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """What is drawn or seeded within leaves the random state of the CPU and of this device as it was."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        yield
