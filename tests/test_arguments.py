import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_script

from carl_hf import CarlTrainingArguments
from carl_hf.commands.adapt import AdaptArguments, adapt
from carl_hf.commands.arguments import parse_arguments, parse_script_arguments
from carl_hf.commands.environment import use_all_cores
from carl_hf.commands.outputs import (
    DRAWN,
    EVALUATION,
    check_output_dir,
    claim_output,
    prepare_output,
    remove_results,
)
from carl_hf.training.checkpoints import CompletionRecord, mark_complete

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
        ("seed: 1\nseed: 2", "seed stands there twice"),
        ("corpora: [demo, null]", "corpora has an empty item"),
        ("max_steps: 1:30", "invalid int value: '1:30'"),
        ("eval_strategy: perhaps", "invalid choice: 'perhaps'"),
        ("seed: -1", "--seed must lie between 0 and 4294967295, got -1"),
        ("seed: 4294967296", "--seed must lie between 0 and 4294967295, got 4294967296"),
        (None, "Cannot read the configuration"),
    ],
)
def test_bad_files_are_refused(content, message, tmp_path):
    if content is not None:
        write(tmp_path / "c.yaml", content)
    with pytest.raises(ValueError, match=message):
        parse_arguments(Script, ["--config", str(tmp_path / "c.yaml")])


def test_values_of_a_file_have_the_types_of_the_flags(tmp_path):
    text = "corpora: demo\nperturb_half: 'false'\nbf16: false\noutput_dir: 2024\nmax_steps: 7\nmomentum: null"
    script, args = parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", text)])
    assert script.corpora == ["demo"] and args.perturb_half is False
    assert args.output_dir == "2024" and args.max_steps == 7
    text = "corpora: [no, 010]\ndata_dir: on\nbf16: off\nseed: 010\nperturb_half: no"  # YAML would make of them
    script, args = parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", text)])  # False, 8, True, ...
    assert script == Script(["no", "010"], "on") and args.bf16 is False and args.seed == 10
    assert args.perturb_half is False
    text = "eval_strategy: no\nmax_grad_norm: .inf\nmax_steps: 0x10\nperturb_half: on"
    _, args = parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", text)])
    assert (args.eval_strategy, args.max_grad_norm, args.max_steps, args.perturb_half) == ("no", math.inf, 16, True)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no file names of open pipes")
def test_a_configuration_may_come_from_a_pipe():
    read, write_end = os.pipe()
    os.write(write_end, b"seed: 77")
    os.close(write_end)
    assert parse_arguments(Script, ["--config", f"/dev/fd/{read}"])[1].seed == 77
    os.close(read)


@pytest.mark.parametrize("words, processor, expected", [
    ("", "AMD EPYC avx512f avx512_bf16", True), ("", "Intel(R) Xeon(R) avx512f avx512_bf16", False),
    ("", "Intel(R) Xeon(R) avx512_bf16 amx_bf16", True), ("", "AMD EPYC avx2 avx512f", False),
    ("--bf16 auto", "AMD EPYC avx512_bf16", True), ("--bf16 auto", "arm64", False), ("", "", False),
    ("--bf16 false", "AMD EPYC avx512_bf16", False), ("--bf16 true --use_cpu", "AMD EPYC avx2", True),
    ("--preset paper", "AMD EPYC avx512_bf16", False),
])  # fmt: skip
def test_bfloat16_follows_the_cpu_where_nothing_else_decides(words, processor, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr("carl_hf.commands.environment._processor", lambda: processor)
    assert parse_arguments(Script, words.split())[1].bf16 is expected
    config = write(tmp_path / "c.yaml", "bf16: auto")
    if "--bf16" not in words:
        assert parse_arguments(Script, [*words.split(), "--config", config])[1].bf16 is expected


def test_words_after_the_flags_are_said_to_come_first(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_script_arguments(AdaptArguments, ["--seed", "3", "mine.csv"], leading="labels")
    assert "unrecognized arguments: mine.csv (labels come first, before all flags)" in capsys.readouterr().err


def test_the_default_file_is_left_out_where_a_flag_says_so(tmp_path):
    config = Path(write(tmp_path / "c.yaml", "temperature: 0.5"))
    options = {"default_config": config, "default_config_unless": ("preset",)}
    assert parse_arguments(Script, ["--preset", "paper"], **options)[1].temperature == 0.05
    assert parse_arguments(Script, ["--seed", "2"], **options)[1].temperature == 0.5


def test_an_empty_file_or_value_sets_nothing(tmp_path):
    for text in ("", "corpora:\nseed:\n"):
        script, args = parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", text)])
        assert script == Script() and args.seed == 42
    with pytest.raises(ValueError, match="corpora must be a value or a list of values, not a mapping"):
        parse_arguments(Script, ["--config", write(tmp_path / "c.yaml", "corpora: {a: b}")])


def test_values_of_a_flag_are_not_dropped_and_home_is_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        parse_arguments(Script, ["--corpora", "demo", "--corpora", "my.csv"])
    assert "--corpora is given twice: name all its values behind one" in capsys.readouterr().err
    assert parse_arguments(Script, ["--seed", "1", "--seed", "2"])[1].seed == 2
    for words in (["--output_dir=~/out"], ["--config", write(tmp_path / "c.yaml", "output_dir: ~/out")]):
        assert parse_arguments(Script, words)[1].output_dir == str(tmp_path / "out")


def test_help_is_short_and_help_all_names_the_defaults(capsys):
    found = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            parse_arguments(Script, [flag])
        assert stop.value.code == 0
        found.append(capsys.readouterr().out)
    text = " ".join(found[1].split())
    assert "Temperature of embedding similarities (Eq 5). (default: 0.2)" in text and "100 % local." in text
    assert "--corpora" in found[0] and "--help-all" in found[0] and "--temperature" not in found[0]
    assert found[0].count("\n") < 20 < 400 < found[1].count("\n")


def test_help_names_what_is_shared_with_other_scripts_last(capsys):
    @dataclasses.dataclass
    class Own(Script):
        texts: str = dataclasses.field(default="", metadata={"help": "Texts."})

    with pytest.raises(SystemExit):
        parse_script_arguments(Own, ["--help"], leading="data_dir")
    shown = capsys.readouterr().out.split("this script:")[1]
    assert re.findall(r"^  --(\w+)", shown, re.MULTILINE) == ["data_dir", "texts", "corpora"]


def test_leading_words_are_values_of_one_setting():
    script = parse_script_arguments(Script, ["a.csv", "b", "--data_dir", "x"], leading="corpora")
    assert (script.corpora, script.data_dir) == (["a.csv", "b"], "x")
    assert parse_script_arguments(Script, ["--corpora", "c"], leading="corpora").corpora == ["c"]
    for texts in (["--5 points", "b"], ["-5"], ["- a"], ["-:("], ["-5%"]):  # texts may begin with a dash
        assert parse_script_arguments(Script, texts, leading="corpora").corpora == texts
        script = parse_script_arguments(Script, [*texts, "--data_dir", "x"], leading="corpora")
        assert (script.corpora, script.data_dir) == (texts, "x")
    assert parse_script_arguments(Script, ["--", "-sigh-"], leading="corpora").corpora == ["-sigh-"]
    script = parse_script_arguments(Script, ["--data_dir=my folder", "--corpora", "c"], leading="corpora")
    assert (script.corpora, script.data_dir) == (["c"], "my folder")


@pytest.mark.parametrize("script", ["evaluate", "adapt"])
def test_a_launcher_of_several_processes_is_refused(script, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = {"evaluate": [], "adapt": ["a.csv", "--output", tmp_path / "out"]}
    assert "runs in one process: start it with python" in run_script(f"examples/{script}.py", *flags[script])


def a_run(out):
    """Its files: results, a figure that they name, a complete checkpoint, an export."""
    for name, text in {
        "results.json": json.dumps({"run": {}, "files": ["figures/a.png"]}),
        "figures/a.png": "", "checkpoint-3/config.json": "{}", "encoder/config.json": "{}",
        "encoder/carl_export.json": '{"provenance": null}',
    }.items():  # fmt: skip
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write(out / name, text)
    mark_complete(out / "checkpoint-3", CompletionRecord(2, 1))


def test_a_folder_that_holds_a_run_is_refused_resumed_or_replaced(tmp_path):
    out = tmp_path / "out"
    check_output_dir(out, resume=False, overwrite=False)  # it need not exist
    a_run(out)
    write(out / "notes.txt", "mine")
    with pytest.raises(ValueError, match="holds another run.*--resume_from_checkpoint last.*--overwrite_output_dir"):
        check_output_dir(out, resume=False, overwrite=False)
    check_output_dir(out, resume=True, overwrite=False)
    check_output_dir(out, resume=False, overwrite=True)
    assert (out / "results.json").exists()  # nothing goes before all else has been checked
    claim_output(out, resume=None, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"notes.txt", ".lock"}  # what is not a run's stays
    for below in ("notes.txt", "notes.txt/more/out"):
        with pytest.raises(ValueError, match="notes.txt is a file"):
            check_output_dir(out / below, resume=False, overwrite=True)


@pytest.mark.parametrize(
    "name",
    ["figures/fig1.tex", "encoder/notes.md", "hub/code.py", "emotion/raw.csv", "checkpoint-3/diary.txt",
     "checkpoint-7/trainer_state.json", "va"],
)  # fmt: skip
def test_files_of_the_user_are_not_deleted(name, tmp_path):
    a_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name, "mine")
    with pytest.raises(ValueError, match=f"no record shows to be a run's: {name.split('/')[0]}.*move it away"):
        check_output_dir(tmp_path, resume=False, overwrite=True)
    remove_results(tmp_path)
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "results.json").exists()


def test_what_a_run_was_drawing_when_it_was_killed_is_its_own(tmp_path):
    write(tmp_path / "results.json", json.dumps({"run": {}, "files": ["report.md", DRAWN]}))
    (tmp_path / "figures").mkdir()
    write(tmp_path / "figures" / "scores.svg", "half")
    check_output_dir(tmp_path, resume=False, overwrite=True, kinds=EVALUATION)
    write(tmp_path / "figures" / "notes.txt", "mine")
    with pytest.raises(ValueError, match="no record shows to be a run's: figures/notes.txt.*move it away"):
        check_output_dir(tmp_path, resume=False, overwrite=True, kinds=EVALUATION)


def test_folders_that_are_called_like_results_are_not_taken_for_them(tmp_path):
    (tmp_path / "checkpoint-thesis").mkdir()
    write(tmp_path / "checkpoint-notes.md", "mine")
    claim_output(tmp_path, resume=None, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-thesis", "checkpoint-notes.md", ".lock"}
    write(tmp_path / "results.json", "[1, 2]")
    write(tmp_path / "report.md", "my thesis")
    with pytest.raises(ValueError, match="results.json, report.md. It is not replaced"):
        check_output_dir(tmp_path, resume=False, overwrite=True, kinds=EVALUATION)


def test_a_folder_with_another_run_is_not_taken_for_that_of_a_checkpoint_elsewhere(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    a_run(first)
    a_run(second)
    args = CarlTrainingArguments(str(second), use_cpu=True, resume_from_checkpoint=str(first / "checkpoint-3"))
    with pytest.raises(ValueError, match="b holds another run"):
        prepare_output(args, overwrite=False, encoder="minilm-l6")
    with pytest.raises(ValueError, match="b holds another run"):
        claim_output(second, resume=args.resume_from_checkpoint, overwrite=False)
    args.resume_from_checkpoint = str(second / "checkpoint-3")
    assert prepare_output(args, overwrite=False, encoder="minilm-l6") == args.resume_from_checkpoint
    claim_output(second, resume=args.resume_from_checkpoint, overwrite=False)
    assert (second / "results.json").exists()
    args.resume_from_checkpoint = str(first / "checkpoint-3")
    claim_output(second, resume=prepare_output(args, overwrite=True, encoder="minilm-l6"), overwrite=True)
    assert [path.name for path in second.iterdir()] == [".lock"]


def test_a_checkpoint_on_another_disk_is_of_the_run_and_an_encoder_that_would_go_is_kept(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    a_run(run)
    a_run(other)
    (run / "checkpoint-3").rename(tmp_path / "elsewhere")
    (run / "checkpoint-3").symlink_to(tmp_path / "elsewhere")
    args = CarlTrainingArguments(str(run), use_cpu=True, resume_from_checkpoint="last")
    claim_output(run, resume=prepare_output(args, overwrite=False, encoder="minilm-l6"), overwrite=False)
    args = CarlTrainingArguments(str(other), use_cpu=True, resume_from_checkpoint=str(run / "checkpoint-3"))
    with pytest.raises(ValueError, match="holds --encoder"):
        prepare_output(args, overwrite=True, encoder=str(other / "encoder"))
    args.resume_from_checkpoint = str(other / "checkpoint-3")
    assert prepare_output(args, overwrite=False, encoder=str(other / "encoder")) == args.resume_from_checkpoint


def test_a_run_that_was_killed_at_its_first_checkpoint_begins_anew_by_auto(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    args = CarlTrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint="auto")
    assert prepare_output(args, overwrite=False, encoder="minilm-l6") is None
    claim_output(tmp_path, resume="auto", overwrite=False)
    (tmp_path / "results.json").write_text("{}")  # of a run without checkpoints
    for refused in (
        lambda: prepare_output(args, overwrite=False, encoder="minilm-l6"),
        lambda: claim_output(tmp_path, resume="auto", overwrite=False),
    ):
        with pytest.raises(ValueError, match="holds another run"):
            refused()


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    hold = (
        "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print(1, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path / ".lock"], stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(ValueError, match="another run is writing to it"):
            claim_output(tmp_path, resume=None, overwrite=True)
        labels = tmp_path / "labels.csv"
        labels.touch()
        with pytest.raises(ValueError, match=f"--output {tmp_path}: another run is writing to it"):
            adapt(AdaptArguments(labels=str(labels), output=str(tmp_path)))
    finally:
        other.kill()
        other.wait()
    claim_output(tmp_path, resume=None, overwrite=False)  # the lock of a killed process is free


@pytest.mark.parametrize("flags", (["--hub_tokn", "secret-1"], ["--tokn=hf_" + "a" * 34]))
def test_a_mistyped_flag_does_not_give_the_token_away(flags, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Script, flags)
    said = capsys.readouterr().err
    assert "unrecognized arguments" in said and "***" in said and "secret" not in said and "aaaa" not in said


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
    with pytest.raises(ValueError, match="--num_threads must be positive, got 0"):
        use_all_cores(0)
