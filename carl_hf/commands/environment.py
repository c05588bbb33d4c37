"""What a command finds on the machine: its threads, its packages, and the record of both for results.json."""

import datetime
import importlib.util
import logging
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers

from carl_hf.version import __version__


def start_logging(*, main_process: bool = True) -> None:
    """Plain lines on stderr: all that is said in the main process, errors in the others."""
    logging.basicConfig(level=logging.INFO if main_process else logging.ERROR, format="%(message)s")
    for package in ("httpx", "httpx2", "matplotlib"):
        logging.getLogger(package).setLevel(logging.WARNING)


def refuse_launchers(remedy: str) -> None:
    """Raises a ValueError under a launcher that has started several processes, which would all do the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"This command {remedy} (WORLD_SIZE is {os.environ['WORLD_SIZE']}).")


def start_measuring_script(*, main_process: bool | None = None) -> None:
    """Sets up logging, and checks that the packages for measuring and drawing are installed.

    Args:
        main_process: whether this is the first of the processes of a launcher; None for a command of one process.

    Raises:
        ValueError: if one of the packages is missing, and by [`refuse_launchers`]; the message says what to do.
    """
    start_logging(main_process=main_process is not False)
    if main_process is None:
        refuse_launchers("runs in one process: start it with python or carl-hf, without a launcher")
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"This script measures and draws with {package}: pip install 'carl_hf[eval]'.")


def use_all_cores(num_threads: int | None) -> None:
    """Sets torch's threads: `num_threads`, else the user's OMP_NUM_THREADS, else this process's share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS=1 if the user has not set it, and all cores but one would be idle; so 1
    counts as unset.

    Raises:
        ValueError: for a number below 1.
    """
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"--num_threads must be positive, got {num_threads}.")
    if num_threads is None and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        num_threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def environment_record() -> dict[str, Any]:
    """Machine, threads, versions and date of a result."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    return {
        "machine": platform.processor() or platform.machine(),
        "processor": _processor(),
        "date": f"{datetime.date.today()}",
        "threads": torch.get_num_threads(),
        "versions": {"carl_hf": __version__, **versions, "python": platform.python_version()},
    }


def _processor() -> str:
    """The CPU's model and its instructions for matrix products, if the system tells them; else the architecture."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    name = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    wide = [word for word in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{word}\b", info)]
    return " ".join([name[1].strip() if name else platform.machine(), *wide])


def is_faster_in_bf16() -> bool:
    """Whether the CPU computes matrix products in bfloat16 faster than in float32: one with AMX, or AMD's with AVX-512
    BF16. On an Intel Xeon with AVX-512 BF16 alone a training step took 1.5 times as long as in float32."""
    words = _processor().split()
    return "amx_bf16" in words or (words[:1] == ["AMD"] and "avx512_bf16" in words)


def leave_at_once() -> NoReturn:
    """Ends this process with exit code 0 without tearing anything down.

    For processes that have nothing left to do after distributed training: tearing down a gloo group waits for threads
    that may wait for the interpreter's lock, and now and then (torch 2.13) hangs or aborts.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
