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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from carl_hf.adversary import token_saliency
from carl_hf.encoders.loading import (
    check_encoder,
    is_va_regressor,
    load_classifier,
    load_config,
    load_encoder,
    load_tokenizer,
    resolve_encoder,
    stated_pooling,
)
from carl_hf.encoders.packing import Pooling, pool
from carl_hf.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from captum.attr import IntegratedGradients

Target = Literal["valence", "arousal"]
Method = Literal["integrated_gradients", "gradient_norm"]
Unit = Literal["word", "token"]

_Span = tuple[int, int]
_DIMENSIONS: tuple[str, ...] = get_args(Target)
_LEAST = 0.1  # of the strongest score: below, a word is not coloured
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
        prediction: the model's answer: valence or arousal, [-1, 1] but for slight overshooting, or a cosine.
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
        line = f"{self.target} {self.prediction:+.2f}, {self.method.replace('_', ' ')}"
        return f"{line}; the text is too long: only its beginning was read" if self.truncated else line

    def to_html(self, *, numbers: bool = True) -> str:
        """The text with its words coloured, as a piece of HTML that needs no style sheet.

        What raises the target is blue with a solid line below, what lowers it orange with a broken one; gradient
        norms are purple. Strong words show their value, every word has it as its title, and `numbers` adds a table to
        unfold. The text is escaped.
        """
        parts, end = [], 0
        for (start, stop), score, strength in zip(self.spans, self.scores, self._strengths(), strict=True):
            parts.append(html.escape(self.text[end:start]))
            parts.append(self._word_html(self.text[start:stop], score, strength))
            end = stop
        if self.text[end:].strip():
            parts.append(f'<span title="not read" style="opacity:.75">{html.escape(self.text[end:])}</span>')
        words = f'<p style="margin:0;line-height:2;white-space:pre-wrap;overflow-wrap:anywhere">{"".join(parts)}</p>'
        caption = f'<figcaption style="font-size:.9em">{html.escape(self.summary)}</figcaption>'
        return f'<figure style="margin:0">{words}{caption}{self._table_html() if numbers else ""}</figure>'

    def _repr_html_(self) -> str:  # in a notebook
        return self.to_html()

    def to_terminal(self, *, colour: bool) -> str:
        """The summary, and the coloured text (ANSI, 256 colours) or a line for each word. Control characters of the
        text, which could change what the terminal shows, are replaced."""
        if not colour:
            rows = [
                f"{self._value(score):>8}  {_printable(t)}" for t, score in zip(self.tokens, self.scores, strict=True)
            ]
            return "\n".join([self.summary, *rows])
        parts, end = [], 0
        for (start, stop), score, strength in zip(self.spans, self.scores, self._strengths(), strict=True):
            word = _printable(self.text[start:stop])
            if strength >= _LEAST:
                shades = _ANSI[self._sign(score)]
                shade = shades[min(int(strength * len(shades)), len(shades) - 1)]
                word = f"\x1b[38;5;16;48;5;{shade}m{word}\x1b[0m"
            parts += [_printable(self.text[end:start]), word]
            end = stop
        return "\n".join([self.summary, "".join(parts) + _printable(self.text[end:])])

    def show(self, file: TextIO | None = None) -> None:
        """Prints [`to_terminal`], coloured if `file` (standard output by default) is a terminal that has colours and
        the environment does not set NO_COLOR (https://no-color.org)."""
        file = sys.stdout if file is None else file
        colour = file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(self.to_terminal(colour=colour), file=file)

    def _strengths(self) -> list[float]:
        """Absolute scores over the greatest of them, in [0, 1]."""
        greatest = max(map(abs, self.scores))
        return [abs(score) / greatest if greatest else 0.0 for score in self.scores]

    def _sign(self, score: float) -> str:
        return "" if self.method == "gradient_norm" else "+" if score > 0 else "-"

    def _value(self, score: float) -> str:
        return f"{score:.3f}" if self.method == "gradient_norm" else f"{score:+.3f}"

    def _word_html(self, word: str, score: float, strength: float) -> str:
        title = f'title="{self._value(score)}"'
        if strength < _LEAST:
            return f"<span {title}>{html.escape(word)}</span>"
        sign = self._sign(score)
        red, green, blue = (round(255 + strength * (full - 255)) for full in _COLOURS[sign])
        value = f'&nbsp;<small style="color:#111">{self._value(score)}</small>' if strength >= _VALUED else ""
        return (
            f'<mark {title} style="background:rgb({red},{green},{blue});color:#111;border-bottom:{_LINES[sign]};'
            f'border-radius:3px;padding:1px 2px">{html.escape(word)}{value}</mark>'
        )

    def _table_html(self) -> str:
        rows = "".join(
            f'<tr><td>{html.escape(token)}</td><td style="text-align:right">{self._value(score)}</td></tr>'
            for token, score in zip(self.tokens, self.scores, strict=True)
        )
        head = f'<tr><th scope="col">word</th><th scope="col">{html.escape(self.target)}</th></tr>'
        return f"<details><summary>Numbers</summary><table>{head}{rows}</table></details>"


class Explainer:
    """Explains a valence-arousal regressor (`va/` of an export), or the similarities of an encoder (`encoder/`).

    Args:
        model: a sequence-classification model with the labels valence and arousal and outputs in [0, 1], or an encoder
            such as BERT, RoBERTa or DistilBERT; put into eval mode. tokenizer: its own, of the fast kind.
        pooling: what stands for a text in an encoder's similarities.
        max_length: tokens read of a text, at most those of the tokenizer.

    Raises:
        ValueError: for another kind of model, or a tokenizer that is slow or has no padding token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: Pooling = "cls",
        max_length: int = 128,
    ):
        self._is_regressor = is_va_regressor(model.config)
        if not self._is_regressor:
            if type(model).__name__.endswith("ForSequenceClassification"):
                raise ValueError(
                    f"{type(model).__name__} is no valence-arousal regressor (its labels are "
                    f"{', '.join(map(str, model.config.id2label.values()))}): name the export va/, or an encoder."
                )
            check_encoder(model)
        if not tokenizer.is_fast:
            raise ValueError("Attributions need to know where a token stands in its text: load the fast tokenizer.")
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no padding token, with which integrated gradients begin: set one.")
        self.model, self.tokenizer, self.pooling = model.eval(), tokenizer, pooling
        self.max_length = min(max_length, tokenizer.model_max_length)

    @classmethod
    def from_pretrained(
        cls, name: str, *, max_length: int = 128, device: str | torch.device | None = None
    ) -> "Explainer":
        """An exported regressor or encoder, from its folder or Hub id, or `"minilm-l6"`.

        An encoder's similarities are those of the pooling that its folder states, else of the first token.

        Args:
            max_length: tokens read of a text. device: CUDA where there is one, by default.

        Raises:
            ValueError: if there is no such model, it is of another kind, or has no tokenizer.
        """
        config, tokenizer = load_config(name), load_tokenizer(name)
        pooling = "cls"
        if any(a.endswith("ForSequenceClassification") for a in config.architectures or ()):
            model = load_classifier(name)
        else:
            model = load_encoder(name)
            pooling = stated_pooling(resolve_encoder(name)) or "cls"
            if pooling == "other":
                raise ValueError(
                    f"{name} has modules beyond pooling, through which similarities are not explained: name an "
                    "encoder with cls or mean pooling."
                )
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, tokenizer, pooling=pooling, max_length=max_length)

    def explain(
        self,
        text: str,
        target: Target = "valence",
        method: Method = "integrated_gradients",
        *,
        unit: Unit = "word",
        steps: int = 32,
    ) -> Attribution:
        """What each word of a text adds to the valence or arousal that a regressor gives it.

        Args:
            method: `"integrated_gradients"` (needs captum, the extra `[explain]`) or `"gradient_norm"`.
            unit: `"word"` joins the tokens of what stands between two spaces: a sum for integrated gradients, the
                greatest gradient norm. `"token"` keeps them, but for tokens that share a character.
            steps: points at which integrated gradients are evaluated; no part in a gradient norm.

        Raises:
            ValueError: for an empty text, an unknown target, method or unit, steps < 1, or a model that has no valence
                and arousal. ImportError: if captum is needed and not there.
        """
        if target not in _DIMENSIONS:
            hint = " For similarities call explain_similarity." if target == "similarity" else ""
            raise ValueError(f"Unknown target {target!r}: choose {' or '.join(map(repr, _DIMENSIONS))}.{hint}")
        if not self._is_regressor:
            raise ValueError(
                "An encoder gives no valence or arousal: load the export va/, or call explain_similarity."
            )
        number = _DIMENSIONS.index(target)

        def score(embeds_BLE: Tensor) -> Tensor:
            mask_BL = torch.ones(embeds_BLE.shape[:2], dtype=torch.long, device=embeds_BLE.device)
            return 2 * self.model(inputs_embeds=embeds_BLE, attention_mask=mask_BL).logits[:, number] - 1

        return self._attribute(text, score, target, method, unit, steps)

    def explain_similarity(
        self,
        text: str,
        other: str,
        method: Method = "integrated_gradients",
        *,
        unit: Unit = "word",
        steps: int = 32,
    ) -> tuple[Attribution, Attribution]:
        """What each word of two texts adds to the cosine of their embeddings: for each text, with the other as it is.

        Args and errors as in [`explain`]; the model must be an encoder.
        """
        if self._is_regressor:
            raise ValueError("A regressor gives no similarity: load the export encoder/.")

        def explained(one: str, against: str) -> Attribution:
            with torch.no_grad():
                embeds_1LE, _ = self._embeds(self._tokenized(against))
                reference_1H = self._vector(embeds_1LE)
            return self._attribute(
                one, lambda e_BLE: F.cosine_similarity(self._vector(e_BLE), reference_1H), "similarity", method, unit,
                steps,
            )  # fmt: skip

        return explained(text, other), explained(other, text)

    def _vector(self, embeds_BLE: Tensor) -> Tensor:
        mask_BL = torch.ones(embeds_BLE.shape[:2], dtype=torch.long, device=embeds_BLE.device)
        hidden_BLH = self.model(inputs_embeds=embeds_BLE, attention_mask=mask_BL).last_hidden_state
        return pool(hidden_BLH, mask_BL, self.pooling)

    def _attribute(
        self, text: str, score: Callable[[Tensor], Tensor], target: str, method: Method, unit: Unit, steps: int
    ) -> Attribution:
        for what, given, known in (("method", method, get_args(Method)), ("unit", unit, get_args(Unit))):
            if given not in known:
                raise ValueError(
                    f"Unknown {what} {given!r}{did_you_mean(str(given), known)} Choose {' or '.join(known)}."
                )
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        encoded = self._tokenized(text)
        offsets = [tuple(span) for span in encoded["offset_mapping"]]
        special = [bool(s) for s in encoded["special_tokens_mask"]]
        embeds_1LE, baseline_1LE = self._embeds(encoded)
        baseline = None
        if method == "gradient_norm":
            leaf_1LE = embeds_1LE.requires_grad_()
            answer_1 = score(leaf_1LE)
            prediction = answer_1.item()
            (gradient_1LE,) = torch.autograd.grad(answer_1.sum(), leaf_1LE)
            scores_L = token_saliency(gradient_1LE)[0]
        else:
            with torch.no_grad():
                prediction, baseline = score(embeds_1LE).item(), score(baseline_1LE).item()
            attributed_1LE = _integrated_gradients(score).attribute(
                embeds_1LE, baselines=baseline_1LE, n_steps=steps, internal_batch_size=64
            )
            scores_L = attributed_1LE[0].sum(-1)
        units = _words(text, offsets, special) if unit == "word" else _visible_tokens(text, offsets, special)
        joined: list[list[float]] = [[] for _ in units]
        for value, (start, _), passed in zip(scores_L.tolist(), offsets, special, strict=True):
            if not passed:  # a token of white space alone counts with the unit behind it
                joined[next((i for i, (_, end) in enumerate(units) if end > start), -1)].append(value)
        return Attribution(
            text=text,
            tokens=tuple(text[start:end] for start, end in units),
            spans=tuple(units),
            scores=tuple(max(values) if method == "gradient_norm" else sum(values) for values in joined),
            target=target,
            method=method,
            prediction=prediction,
            baseline=baseline,
            truncated=bool(encoded.encodings[0].overflowing),
        )

    def _tokenized(self, text: str) -> BatchEncoding:
        if not isinstance(text, str) or not text.strip():
            raise ValueError("The text is empty: give at least one word.")
        encoded = self.tokenizer(
            text, truncation=True, max_length=self.max_length, return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )  # fmt: skip
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


def _integrated_gradients(score: Callable[[Tensor], Tensor]) -> "IntegratedGradients":
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ImportError(
            "Integrated gradients need captum: pip install 'carl_hf[explain]', or choose method='gradient_norm'."
        ) from error
    return IntegratedGradients(score)


def _words(text: str, offsets: Sequence[_Span], special: Sequence[bool]) -> list[_Span]:
    """Spans between white space, as far as tokens reach."""
    ends = [end for (_, end), passed in zip(offsets, special, strict=True) if not passed]
    return [match.span() for match in re.finditer(r"\S+", text) if match.start() < max(ends)]


def _visible_tokens(text: str, offsets: Sequence[_Span], special: Sequence[bool]) -> list[_Span]:
    """Spans of the tokens without white space around them; those that share a character (the bytes of an emoji) are
    one."""
    spans: list[_Span] = []
    for (start, end), passed in zip(offsets, special, strict=True):
        piece = text[start:end]
        if passed or not piece.strip():
            continue
        start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        if spans and start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text)
