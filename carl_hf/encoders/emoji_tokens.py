"""Tokens for emoji, where a tokenizer reads them as unknown and takes the word that they touch along.

They are added tokens of the tokenizer and rows of the word embeddings: any program that loads both files has them.

Source: the emoji and their CLDR short names are those of the package emoji, which follows Unicode's emoji-test.txt.
"""

import logging

from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from carl_hf.encoders.checks import check_tokenizer

logger = logging.getLogger(__name__)

_SELECTOR = "\ufe0f"  # asks for a coloured picture
_TEXT = {
    sign + end for sign in "©®™" for end in ("", _SELECTOR)
}  # emoji to Unicode, signs of ordinary text to writers


def add_emoji(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Gives a tokenizer that reads most emoji as unknown a token for every emoji, in place.

    Emoji with a skin tone and joined ones (U+200D) are one token each. With and without the selector U+FE0F at its end
    an emoji is the same token if the tokenizer strips the selector, as those of uncased BERT and MPNet do, else two.
    Emoji of the vocabulary keep their ids, and are split off from words too. New ids follow all others.

    Returns:
        new token -> its CLDR short name, in the order of their ids; empty if the tokenizer is left as it was.
    """
    from emoji import EMOJI_DATA

    texts = [text for text in EMOJI_DATA if text not in _TEXT]
    if not tokenizer(_SELECTOR, add_special_tokens=False)["input_ids"]:
        texts = list(dict.fromkeys(text.rstrip(_SELECTOR) for text in texts))
    read, vocabulary = tokenizer(texts, add_special_tokens=False)["input_ids"], tokenizer.get_vocab()
    new = [text for text, ids in zip(texts, read, strict=True) if tokenizer.unk_token_id in ids]
    if len(new) <= len(texts) / 2:
        return {}
    known = [text for text in texts if text in vocabulary]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in known + new])
    return {text: _short_name(text) for text in new}


def with_emoji(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Gives a tokenizer and its encoder tokens for emoji, both in place, as [`add_emoji`] says.

    A new token's word embedding is the mean of those of the tokens of its short name ("smiling face with heart-eyes").
    All others stay, so a text without emoji has the same embedding, bit by bit. `encoder.config.emoji_tokens`, the
    number of new tokens, lets [`carl_hf.encoders.check_tokenizer`] refuse a tokenizer without them.

    Returns:
        tokenizer and encoder; as they were if the tokenizer knows most emoji, as those do that read bytes (RoBERTa).

    Raises:
        ValueError: if the tokenizer is not that of the encoder, or the encoder is a `CarlModel`.
    """
    if encoder.config.model_type == "carl":
        raise ValueError("with_emoji takes an encoder before training, such as load_encoder(name), not a CarlModel.")
    check_tokenizer(encoder, tokenizer)
    named = add_emoji(tokenizer)
    if not named:
        logger.info("The tokenizer knows most emoji: it gets no tokens for them.")
        return tokenizer, encoder
    ids = tokenizer.convert_tokens_to_ids(list(named))
    if max(ids) >= encoder.get_input_embeddings().num_embeddings:
        encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    encoder.config.emoji_tokens = len(named)
    weight = encoder.get_input_embeddings().weight.data
    unknown = tokenizer.unk_token_id
    for row, pieces in zip(ids, tokenizer(list(named.values()), add_special_tokens=False)["input_ids"], strict=True):
        weight[row] = weight[[piece for piece in pieces if piece != unknown] or [unknown]].mean(0)
    return tokenizer, encoder


def _short_name(text: str) -> str:
    from emoji import EMOJI_DATA

    name = EMOJI_DATA.get(text, EMOJI_DATA.get(text + _SELECTOR))["en"].strip(":").replace("_", " ")
    is_flag = "\U0001f1e6" <= text[0] <= "\U0001f1ff" or text.endswith("\U000e007f")
    return f"flag: {name}" if is_flag else name  # the package leaves out the kind
