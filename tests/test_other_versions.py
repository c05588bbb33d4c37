"""The exports in other versions of transformers and sentence-transformers: pytest -m slow (installs packages)."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
SCRIPT = """
import json, sys, warnings
from pathlib import Path
import sentence_transformers, transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, texts, odd = Path(sys.argv[1]), ["joywow joywow", "woezzz"], {}
for kind, loader in (("encoder", AutoModel), ("va", AutoModelForSequenceClassification),
                     ("emotion", AutoModelForSequenceClassification)):
    _, info = loader.from_pretrained(folder / kind, output_loading_info=True)
    odd |= {f"{kind} {key}": sorted(map(str, value)) for key, value in info.items() if value}
tokenizer, model = AutoTokenizer.from_pretrained(folder / "encoder"), AutoModel.from_pretrained(folder / "encoder")
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
print("RESULT " + json.dumps({
    "versions": [transformers.__version__, sentence_transformers.__version__],
    "odd": odd,
    "length": tokenizer.model_max_length,
    "embeddings": model.eval()(**batch).last_hidden_state[:, 0].tolist(),
    "units": sentence_transformers.SentenceTransformer(str(folder / "encoder"), device="cpu").encode(texts).tolist(),
    "va": pipeline("text-classification", str(folder / "va"), top_k=None)(texts),
    "emotion": pipeline("text-classification", str(folder / "emotion"), top_k=None)(texts),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "packages",
    [
        ("transformers==4.49.0", "sentence-transformers==3.4.1"),
        ("transformers==4.57.6", "sentence-transformers==5.1.2"),
        ("transformers==5.23.0", "sentence-transformers==6.2.0"),
    ],
    ids=" ".join,
)
def test_exports_load_in_other_versions(packages, exports, tmp_path):
    from transformers import pipeline

    folder, vectors = exports
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    for names in ((torch,), packages):
        subprocess.run([python, "-m", "pip", "install", "-q", *names], check=True)
    done = subprocess.run([python, "-c", SCRIPT, folder], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    print(found["versions"], file=sys.stderr)
    assert found["odd"] == {} and found["length"] == 32
    assert found["embeddings"] == [pytest.approx(row, abs=1e-5) for row in vectors.tolist()]
    units = vectors / vectors.norm(dim=1, keepdim=True)
    assert found["units"] == [pytest.approx(row, abs=1e-5) for row in units.tolist()]
    for kind in ("va", "emotion"):
        expected = pipeline("text-classification", str(folder / kind), top_k=None)(["joywow joywow", "woezzz"])
        for ours, theirs in zip(expected, found[kind], strict=True):
            assert [a["label"] for a in theirs] == [a["label"] for a in ours]
            assert [a["score"] for a in theirs] == pytest.approx([a["score"] for a in ours], abs=1e-5)
