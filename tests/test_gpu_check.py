"""benchmarks/gpu_check.py in its form for a CPU: that it runs, and what it does where something is wrong."""

import json
import math
from pathlib import Path

import pytest
import torch


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu_check

    return gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs at full size on a GPU")
def test_it_runs_on_a_cpu_and_passes(gpu_check, tmp_path):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--output", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert [found["name"] for found in report["checks"] if not found["passed"]] == [] and end.value.code == 0
    named = " ".join([*(found["name"] for found in report["checks"]), *report["figures"]])
    for words in ("modernbert: a text among other neighbours", "three chunks", "the target against Eq 1",
                  "waits of the host", "a resumed training", "bf16", "dropout in a chunk", "paper: steps skipped",
                  "minilm-l6: steps", "16 texts in 2 chunks", "without work", "compiled"):  # fmt: skip
        assert words in named, words


def test_a_failed_check_and_an_error_end_it_with_1(gpu_check, monkeypatch, tmp_path, capsys):
    from gpu_parts.inputs import Report

    report = Report()
    for value in (0.5, 1.0, 1.1, math.nan):
        report.check("a value", value, 1.0)
    assert [found["passed"] for found in report.checks] == [True, True, False, False]

    monkeypatch.setattr(gpu_check, "measure_compiled", lambda *_, **__: 1 / 0)
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--parts", "compile", "--output", str(tmp_path / "report.json")])
    assert end.value.code == 1 and "- compile: ended early" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="There is no part 'all': choose from correctness"):
        gpu_check.main(["--parts", "all"])


def test_a_wrong_gradient_is_found(gpu_check, monkeypatch, capsys):
    """The first step's embeddings are a little off, as on a device that errs."""
    from gpu_parts import correctness

    real, calls = correctness.CarlModel.embed_packed, []

    def embed(model, *given):
        calls.append(model)
        return real(model, *given) + 0.01 * (model is calls[0])

    monkeypatch.setattr(correctness.CarlModel, "embed_packed", embed)
    monkeypatch.setattr(correctness, "FAMILIES", ("bert",))
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--parts", "correctness"])
    failed = capsys.readouterr().out.partition("failed\n")[2]
    assert end.value.code == 1 and "bert: its gradients" in failed and "padded slices" not in failed
