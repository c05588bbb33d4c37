"""The YAML file of comparators: what it holds, and what is refused."""

from pathlib import Path

import pytest

from carl_hf.evaluation.comparators import Comparator, read_comparators

SHIPPED = Path(__file__).parents[1] / "examples" / "configs" / "comparators.yaml"
# nine aliases of nine aliases of ...: 475 bytes that are 387 million values
BOMB = "A:\n  model: x/y\n  note:\n    - &a0 [x]\n" + "".join(
    f"    - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def test_shipped_file_names_every_comparator_of_the_paper():
    found = read_comparators(SHIPPED)
    assert {"BERT", "RoBERTa", "BERT-PT", "SentiBERT", "SentiX", "SentiLARE", "SentiCSE"} <= set(found)
    assert found["BERT"].model == "google-bert/bert-base-uncased"
    assert found["SimCSE, supervised"].pooling == "pooler" and found["SimCSE, unsupervised"].pooling == "cls"
    assert {name for name, c in found.items() if c.model is None} == {"SentiBERT", "SentiX", "SentiLARE"}
    for comparator in found.values():
        where = "Google Drive" in comparator.note if comparator.model is None else comparator.model.count("/") == 1
        assert comparator.note and where


def test_entries_become_comparators(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("A:\n  model: runs/a\n7:\n  model: null\n  pooling: mean\n  note: |\n    two\n    lines\n")
    assert read_comparators(path) == {
        "A": Comparator("A", "runs/a", "cls", ""),
        "7": Comparator("7", None, "mean", "two lines"),
    }
    path.write_text("A: &own {model: x/y, pooling: mean}\nB: {<<: *own, pooling: cls}\n")  # an alias of the usual kind
    assert [entry.pooling for entry in read_comparators(path).values()] == ["mean", "cls"]
    with pytest.raises(ValueError, match="Cannot read the comparators .*none.yaml"):
        read_comparators(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: {model: x/y, poling: cls}", r"own.yaml, entry 'A': unknown key 'poling'; the keys are model, pooling"),
        ("A: {model: x/y, pooling: max}", r"entry 'A': unknown pooling 'max'; choose cls, mean, pooler"),
        ("A: {pooling: cls}", r"entry 'A': the key 'model' is missing; give a Hub id or a folder, or null"),
        ("A: {model: 7}", r"entry 'A': model is 7; give a Hub id or a folder in quotes"),
        ("A: {model: null}", r"entry 'A': model is null; say in 'note' where"),
        ("A: x/y", r"entry 'A': must be a mapping .* got 'x/y'"),
        ("[A]", r"own.yaml must hold entries such as"),
        ("A: {", r"own.yaml is not valid YAML"),
        (BOMB, r"own.yaml is not valid YAML: .*more than 100,000 values, aliases \(\*name\) written out"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_comparators(path)
