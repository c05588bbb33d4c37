"""Slips in scripts of one's own, by the Python interface: each is refused in one line, or said."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import emotions, tiny_carl, tiny_encoder, toy_dataset, write_table
from datasets import Dataset, DatasetDict
from torch import nn

from carl_hf import (
    AffectPipeline,
    CarlModel,
    CarlTrainer,
    CarlTrainingArguments,
    evaluate_encoder,
    export_emotion_classifier,
    export_encoder,
    export_va_regressor,
    load_va_dataset,
)
from carl_hf.data.corpora import CORPORA
from carl_hf.data.label_spaces import read_label_space
from carl_hf.data.labelled import ClassCorpus, read_emotion
from carl_hf.data.mixing import remove_overlap
from carl_hf.data.streaming import stream_va_dataset
from carl_hf.encoders import load_encoder
from carl_hf.evaluation.before_after import measure_before_after
from carl_hf.evaluation.comparison import compare
from carl_hf.evaluation.encoder import load_text_encoder
from carl_hf.evaluation.neighbours import knn_predictions
from carl_hf.evaluation.space import label_nearness
from carl_hf.evaluation.statistics import agreement, concordance, pearson
from carl_hf.evaluation.suite import Evaluation
from carl_hf.explain import Explainer
from carl_hf.export.folder import read_record
from carl_hf.export.head_training import HeadTraining
from carl_hf.losses import (
    circular_loss,
    class_cross_entropy,
    proxy_anchor_loss,
    rank_n_contrast_loss,
    supervised_contrastive_loss,
    va_regression_loss,
)


def test_held_out_texts_are_lists_of_texts():
    data = toy_dataset(40)
    assert len(remove_overlap(data, [data["text"], ["another"]])) == 0
    for others in (data, data["text"], list(data["text"]), DatasetDict(dev=data), [data], "joywow", [[1]]):
        with pytest.raises(ValueError, match="lists? of texts, got one"):
            remove_overlap(data, others)


def test_held_out_texts_of_a_stream_are_a_list_of_texts(tmp_path):
    toy_dataset(40).to_csv(path := tmp_path / "own.csv")
    for held_out in ("joywow", toy_dataset(4), [toy_dataset(4)["text"]]):
        with pytest.raises(ValueError, match="held_out takes a list of texts, got one"):
            stream_va_dataset([str(path)], scale=(-1, 1), held_out=held_out)


@pytest.mark.parametrize("own", [True, False])
def test_a_hub_set_of_one_split_keeps_its_own_column_of_splits(own, monkeypatch):
    names = ["train"] * 30 + ["test"] * 10
    data = Dataset.from_list([{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(toy_dataset(40))])
    whole = data.add_column("split", names)
    parts = DatasetDict(train=whole) if own else DatasetDict(train=whole.select(range(25)), test=whole.skip(25))
    monkeypatch.setattr("carl_hf.data.loading.load_hub_dataset", lambda name: parts)
    for split, expected in (("train", 30 if own else 25), ("test", 10 if own else 15)):
        assert len(load_va_dataset("me/mine", scale=(-1, 1), split=split)) == expected


@pytest.mark.parametrize("source", [pd.DataFrame({"text": ["a"]}), [{"text": "a"}], None])
def test_a_corpus_that_is_no_name_is_refused(source):
    with pytest.raises(ValueError, match="A corpus is a name, a file or the id"):
        load_va_dataset(source, scale=(-1, 1))


@pytest.mark.parametrize("scale", [9, ("1", "9"), "19", (1, 5, 9)])
def test_a_scale_that_is_no_pair_of_numbers_is_refused(scale, tmp_path):
    toy_dataset(4).to_csv(path := tmp_path / "own.csv")
    for source in (path, "demo"):
        with pytest.raises(ValueError, match=r"The scale must be \(least, greatest\)"):
            load_va_dataset(source, scale=scale)


def test_texts_to_embed_are_an_iterable_of_texts(exports, tokenizer):
    encoder = load_text_encoder(str(exports[0] / "encoder"), show_progress=False)
    model, texts = tiny_carl(), ["joywow", "woezzz"]
    for embed in (encoder, encoder.embed, lambda given: model.embed(given, tokenizer)):
        for wrong in ("joywow", pd.DataFrame({"text": texts}), toy_dataset(2), ["joywow", None], {"text": texts}):
            with pytest.raises(ValueError, match="embed takes a list of texts, got"):
                embed(wrong)
        np.testing.assert_allclose(embed(text for text in texts), embed(texts), atol=1e-6)


def test_what_an_export_cannot_do_is_said_before_its_head_is_trained(tokenizer, tmp_path, monkeypatch):
    def trained(*args, **settings):
        raise AssertionError("the head was trained first")

    for name in ("fit_va_regressor", "fit_classes"):
        monkeypatch.setattr(f"carl_hf.export.task_heads.{name}", trained)
    occupied, model, train, dev = tmp_path / "mine", tiny_carl(), toy_dataset(40), toy_dataset(20, seed=1)
    occupied.mkdir()
    (occupied / "thesis.txt").touch()

    def va(folder=tmp_path / "va", model=model, **given):
        export_va_regressor(model, tokenizer, folder, **{"train": train, "dev": dev, **given})

    for message, wrong in (
        ("something else than an export: thesis.txt", {"folder": occupied}),
        ("There is no figure nofile.png", {"figures": ["nofile.png"]}),
        ("test is a mapping from the corpus's name", {"test": dev}),
        (r"test\['x'\] is a datasets.Dataset of texts, got a list", {"test": {"x": ["joy"]}}),
        (r"test\['x'\] has no column 'text'", {"test": {"x": dev.rename_column("text", "sentence")}}),
        (r"test\['x'\] is empty", {"test": {"x": dev.select([])}}),
        ("train is a datasets.Dataset of texts, got a DatasetDict", {"train": DatasetDict(train=train)}),
        ("corpora must be a list of names, got 'emobank'", {"corpora": "emobank"}),
        ("An export is made of a CarlModel or a PreTrainedModel, got a str", {"model": "minilm-l6"}),
    ):
        with pytest.raises(ValueError, match=message):
            va(**wrong)
    for message, corpus, folder in (
        ("corpus is a ClassCorpus, got a Dataset", train, tmp_path / "emotion"),
        ("something else than an export", emotions(), occupied),
    ):
        with pytest.raises(ValueError, match=message):
            export_emotion_classifier(model, tokenizer, folder, corpus=corpus, corpus_name="letters")
    for message, given in (
        ("An export is made of a CarlModel, got a BertModel", {"model": model.encoder}),
        ("train has 3 texts, the measure of bias needs at least 20", {"train": train.select(range(3))}),
    ):
        with pytest.raises(ValueError, match=message):
            export_encoder(given.pop("model", model), tokenizer, tmp_path / "encoder", **given)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_a_refused_emotion_export_leaves_the_classifier_as_it_was(exports, tokenizer, tmp_path):
    from transformers import AutoModelForSequenceClassification

    classifier = AutoModelForSequenceClassification.from_pretrained(exports[0] / "emotion")
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="something else than an export"):
        export_emotion_classifier(classifier, tokenizer, tmp_path, corpus=emotions(), corpus_name="letters")
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def test_an_export_says_that_texts_are_repeated_and_labels_on_another_scale(tokenizer, tmp_path, caplog):
    train = toy_dataset(40)
    half = train.map(lambda row: {"valence": (1 + row["valence"]) / 2})
    export_va_regressor(
        tiny_carl(), tokenizer, tmp_path / "va", train=half, dev=half, test={"own": half}, max_length=16
    )
    said = caplog.text
    assert "train: valence lies in" in said and "on one side of 0" in said and "train: arousal" not in said
    assert "dev shares" in said and "own shares" in said
    assert read_record(tmp_path / "va")["intervals"]


def test_losses_take_no_labels_of_another_shape():
    z, labels, va = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, -1]), torch.rand(6, 2)
    proxies, logits, column = torch.randn(3, 4), torch.randn(6, 3), torch.rand(6, 1)
    for loss in (
        lambda: proxy_anchor_loss(z, labels[:, None], proxies),
        lambda: supervised_contrastive_loss(z, labels[:, None]),
        lambda: class_cross_entropy(logits, labels, weight_B=column),
        lambda: circular_loss(z, column),
        lambda: rank_n_contrast_loss(z, va, weight_B=column),
        lambda: va_regression_loss(va, va, column),
    ):
        with pytest.raises(ValueError, match=r"must have the shape \(6,\), one for each row, got \(6, 1\)"):
            loss()
    with pytest.raises(ValueError, match=r"Predictions \(6, 1\) and labels \(6, 2\) differ"):
        va_regression_loss(column, va)
    with pytest.raises(ValueError, match="Unknown similarity 'cos'"):
        rank_n_contrast_loss(z, va, similarity="cos")
    ignored = labels.masked_fill(labels == -1, -100)  # PyTorch's own number for no label
    for loss in (
        lambda numbers: proxy_anchor_loss(z, numbers, proxies),
        lambda numbers: supervised_contrastive_loss(z, numbers),
        lambda numbers: class_cross_entropy(logits, numbers),
    ):
        assert torch.equal(loss(labels), loss(ignored))
    two_ignored = torch.tensor([0, 1, 2, 0, -100, -100])
    assert torch.equal(
        supervised_contrastive_loss(z, two_ignored), supervised_contrastive_loss(z, two_ignored.clamp_min(-1))
    )


def test_a_label_space_may_have_angles_beside_valence_and_arousal(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("name,valence,arousal,angle\nbored,-0.1,-0.2,225\nneutral,0,0,0\n")
    space = read_label_space(path)
    assert space.va == {"bored": (-0.1, -0.2), "neutral": (0, 0)} and space.angles == {"bored": 225, "neutral": 0}
    path.write_text("name,valence,angle\nbored,-0.1,225\n")
    with pytest.raises(ValueError, match="arousal"):
        read_label_space(path)


@pytest.mark.parametrize("value", [0.1, 3.7, 1 / 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_has_no_correlation(value, dtype):
    constant, labels = np.full(1000, value, dtype), np.linspace(-1, 1, 1000).astype(dtype)
    assert np.isnan(pearson(constant, labels)) and np.isnan(pearson(labels, constant))
    assert concordance(constant, labels) == pytest.approx(0, abs=1e-6) and np.isnan(concordance(constant, constant))
    found = agreement(constant[:, None], constant[:, None], ["v"])["v"]
    assert found["pearson"] is None and found["ccc"] is None and found["mae"] == 0
    small = np.linspace(-1, 1, 50) * 1e-7
    assert pearson(small, 2 * small) == pytest.approx(1)


def test_a_call_leaves_modes_and_random_numbers_as_they_were(tokenizer, tmp_path):
    model = tiny_carl()
    model.encoder.train()
    for module in model.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    model.embed(["joywow"], tokenizer)
    export_va_regressor(
        model, tokenizer, tmp_path / "va", train=toy_dataset(40), dev=toy_dataset(20, seed=1), max_length=16,
        training=HeadTraining(epochs=1, fewest_texts=10),
    )  # fmt: skip
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)


def test_vectors_and_labels_of_other_texts_are_refused():
    vectors, labels = np.random.default_rng(0).normal(size=(20, 4)), np.zeros((30, 2))
    for measure in (label_nearness, lambda x, y: knn_predictions(x, y, x)):
        with pytest.raises(ValueError, match="20 texts have 30 labels"):
            measure(vectors, labels)


def test_models_measured_by_other_seeds_or_labels_are_not_compared():
    def measured(seed, truth):
        items = {"va/own": {"predictions": np.eye(12, 2), "references": truth}}
        return Evaluation({"va": {"own": {}}}, items, seed)

    truth = np.random.default_rng(0).normal(size=(12, 2))
    assert compare(measured(1, truth), measured(1, truth), seed=1)["va"]["own"]["valence"]["pearson"] == 0
    with pytest.raises(ValueError, match="measured with the seeds 1 and 2"):
        compare(measured(1, truth), measured(2, truth), seed=1)
    with pytest.raises(ValueError, match="va/own: the two models were measured on different texts"):
        compare(measured(1, truth), measured(1, truth[::-1]), seed=1)


def test_a_checkpoint_is_no_encoder_and_a_model_no_function(tmp_path, tokenizer, exports):
    model = tiny_carl()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="checkpoint of CARL training: name its export"):
        load_encoder(tmp_path)
    loaded = load_encoder(exports[0] / "encoder")
    with pytest.raises(ValueError, match="encode is a function from texts to vectors, got CarlModel"):
        evaluate_encoder(model)
    with pytest.raises(ValueError, match="own has no split 'validation'"):
        measure_before_after(loaded, loaded, tokenizer, {"own": {"train": toy_dataset(), "test": toy_dataset()}})


@pytest.mark.parametrize("size", [1, 3])
def test_a_few_measured_texts_end_in_a_verdict_of_its_own(size, tokenizer):
    encoder = tiny_encoder().eval()
    splits = {"train": toy_dataset(40), "validation": toy_dataset(20), "test": toy_dataset(20).select(range(size))}
    results = measure_before_after(encoder, encoder, tokenizer, {"own": splits}, max_length=32).results()
    assert f"own has only {size} different test texts and" in results["verdict"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_explanations_have_gradients_in_any_mode(mode, exports):
    explainer = Explainer.from_pretrained(str(exports[0] / "va"))
    expected = explainer.explain("joywow woezzz", method="gradient_norm")
    with mode():
        assert explainer.explain("joywow woezzz", method="gradient_norm") == expected


def test_a_pipeline_may_be_loaded_within_autocast(exports):
    with torch.autocast("cpu", torch.bfloat16):
        found = AffectPipeline.from_pretrained(exports[0] / "va")(["joy"])
    assert 0 <= found["valence"][0] <= 1


def test_a_corpus_of_ones_own_is_checked():
    texts, labels, classes = ["a", "b", "c"], [0, 1, 0], ["x", "y"]
    assert ClassCorpus(texts, labels, classes, ["train", "validation", "test"]).part(np.array([1]))[1] == [1]
    for message, wrong in (
        ("3 texts have 2 labels", (texts, labels[:2], classes, None)),
        ("3 texts have 1 split", (texts, labels, classes, ["train"])),
        ("A split is .*, got 'dev'", (texts, labels, classes, ["train", "dev", "test"])),
        ("labels are 0 to 1, got 0 to 2", (texts, [0, 1, 2], classes, None)),
        ("labels are numbers of the classes", (texts, ["x", "y", "x"], classes, None)),
        ("holds something else than 0 and 1", (texts, [[0, 7], [1, 0], [0, 1]], classes, None)),
    ):
        with pytest.raises(ValueError, match=message):
            ClassCorpus(*wrong)
    assert ClassCorpus(texts, np.eye(3, 2, dtype="float32"), classes, None).labels.dtype == bool
    with pytest.raises(ValueError, match="sources is a list of files"):
        stream_va_dataset("my.csv", scale=(0, 1))
    assert len(read_emotion("demo", None).texts) == len(load_va_dataset("demo", split="all")) and "demo" in CORPORA


def test_the_run_of_an_encoder_is_named_and_ends_of_a_scale_may_be_numpy_s(exports, tmp_path):
    with pytest.raises(ValueError, match="is an encoder, .* beside it: name its run"):
        AffectPipeline.from_pretrained(exports[0] / "encoder")
    path = write_table(tmp_path / "my.csv", [{"text": "joy", "valence": 1, "arousal": 9}])
    assert load_va_dataset(path, scale=(np.int64(1), np.int64(9)))["arousal"] == [1.0]
    args = CarlTrainingArguments(str(tmp_path), use_cpu=True)
    model = CarlModel.from_encoder(tiny_encoder(), heads=args.heads)
    with pytest.raises(ValueError, match=r"eval_dataset\['b'\] is None: leave it out"):
        CarlTrainer(model, args, train_dataset=toy_dataset(), eval_dataset={"a": toy_dataset(8), "b": None})
