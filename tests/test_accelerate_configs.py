"""The launch files of examples/accelerate: accelerate reads them, and they leave the precision to the script."""

import os
import stat
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from conftest import ROOT

from carl_hf import CarlTrainingArguments

FOLDER = ROOT / "examples" / "accelerate"
EXPECTED = {"one-gpu": ("NO", 1, 1), "several-gpus": ("MULTI_GPU", 1, 8), "several-nodes": ("MULTI_GPU", 2, 16)}


def launch(name: str, *flags: str):
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "examples/pretrain.py", "--bf16", "true"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def test_every_file_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_starts_what_the_file_says(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    kind, machines, processes = EXPECTED[name]
    assert config.distributed_type == DistributedType(kind)
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, processes, "no")
    args = launch(name)
    assert (args.multi_gpu, args.num_processes, args.training_script_args) == (
        kind == "MULTI_GPU", processes, ["--bf16", "true"],
    )  # fmt: skip
    environment = prepare_multi_gpu_env(args) if args.multi_gpu else prepare_simple_launcher_cmd_env(args)[1]
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("bf16, precision", [(True, "bf16"), (False, "no"), (None, "no")])
def test_the_scripts_flag_decides_on_the_precision(bf16, precision, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as the files set it
    assert CarlTrainingArguments(str(tmp_path), bf16=bf16, use_cpu=True).mixed_precision == precision


def test_flags_name_the_machine():
    args = launch("several-nodes", "--machine_rank", "1", "--main_process_ip", "first", "--num_processes", "8")
    prepare_multi_gpu_env(args)
    assert (args.node_rank, args.nnodes, args.nproc_per_node) == (1, "2", "4")
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "first:29500")


def test_the_launcher_adds_nothing_to_the_line_that_names_an_error(capfd):
    words = [
        "-q", "--config_file", str(FOLDER / "one-gpu.yaml"), "--cpu", str(ROOT / "examples" / "pretrain.py"),
        "--corpora", "nosuch",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as end:  # without -q a CalledProcessError, of which Python prints a traceback
        launch_command(launch_command_parser().parse_args(words))
    (line,) = capfd.readouterr().err.splitlines()
    assert end.value.code == 1 and line.startswith("error: Unknown corpus 'nosuch'")


def test_the_slurm_job_starts_one_launcher_a_machine(tmp_path):
    """With stand-ins for SLURM's commands, and an accelerate that prints what it is given."""
    stand_ins = {
        "scontrol": '[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"',
        "srun": 'shift 2; for id in 0 1; do SLURM_NODEID=$id "$@"; done',
        "accelerate": 'printf "%s\\n" "$@" END',
    }
    for name, body in stand_ins.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    slurm = {"JOB_NODELIST": "node[1-2]", "NNODES": "2", "GPUS_ON_NODE": "4", "JOB_ID": "123456", "CPUS_PER_TASK": "8"}
    done = subprocess.run(
        ["bash", str(FOLDER / "several-nodes.sbatch"), "examples/pretrain.py", "--output_dir", "a folder"],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **{f"SLURM_{name}": value for name, value in slurm.items()}},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    started = [text.strip("\n").split("\n") for text in done.stdout.split("END\n") if text]
    assert len(started) == 2
    for rank, words in enumerate(started):
        assert words[0] == "launch"
        args = launch_command_parser().parse_args(words[1:])
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 8, rank)
        assert (args.main_process_ip, args.main_process_port) == ("node1", 20000 + 123456 % 20000)
        assert args.training_script_args == ["--output_dir", "a folder"]


def test_the_file_of_one_gpu_runs_the_scripts(tmp_path, tiny):
    """On a machine without a GPU the same file starts a process on the CPU."""
    (tmp_path / "texts.csv").write_text("text\na\nb\n")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "one-gpu.yaml"),
         "examples/embed.py", "--model", str(tiny), "--texts", str(tmp_path / "texts.csv"), "--output_dir",
         str(tmp_path / "out")],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "out" / "part-00000.parquet").is_file(), done.stderr
