import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch

from carl_hf.commands.arguments import parse_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.commands.outputs import check_output_dir, remove_results

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


@dataclasses.dataclass
class Script:
    corpora: list[str] = dataclasses.field(default_factory=lambda: ["demo"], metadata={"help": "Corpora."})
    data_dir: str | None = dataclasses.field(default=None, metadata={"help": "100 % local."})


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    config = write(
        tmp_path / "c.yaml", "preset: paper\ncorpora: [a.csv, b]\ntemperature: 0.1\nmomentum: 0.99\nseed: 1"
    )
    script, args = parse_arguments(Script, ["--config", config, "--seed", "7", "--output_dir", str(tmp_path / "out")])
    assert script.corpora == ["a.csv", "b"] and script.data_dir is None
    assert (args.seed, args.temperature, args.momentum, args.pgd_step_size) == (7, 0.1, 0.99, 5.0)
    script, args = parse_arguments(Script, ["--corpora", "x", "y"], default_config=Path(config))
    assert script.corpora == ["x", "y"] and args.seed == 1
    _, args = parse_arguments(Script, ["--config", config, "--momentum_half_life", "5"])
    assert args.momentum is None and args.momentum_half_life == 5  # two forms of one setting


@pytest.mark.parametrize(
    "content, message",
    [
        ("temprature: 0.1", "unknown setting 'temprature': did you mean 'temperature'"),
        ("corpra: [demo]", "did you mean 'corpora'"),
        ("preset: papr", "did you mean 'paper'"),
        ("- a\n- b", "must hold 'name: value' lines"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("temperature: 0", "temperature must be positive"),
        ("temperature: cold", "c.yaml: argument --temperature: invalid float value: 'cold'"),
        ("max_steps: 1e3", "--max_steps.*: invalid int value"),
        ("perturb_half: maybe", "perturb_half"),
        ("lr_scheduler_type: 3", "lr_scheduler_type|SchedulerType"),
    ],
)
def test_bad_files_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", content)])


def test_values_of_a_file_have_the_types_of_the_flags(tmp_path):
    text = "corpora: demo\nperturb_half: 'false'\nbf16: false\noutput_dir: 2024\nmax_steps: 7\nmomentum: null"
    script, args = parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", text)])
    assert script.corpora == ["demo"] and args.perturb_half is False
    assert args.output_dir == "2024" and args.max_steps == 7


def test_the_default_file_is_left_out_where_a_flag_says_so(tmp_path):
    config = Path(write(tmp_path / "c.yaml", "temperature: 0.5"))
    options = {"default_config": config, "default_config_unless": ("preset",)}
    assert parse_arguments(Script, ["--preset", "paper"], **options)[1].temperature == 0.05
    assert parse_arguments(Script, ["--seed", "2"], **options)[1].temperature == 0.5


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(ValueError, match="Cannot read the configuration"):
        parse_arguments(Script, ["--config", str(tmp_path / "none.yaml")])
    assert parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", "")])[0] == Script()


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(Script, ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Temperature of embedding similarities (Eq 5). (default: 0.05)" in text and "100 % local." in text


def test_a_folder_that_holds_a_run_is_refused_resumed_or_replaced(tmp_path):
    out = tmp_path / "out"
    check_output_dir(out, resume=False, overwrite=False)  # it need not exist
    (out / "checkpoint-3").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    write(out / "results.json", "{}")
    with pytest.raises(ValueError, match="holds another run.*--resume_from_checkpoint last.*--overwrite_output_dir"):
        check_output_dir(out, resume=False, overwrite=False)
    check_output_dir(out, resume=True, overwrite=False)
    check_output_dir(out, resume=False, overwrite=True)
    assert (out / "results.json").exists()  # nothing goes before all else has been checked
    remove_results(out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]  # what is not a run's stays
    with pytest.raises(ValueError, match="is a file"):
        check_output_dir(out / "notes.txt", resume=False, overwrite=True)


def test_a_removed_setting_says_what_to_use_instead(tmp_path):
    for argv in (
        ["--ptd-weight", "0.2"],
        ["--ptd_weight=0.2"],
        ["--config", write(tmp_path / "c.yaml", "ptd_weight: 1")],
    ):
        with pytest.raises(ValueError, match="ptd_weight was removed: use objectives, such as --objectives mccl=0.8"):
            parse_arguments(Script, argv)


@pytest.mark.parametrize(
    "environment, flag, expected",
    [
        ({"OMP_NUM_THREADS": "1"}, None, CORES),  # what accelerate launch sets
        ({}, None, CORES),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "64"}, None, 1),
        ({"OMP_NUM_THREADS": "3"}, None, None),  # the user's choice is left alone
        ({"OMP_NUM_THREADS": "3"}, 2, 2),
    ],
)
def test_threads(environment, flag, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    use_all_cores(flag)
    assert chosen == ([] if expected is None else [expected])
