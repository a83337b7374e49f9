"""Token ids as pieces of text, with what is invisible made visible."""

import unicodedata
from collections.abc import Sequence
from typing import Any

NEWLINE_SIGN = "⏎"
TAB_SIGN = "⇥"
PART_SIGN = "◌"
"""Stands for a token that holds a part of a character only; the character stands at its last token."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_JOINERS = "\u200c\u200d"  # they belong to the letters and emoji beside them
_FIRST_CONTROL_PICTURE = 0x2400
_DELETE_PICTURE = "\N{SYMBOL FOR DELETE}"


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Returns what each token adds to the decoded text; joined, they are that text.

    A token alone often has no text: bytes of one character may be spread over several, and some tokenizers drop
    the space before a lone word. So each is decoded behind the tokens before it. A token that does not complete a
    character gets "", and the last one of that character the whole of it.

    Args:
        ids: The tokens.
        tokenizer: A transformers tokenizer.
    """
    texts = [""] * len(ids)
    context, done = 0, 0  # ids[context:done] were decoded to whole characters; ids[done:] wait for theirs
    before = ""
    for i in range(len(ids)):
        now = _decode(tokenizer, ids[context : i + 1])
        is_last = i + 1 == len(ids)
        if len(now) > len(before) and (not now.endswith(_REPLACEMENT) or is_last):
            texts[i] = now[len(before) :]
            context, done = done, i + 1
            before = _decode(tokenizer, ids[context:done])
    return texts


def visible(text: str) -> str:
    r"""Returns a text as it is shown: signs for line breaks, tabs, control characters and those that reorder text.

    A line break is kept behind its sign. Nothing that a terminal or a browser would obey is left.

    >>> visible("a\tb\x1b[31m\u202e\n")
    'a⇥\tb␛[31m<U+202E>⏎\n'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _sign(char) for char in text)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the ids of the tokenizer's special tokens."""
    added = tokenizer.added_tokens_decoder
    return frozenset(i for i, token in added.items() if token.special) | frozenset(tokenizer.all_special_ids)


def _sign(char: str) -> str:
    if char == "\n":
        return NEWLINE_SIGN + char
    if char == "\t":
        return TAB_SIGN + char
    if char < " ":
        return chr(_FIRST_CONTROL_PICTURE + ord(char))
    if char == "\x7f":
        return _DELETE_PICTURE
    if char in _JOINERS or unicodedata.category(char) == "Zs":
        return char
    return f"<U+{ord(char):04X}>"


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
