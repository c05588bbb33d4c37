"""Training sets are checked, mixed, and kept apart from evaluation texts."""

import math

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.mixing import (
    check_dataset,
    class_names,
    mix_datasets,
    remove_overlap,
    rows_with_va,
    va_from_class_labels,
)


def test_overlap_and_mixing():
    def texts(*names):
        return Dataset.from_dict({"text": list(names), "valence": [0.5] * len(names), "arousal": [0.0] * len(names)})

    assert remove_overlap(texts("A  b", "c"), [["a B"], ["d"]])["text"] == ["c"]
    mixed = mix_datasets([(texts(*"abcd"), 2.5), (texts("x", "y"), 1), (texts("z"), 0)], seed=1)
    counts = {name: mixed["text"].count(name) for name in "abcdxyz"}
    assert sum(counts[n] for n in "abcd") == 10 and set(counts[n] for n in "abcd") == {2, 3}
    assert counts["x"] == counts["y"] == 1 and counts["z"] == 0
    assert mixed["text"] == mix_datasets([(texts(*"abcd"), 2.5), (texts("x", "y"), 1)], seed=1)["text"]
    for weight, message in ((-1, "mixing weight"), (math.nan, "mixing weight"), (0, "empty")):
        with pytest.raises(ValueError, match=message):
            mix_datasets([(texts("a"), weight)], seed=0)


TWO = {"text": ["a", "b"], "label": ["x", "y"]}
VA = {"text": ["a", "b"], "valence": [0.0] * 2, "arousal": [0.0] * 2}


@pytest.mark.parametrize(
    "columns, needs, message",
    [
        (TWO, {"va"}, "no column 'valence' or 'arousal'"),
        (VA, {"va", "class"}, "no column 'label'"),
        ({"text": [], "valence": [], "arousal": []}, {"va"}, "is empty"),
        ({**VA, "text": ["a", ""]}, {"va"}, "row 1: column 'text' is empty"),
        ({**VA, "valence": [math.nan] * 2, "arousal": [None, 0.0]}, {"va"}, "row 0: has neither valence nor arousal"),
        ({**VA, "valence": [None, math.inf]}, {"va"}, "row 1: column 'valence' holds inf, not a number"),
        ({**VA, "valence": [3.0, 0.0]}, {"va"}, r"row 0: valence is 3, outside the scale \[-1, 1\]"),
        ({**VA, "valence": ["1", "0"]}, {"va"}, "row 0: column 'valence' holds '1' in place of 1.0"),
        (
            {**VA, "valence": [None, None], "arousal": [None, None]},
            {"va"},
            "row 0: has neither valence nor arousal nor a label",
        ),
        ({**TWO, "valence": [None] * 2, "arousal": [None] * 2}, {"va"}, "no text has valence or arousal"),
        ({"text": ["a", "b"], "valence": [0.1, 0.2]}, {"angle"}, "no text has both valence and arousal, or a label"),
        ({**VA, "label": ["x", " "]}, {"va", "class"}, "row 1: column 'label' holds ' ' in place of None"),
        ({**VA, "label": [1, 2]}, {"va", "class"}, "row 0: column 'label' holds 1 in place of '1'"),
        ({**TWO, "label": ["joy", None]}, {"class"}, "row 1: has neither valence nor arousal nor a label"),
    ],
)
def test_datasets_that_cannot_be_trained_on_are_refused(columns, needs, message):
    with pytest.raises(ValueError, match=f"train_dataset.*{message}"):
        check_dataset(Dataset.from_dict(columns), "train_dataset", needs)


def test_class_labels_va_labels_and_mixed_sets_pass_for_what_needs_them():
    named, rated = Dataset.from_dict({"text": ["a"], "label": ["joy"]}), Dataset.from_dict(VA)
    check_dataset(named, "train_dataset", {"class"})
    check_dataset(Dataset.from_dict({**VA, "label": [1, 2]}), "train_dataset", {"va"})  # labels are not looked at
    for dataset in (named, rated):
        check_dataset(dataset, "eval_dataset", ())
    mixed = mix_datasets([(named, 1), (rated, 1)], seed=0)
    assert mixed["label"] == ["joy", None, None] and mixed["valence"] == [None, 0.0, 0.0]
    check_dataset(mixed, "train_dataset", {"va", "class", "angle"})
    assert rows_with_va(mixed)["text"] == ["a", "b"] and len(rows_with_va(named)) == 0
    assert class_names(mixed) == ["joy"] and class_names(rated) == []
    assert mix_datasets([(rated, 1)], seed=0).column_names == ["text", "valence", "arousal"]


def test_class_labels_give_va_labels_by_a_label_space():
    columns = {"text": ["a", "b", "c", "d"], "label": ["Fear", "joy", None, "joy"]}
    named = Dataset.from_dict({**columns, "valence": [None, 0.1, 0.2, 0.3], "arousal": [None, 0.2, 0.3, None]})
    found = va_from_class_labels(named, read_label_space("ekman6"))
    assert found["valence"] == [-0.64, 0.1, 0.2, 0.3] and found["arousal"] == [0.6, 0.2, 0.3, None]  # VA labels stay
    assert found["label"] == columns["label"]
    with pytest.raises(ValueError, match="ekman6 has no entry for 'guilt'; it has anger"):
        va_from_class_labels(Dataset.from_dict({"text": ["a"], "label": ["guilt"]}), read_label_space("ekman6"))


@pytest.mark.parametrize("form", ["torch", "numpy", "arrow", "pandas"])
def test_formatted_datasets_and_class_labels_are_read_as_plain_ones(form):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["joy", " fear"]),
                         "valence": Value("float32"), "arousal": Value("float64")})  # fmt: skip
    columns = {
        "text": ["a", "b", "c"],
        "label": [1, 0, None],
        "valence": [None, 0.5, -0.5],
        "arousal": [None, 0.0, 1.0],
    }
    formatted = Dataset.from_dict(columns, features).with_format(form)
    check_dataset(formatted, "train_dataset", {"va", "class", "angle"})
    assert class_names(formatted) == ["fear", "joy"]
    mixed = mix_datasets([(formatted, 1)], seed=0)
    assert mixed.to_dict() == {**columns, "label": ["fear", "joy", None]}
    assert rows_with_va(formatted).with_format(None)["text"] == ["b", "c"]
    assert remove_overlap(formatted, [["A"]]).with_format(None)["text"] == ["b", "c"]
    assert va_from_class_labels(formatted, read_label_space("ekman6"))["valence"] == [-0.64, 0.5, -0.5]
