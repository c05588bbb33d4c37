"""The speed benchmarks: what is compared computes in one dtype, and the published tables are those of the records."""

from pathlib import Path

import pytest
import torch

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
    result = step_cost.measure(args)
    assert set(result["steps"]) == set(seen) and all(row["seconds"] > 0 for row in result["steps"].values())
    table = step_cost.render(result)
    assert all(name in table for name in seen)


def test_the_tables_of_time_and_memory_are_those_of_the_records(benchmarks):
    import results

    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == results.render(BENCHMARKS / "results")


def test_an_unknown_step_is_refused(benchmarks, tiny):
    import training_steps

    bench = training_steps.Bench(training_steps.BenchArguments(corpus="demo", encoder=str(tiny), batch_size=8))
    with pytest.raises(ValueError, match="There is no step 'fast'"):
        bench.steps(["fast"])
