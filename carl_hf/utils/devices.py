"""Where models run."""

import contextlib
from collections.abc import Iterator

import torch


def default_device(wanted: str | int | torch.device | None = None) -> torch.device:
    """`wanted`, if it is one; else the accelerator (CUDA, MPS, XPU, ...), where there is one; else the CPU.

    Raises:
        ValueError: for a device that torch does not know, or that this machine does not have.
    """
    # torch names the accelerator that it is built for even on a machine without it
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted is None or wanted == "":
        return torch.device(found or "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:  # as each backend has it
        there = "cpu" if found is None else f"cpu or {found.type}"
        raise ValueError(f"This machine, or its torch, has no device {wanted!r}: choose {there}.") from error
    return device


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """What is drawn or seeded within leaves the random state of the CPU and of this device as it was."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        yield
