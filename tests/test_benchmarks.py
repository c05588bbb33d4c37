"""The speed benchmarks: what is compared computes in one dtype, and the published tables are those of the records."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("bf16", [False, True])
def test_all_steps_compute_in_the_dtype_that_is_asked_for(bf16, benchmarks, tiny, tmp_path, monkeypatch):
    import step_cost

    monkeypatch.chdir(tmp_path)
    args = step_cost.StepCostArguments(corpus="demo", encoder=str(tiny), batch_size=8, bf16=bf16, rounds=1)
    seen: dict[str, set[torch.dtype]] = {}
    bench = step_cost.Bench(args)
    steps = bench.steps()
    batch = bench.batch(0)
    for name, step in steps.items():
        dtypes = seen.setdefault(name, set())

        def look(module, given, output, dtypes=dtypes):
            if isinstance(module, torch.nn.Linear) and module.out_features == 32:  # the encoder's wide layer
                dtypes.add(output.dtype)

        hook = torch.nn.modules.module.register_module_forward_hook(look)
        step.run(step.prepare(batch))
        hook.remove()
    assert len(seen) == 8 and set.union(*seen.values()) == {torch.bfloat16 if bf16 else torch.float32}
    assert all(seen.values())
    if not bf16:
        result = step_cost.measure(args)
        assert set(result["steps"]) == set(seen) and all(row["seconds"] > 0 for row in result["steps"].values())
        for spent in result["seconds_by_kind"].values():
            assert min(spent[kind] for kind in step_cost.KINDS) > 0
        assert all(name in step_cost.render(result) for name in (*seen, *step_cost.KINDS))
    with pytest.raises(ValueError, match="There is no step 'fast'"):
        bench.steps(["fast"])


def test_the_tables_and_the_estimate_in_the_guides_are_those_of_the_scripts(benchmarks, monkeypatch):
    import estimate
    import results

    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == results.render(BENCHMARKS / "results")
    monkeypatch.chdir(BENCHMARKS.parent)
    guide = (BENCHMARKS.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    shown = [line for line in guide.splitlines() if re.match(r"\| (encoder|roberta|xlm-roberta)", line)]
    printed = estimate.render(estimate.EstimateArguments())
    assert len(shown) == 3 and set(shown) <= set(printed.splitlines())
    assert re.search(r"xlm-roberta-large .* 1,024 \| +32 .* 14\.8 GiB", printed) and "in 14.8 GiB" in guide


def test_the_answers_that_are_timed_are_those_of_transformers(benchmarks, exports, monkeypatch):
    import serve

    monkeypatch.setattr(serve, "in_own_process", lambda work, *given: work(*given))
    monkeypatch.setattr(serve, "cpu_seconds", lambda words: 3.0 if "score" in words else 2.0)
    args = serve.ServeArguments(model=str(exports[0]), corpora=["demo"], texts=12, table_rows=[50], rounds=1)
    result = serve.measure(args)
    answers, scored = result["answers"][0], result["score"][0]
    assert answers["largest_difference"] < 1e-4 and answers["passes"] == 1  # both heads are frozen
    assert answers["ratio"] > 0 < scored["rate_over_in_memory"] and scored["peak_mib"] > 50
    shown = serve.render(result)
    assert "demo, 12 texts" in shown and "3.00 CPU seconds, 1.50 of `import torch, transformers`" in shown


def test_the_estimate_gives_what_was_measured_where_that_was(benchmarks):
    """Operations, and with them time and memory, of the encoder whose records it starts from."""
    import estimate

    encoder = estimate.MEASURED
    model = torch.nn.ModuleList(AutoModel.from_config(encoder).encoder.layer)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    assert 2 * matrices == encoder.num_hidden_layers * estimate.matrix_operations(encoder)
    costs = estimate.Costs.read(BENCHMARKS / "results")
    memory, step = (
        json.loads((BENCHMARKS / "results" / f"{name}.json").read_text()) for name in ("memory", "step_cost")
    )
    tokens = 2858  # of the batch in both records
    bytes_of_a_token = costs.activation_bytes * encoder.num_hidden_layers * encoder.hidden_size
    held = tokens * bytes_of_a_token + 4 * estimate.MEASURED_PARAMETERS
    assert held / 2**20 == pytest.approx(memory["rows"][1]["step_mib"], rel=1e-4)
    for row in memory["rows"][2:]:  # in chunks
        held = costs.step_bytes(encoder, tokens * row["texts"] / 128, row["parts"]) + 4 * estimate.MEASURED_PARAMETERS
        assert 1 < held / 2**20 / row["step_mib"] < 1.1
    operations = tokens * encoder.num_hidden_layers * estimate.matrix_operations(encoder)
    seconds = costs.step_over_forward * operations / costs.cpu_rate
    assert seconds == pytest.approx(step["steps"]["CARL, this trainer"]["seconds"], rel=0.25)


def test_a_release_makes_what_is_missing_and_goes_on_where_it_was_stopped(benchmarks, exports, monkeypatch, tmp_path):
    import release

    started = []
    monkeypatch.setattr(release, "run", lambda words: started.append([Path(word).name for word in words[1:]]))

    def commands(*flags):
        started.clear()
        only = [] if "--only" in flags else ["--only", "carl-demo"]
        monkeypatch.setattr("sys.argv", ["release.py", "--runs_dir", str(tmp_path), *only, *flags])
        release.main()
        return [words[0] for words in started]

    assert commands() == ["pretrain.py", "collect.py"] and "--overwrite_output_dir" in started[0]
    monkeypatch.setattr(release, "last_checkpoint", lambda folder: folder / "checkpoint-1")
    assert commands("--data_dir", "corpora") == ["pretrain.py", "collect.py"]
    assert {"--resume_from_checkpoint", "--data_dir"} <= set(started[0])
    for kind in ("encoder", "va", "emotion"):
        shutil.copytree(exports[0] / kind, tmp_path / "carl-demo" / kind)
    for flags in ("", "--config examples/configs/demo.yaml --data_dir DIR --output_dir runs/carl-demo"):
        run = {"command": f"examples/pretrain.py {flags}".rstrip()}
        (tmp_path / "carl-demo" / "results.json").write_text(json.dumps({"run": run}), encoding="utf-8")
        assert commands("--push", "org") == ["collect.py", *3 * ["push_to_hub.py"]]
        assert [words[-1] for words in started[1:]] == ["carl-demo", "carl-demo-va", "carl-demo-emotion"]
    (tmp_path / "carl-demo" / "results.json").unlink()
    with pytest.raises(SystemExit, match="holds a run .* with the flags None, not carl-demo"):
        commands()
    run["command"] = "examples/pretrain.py --max_steps 20"
    (tmp_path / "carl-demo" / "results.json").write_text(json.dumps({"run": run}), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"carl-demo holds a run .*'--max_steps': '20'.*, not carl-demo: move it"):
        commands()
    with pytest.raises(SystemExit, match="There is no model 'carl'"):
        commands("--only", "carl")
