"""Which words of a text move its valence, its arousal, or its similarity with another text.

    explainer = Explainer.from_pretrained("runs/carl-demo/va")
    explainer.explain("What a lovely evening.", target="valence").show()

Two methods. Integrated gradients (Sundararajan, Taly, Yan, arXiv 1703.01365, by captum) has a sign, and its scores sum
to the difference between the model's answer and its answer to the same number of padding tokens. The gradient norm is
the saliency of CARL's perturbation (arXiv 2502.20613, Eq 7): never negative, and one backward pass.

Shape suffixes: B copies of a text, L tokens, E width of the word embeddings, H width of the encoder.
"""

import html
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.adversary import token_saliency
from carl_hf.encoders import checks, loading, stated
from carl_hf.encoders.packaged import resolve_encoder
from carl_hf.encoders.packing import Pooling, check_pooling, pool
from carl_hf.utils.devices import default_device
from carl_hf.utils.setting_types import at_least
from carl_hf.utils.suggestions import did_you_mean

Target = Literal["valence", "arousal"]
Method = Literal["integrated_gradients", "gradient_norm"]
Unit = Literal["word", "token"]

_Span = tuple[int, int]
_DIMENSIONS: tuple[str, ...] = get_args(Target)
_LEAST = 0.1  # of the strongest score: below, a word is not coloured
_MISSED = 0.05  # in units of the answer: if the scores miss their sum by more, more steps are taken
_VALUED = 0.4  # of the strongest score: from there, HTML shows the value beside the word
# (red, green, blue) of the strongest score, and the line under the word; dark letters on them have a contrast of 8 or
# more. The terminal's are numbers of its 256 colours, from weak to strong.
_COLOURS = {"+": (122, 178, 232), "-": (244, 166, 98), "": (201, 164, 232)}
_LINES = {"+": "2px solid #1b4f8a", "-": "2px dashed #8a3d00", "": "2px solid #5b2a86"}
_ANSI = {"+": (195, 153, 111), "-": (230, 223, 215), "": (225, 183, 177)}


@dataclass(frozen=True)
class Attribution:
    """Scores of a text's words or tokens.

    Args:
        text: as it was given. tokens: its words, or tokens, in order; spans: (start, end) of each in `text`.
        scores: one for each. By integrated gradients, what the word adds to the prediction; by gradient norm, >= 0.
        target: "valence", "arousal" or "similarity". method: see [`Explainer.explain`].
        prediction: the model's answer: valence or arousal, about in [-1, 1], or a cosine.
        baseline: the model's answer to padding tokens in place of the text's; None by gradient norm. The scores of
            integrated gradients sum to `prediction - baseline`, but for the error of a sum over few steps.
        truncated: whether the text was longer than the model reads; its further words are not among the tokens.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[_Span, ...]
    scores: tuple[float, ...]
    target: str
    method: Method
    prediction: float
    baseline: float | None
    truncated: bool

    @property
    def summary(self) -> str:
        """One line: the prediction and how it was explained."""
        line = f"{self.target} {min(max(self.prediction, -1), 1):+.2f}, {self.method.replace('_', ' ')}"
        return f"{line}; the text is too long: only its beginning was read" if self.truncated else line

    def to_html(self, *, numbers: bool = True) -> str:
        """The text with its words coloured, as a piece of HTML that needs no style sheet.

        What raises the target is blue with a solid line below, what lowers it orange with a broken one; gradient
        norms are purple. Strong words show their value, every word has it as its title, and `numbers` adds a table to
        unfold. The text is escaped.
        """
        parts, rows = [], f'<tr><th scope="col">word</th><th scope="col">{html.escape(self.target)}</th></tr>'
        for before, word, value, sign, strength in self._pieces():
            word = html.escape(word)
            shown = f'<span title="{value}">{word}</span>'
            if strength >= _LEAST:
                colour = ",".join(str(round(255 + strength * (full - 255))) for full in _COLOURS[sign])
                style = f"background:rgb({colour});color:#111;border-bottom:{_LINES[sign]};border-radius:3px"
                small = f'&nbsp;<small style="color:#111">{value}</small>' if strength >= _VALUED else ""
                shown = f'<mark title="{value}" style="{style};padding:1px 2px">{word}{small}</mark>'
            parts += [html.escape(before), shown]
            rows += f'<tr><td>{word}</td><td style="text-align:right">{value}</td></tr>'
        rest = html.escape(self.text[self.spans[-1][1] :])
        parts.append(f'<span title="not read" style="opacity:.75">{rest}</span>' if rest.strip() else "")
        words = f'<p style="margin:0;line-height:2;white-space:pre-wrap;overflow-wrap:anywhere">{"".join(parts)}</p>'
        caption = f'<figcaption style="font-size:.9em">{html.escape(self.summary)}</figcaption>'
        table = f"<details><summary>Numbers</summary><table>{rows}</table></details>" if numbers else ""
        return f'<figure style="margin:0">{words}{caption}{table}</figure>'

    _repr_html_ = to_html  # in a notebook

    def to_terminal(self, *, colour: bool) -> str:
        """The summary, and the coloured text (ANSI, 256 colours) or a line for each word. Control characters of the
        text, which could change what the terminal shows, are replaced."""
        lines, line = [self.summary], ""
        for before, word, value, sign, strength in self._pieces():
            lines.append(f"{value:>8}  {_printable(word)}")
            shade = _ANSI[sign][min(int(strength * 3), 2)]
            coloured = f"\x1b[38;5;16;48;5;{shade}m{_printable(word)}\x1b[0m"
            line += _printable(before) + (coloured if strength >= _LEAST else _printable(word))
        rest = _printable(self.text[self.spans[-1][1] :])
        return f"{self.summary}\n{line}{rest}" if colour else "\n".join(lines)

    def show(self, file: TextIO | None = None) -> None:
        """Prints [`to_terminal`], coloured if `file` (standard output by default) is a terminal that has colours and
        the environment does not set NO_COLOR (https://no-color.org)."""
        file = sys.stdout if file is None else file
        colour = file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(self.to_terminal(colour=colour), file=file)

    def _pieces(self) -> Iterator[tuple[str, str, str, str, float]]:
        """For each word the text before it, the word, its score as text, the sign ("" for gradient norms), and the
        strength: the absolute score over the greatest of them, in [0, 1]."""
        greatest, end = max(map(abs, self.scores)) or 1.0, 0
        for (start, stop), score in zip(self.spans, self.scores, strict=True):
            before, word, strength = self.text[end:start], self.text[start:stop], abs(score) / greatest
            if self.method == "gradient_norm":
                yield before, word, f"{score:.3f}", "", strength
            else:
                yield before, word, f"{score:+.3f}", "+" if score > 0 else "-", strength
            end = stop


class Explainer:
    """Explains a valence-arousal regressor (`va/` of an export), or the similarities of an encoder (`encoder/`).

    Args:
        model: a sequence-classification model with the labels valence and arousal and outputs in [0, 1], or an encoder
            such as BERT, RoBERTa or DistilBERT; put into eval mode. tokenizer: its own, of the fast kind.
        pooling: of an encoder. max_length: tokens read of a text, at most those of the tokenizer.

    Raises:
        ValueError: for another kind of model, or a tokenizer that is slow or has no padding token.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pooling: Pooling = "cls",
        max_length: int = 128,
    ):  # fmt: skip
        self._is_regressor = loading.is_va_regressor(model.config, type(model).__name__)
        if not self._is_regressor:
            if type(model).__name__.endswith("ForSequenceClassification"):
                raise ValueError(
                    f"{type(model).__name__} is no valence-arousal regressor (its labels are "
                    f"{', '.join(map(str, model.config.id2label.values()))}): name the export va/, or an encoder."
                )
            loading.check_encoder(model)
        if not tokenizer.is_fast:
            raise ValueError("Attributions need the positions of tokens in a text: load the fast tokenizer.")
        checks.check_padding(tokenizer)
        check_pooling(pooling)
        checks.check_tokenizer(model, tokenizer)
        self.model, self.tokenizer, self.pooling = model.eval(), tokenizer, pooling
        self.max_length = checks.kept_length(max_length, tokenizer)

    @classmethod
    def from_pretrained(
        cls, name: str, *, max_length: int | None = None, device: str | torch.device | None = None
    ) -> "Explainer":
        """An exported regressor or encoder, from its folder or Hub id, `"minilm-l6"` or `"mpnet-base"`. An encoder is
        pooled as its folder states, else by its first token.

        Args:
            max_length: tokens read of a text (default: as exported). device: by default an accelerator, if any.

        Raises:
            ValueError: if there is no such model, it is of another kind, or has no tokenizer.
        """
        config, tokenizer = loading.load_config(name), loading.load_tokenizer(name)
        pooling = "cls"
        if any(a.endswith("ForSequenceClassification") for a in config.architectures or ()):
            model = loading.load_classifier(name)
        else:
            model = loading.load_encoder(name)
            pooling = stated.stated_pooling(resolve_encoder(name)) or "cls"
            if pooling == "other":
                raise ValueError(f"{name} does more than pooling: name an encoder with cls or mean pooling.")
        length = stated.reading_length(name) if max_length is None else max_length
        return cls(model.to(default_device(device)), tokenizer, pooling=pooling, max_length=length)  # type: ignore

    def explain(
        self, text: str, target: Target = "valence", method: Method = "integrated_gradients", *, unit: Unit = "word",
        steps: int = 32,
    ) -> Attribution:  # fmt: skip
        """What each word of a text adds to the valence or arousal that a regressor gives it.

        Args:
            method: `"integrated_gradients"` (needs captum, the extra `[explain]`) or `"gradient_norm"`.
            unit: `"word"` joins the tokens of what stands between two spaces: a sum for integrated gradients, the
                greatest gradient norm. `"token"` keeps them, but for tokens that share a character.
            steps: of integrated gradients; if their sum is off by more than .05, then 4 and 16 times as many.

        Raises:
            ValueError: for an empty text, an unknown target, method or unit, steps < 1, or a model that has no valence
                and arousal. ImportError: if captum is needed and not there.
        """
        if target not in _DIMENSIONS or not self._is_regressor:
            needs = "valence and arousal need the export va/, similarities an encoder and explain_similarity"
            raise ValueError(f"Cannot explain {target!r} by this model: {needs}.")

        def score(embeds_BLE: Tensor) -> Tensor:
            return 2 * self.model(**_inputs(embeds_BLE)).logits[:, _DIMENSIONS.index(target)] - 1

        return self._attribute(text, score, target, method, unit, steps)

    def explain_similarity(
        self, text: str, other: str, method: Method = "integrated_gradients", *, unit: Unit = "word", steps: int = 32
    ) -> tuple[Attribution, Attribution]:
        """What each word of two texts adds to the cosine of their embeddings: for each text, with the other as it is.
        Args and errors as in [`explain`]; the model must be an encoder."""
        if self._is_regressor:
            raise ValueError("A regressor gives no similarity: load the export encoder/.")

        def embed(embeds_BLE: Tensor) -> Tensor:
            inputs = _inputs(embeds_BLE)
            return pool(self.model(**inputs).last_hidden_state, inputs["attention_mask"], self.pooling)

        def explained(one: str, against: str) -> Attribution:
            with torch.no_grad():
                reference_1H = embed(self._embeds(self._tokenized(against))[0])

            def score(embeds_BLE: Tensor) -> Tensor:
                return F.cosine_similarity(embed(embeds_BLE), reference_1H)

            return self._attribute(one, score, "similarity", method, unit, steps)

        return explained(text, other), explained(other, text)

    @torch.inference_mode(False)  # with gradients, whatever the caller's mode
    def _attribute(
        self, text: str, score: Callable[[Tensor], Tensor], target: str, method: Method, unit: Unit, steps: int
    ) -> Attribution:
        for what, given, known in (("method", method, get_args(Method)), ("unit", unit, get_args(Unit))):
            if given not in known:
                hint = did_you_mean(str(given), known)
                raise ValueError(f"Unknown {what} {given!r}{hint} Choose {' or '.join(known)}.")
        at_least("steps", steps, 1)
        encoded = self._tokenized(text)
        (embeds_1LE, baseline_1LE), baseline = self._embeds(encoded), None
        if method == "gradient_norm":
            answer_1 = score(embeds_1LE.requires_grad_())
            prediction = answer_1.item()
            scores_L = token_saliency(torch.autograd.grad(answer_1.sum(), embeds_1LE)[0])[0]
        else:
            try:
                from captum.attr import IntegratedGradients
            except ImportError as error:
                remedy = "pip install 'carl_hf[explain]', or choose method='gradient_norm'"
                raise ImportError(f"Integrated gradients need captum: {remedy}.") from error
            with torch.no_grad():
                prediction, baseline = score(embeds_1LE).item(), score(baseline_1LE).item()
            integrated = IntegratedGradients(score)
            for n_steps in (steps, 4 * steps, 16 * steps):
                attributed = integrated.attribute(embeds_1LE, baseline_1LE, n_steps=n_steps, internal_batch_size=64)
                scores_L = attributed[0].sum(-1)
                if abs(scores_L.sum().item() - prediction + baseline) <= _MISSED:
                    break
        of_text = [i for i, special in enumerate(encoded["special_tokens_mask"]) if not special]
        offsets = [encoded["offset_mapping"][i] for i in of_text]
        spans = _token_spans(text, offsets)
        if unit == "word":  # what stands between white space, as far as tokens reach
            spans = [word.span() for word in re.finditer(r"\S+", text) if word.start() < spans[-1][1]]
        joined: list[list[float]] = [[] for _ in spans]
        for value, (start, _) in zip(scores_L[of_text].tolist(), offsets, strict=True):
            # a token of white space alone counts with the unit behind it
            joined[next((i for i, (_, end) in enumerate(spans) if end > start), -1)].append(value)
        tokens = tuple(text[start:end] for start, end in spans)
        scores = tuple(max(values, default=0.0) if method == "gradient_norm" else sum(values) for values in joined)
        truncated = bool(encoded.encodings[0].overflowing)
        return Attribution(text, tokens, tuple(spans), scores, target, method, prediction, baseline, truncated)

    def _tokenized(self, text: str) -> BatchEncoding:
        if not isinstance(text, str) or not text.strip():
            raise ValueError("The text is empty, or no string: give one text of at least one word.")
        checks.check_unicode([text])
        outputs = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        encoded = self.tokenizer(text, truncation=True, max_length=self.max_length, **outputs)
        checks.check_positions(self.model.base_model, len(encoded["input_ids"]))
        if all(encoded["special_tokens_mask"]):
            raise ValueError(f"The tokenizer finds no word in {text[:40]!r}: give a text that it knows.")
        return encoded

    def _embeds(self, encoded: BatchEncoding) -> tuple[Tensor, Tensor]:
        """Word embeddings (1, L, E) of a text, and those of the text with padding for all but its special tokens."""
        ids_1L = torch.tensor([encoded["input_ids"]], device=self.model.device)
        special_1L = torch.tensor([encoded["special_tokens_mask"]], device=self.model.device).bool()
        layer = self.model.get_input_embeddings()
        with torch.no_grad():
            return layer(ids_1L), layer(ids_1L.masked_fill(~special_1L, self.tokenizer.pad_token_id))


def _inputs(embeds_BLE: Tensor) -> dict[str, Tensor]:
    mask_BL = torch.ones(embeds_BLE.shape[:2], dtype=torch.long, device=embeds_BLE.device)
    return {"inputs_embeds": embeds_BLE, "attention_mask": mask_BL}


def _token_spans(text: str, offsets: Sequence[_Span]) -> list[_Span]:
    """Spans of the tokens without white space around them; those that share a character (the bytes of an emoji) are
    one."""
    spans: list[_Span] = []
    for start, end in offsets:
        piece = text[start:end]
        if piece.strip():
            start, end = end - len(piece.lstrip()), start + len(piece.rstrip())
            if spans and start < spans[-1][1]:
                first, last = spans.pop()
                start, end = first, max(end, last)
            spans.append((start, end))
    return spans


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text)
