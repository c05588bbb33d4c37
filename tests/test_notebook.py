"""examples/quickstart.ipynb runs from top to bottom, and keeps the outputs of a trained model.

`python tests/test_notebook.py` runs it with runs/carl-demo and writes its outputs anew.
"""

import re

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def executed():
    """The notebook with the outputs of a run; progress bars and warnings, which name folders, are left out."""
    nbclient = pytest.importorskip("nbclient")
    notebook = read()
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, record_timing=False, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def read():
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def html(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data.get("text/html", "") for output in outputs if output.output_type == "execute_result"]


def test_it_runs_on_any_run_and_keeps_its_outputs(exports, monkeypatch):
    monkeypatch.setenv("CARL_RUN", str(exports[0]))
    for package in ("ipykernel", "captum"):
        pytest.importorskip(package)
    kept, made = read(), executed()
    assert [bool(page) for page in html(made)] == [True, True, False, True, True]
    answers, nearest, picture, scored, words = html(kept)
    assert re.findall("joy|anger|sadness", answers) == ["joy", "joy", "anger", "sadness"]
    assert "<th>after</th>" in nearest and nearest.count("<tr") == 6
    assert "The parcel came early, thank you!" in scored and "<td>joy</td>" in scored
    assert "wonderful" in words and not picture
    assert len(kept.cells) == 10 and str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")


if __name__ == "__main__":
    import nbformat

    nbformat.write(executed(), NOTEBOOK)
