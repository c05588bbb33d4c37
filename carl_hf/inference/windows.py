"""Texts as tokens: whole, cut, or in windows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from carl_hf.encoders.checks import check_unicode


@dataclass
class Windows:
    """The windows of some texts, those of a text one after the other.

    Args:
        ids: token ids of each window, special ones included.
        first: of each text, the index of its first window. lengths: of each window, its tokens that are not special.
        cut: of each text, how many tokens are in no window. unknown: of each text, how many tokens the tokenizer does
            not know.
    """

    ids: list[list[int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)

    def average(self, answers_WK: np.ndarray) -> np.ndarray:
        """(N, K): the answers of each text's windows, averaged by their lengths."""
        weights_W1 = np.maximum(self.lengths, 1)[:, None]
        return np.add.reduceat(weights_W1 * answers_WK, self.first) / np.add.reduceat(weights_W1, self.first)


def windows_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, cut: bool = False
) -> Windows:
    """Cuts texts of more than `max_length` tokens, special ones included, into as few windows as hold them, whose
    lengths differ by at most one token, the longer ones first; or, if `cut`, to their first `max_length`."""
    check_unicode(texts)
    empty, sample = tokenizer(["", "a"])["input_ids"]
    start = next((i for i, (one, other) in enumerate(zip(empty, sample, strict=False)) if one != other), len(empty))
    prefix, suffix = empty[:start], empty[start:]
    most = max_length - len(empty)
    if most < 1:
        raise ValueError(f"max_length {max_length} leaves no room for a text: at least {len(empty) + 1}.")
    found, unknown = Windows(), tokenizer.unk_token_id
    for ids in tokenizer(list(texts), verbose=False)["input_ids"]:
        content = ids[len(prefix) : len(ids) - len(suffix)]
        read = content[:most] if cut else content
        count = max(1, -(-len(read) // most))
        least, longer = divmod(len(read), count)
        edges = [i * least + min(i, longer) for i in range(count + 1)]
        found.first.append(len(found.ids))
        found.ids += [[*prefix, *read[a:b], *suffix] for a, b in zip(edges, edges[1:], strict=False)]
        found.lengths += [b - a for a, b in zip(edges, edges[1:], strict=False)]
        found.cut.append(len(content) - len(read))
        found.unknown.append(0 if unknown is None else content.count(unknown))
    return found
