"""Tokenising a rendered conversation piece by piece, so that what its renderings share is tokenised once.

A row is rendered many times: each input with and without generation prompt and with the response. A tokenizer of
the library `tokenizers` cuts a text at its special tokens first, and no token reaches over such a cut; so a text
that is cut in front of special tokens gives, piece by piece, the tokens that it gives as a whole.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

# The pieces of a row, and the system prompts of the rows before it.
_PIECES_IN_MEMORY = 512
# So many texts are tokenised both ways: if a tokenizer ever does otherwise, it gets whole texts.
_TEXTS_COMPARED = 32


class PieceTokenizer:
    """Gives the token ids of texts, none added at the ends; the same as the tokenizer's own.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._marks = _marks_of(tokenizer)
        self._num_to_compare = _TEXTS_COMPARED
        self._piece_ids = lru_cache(_PIECES_IN_MEMORY)(self._whole_ids)

    def __call__(self, text: str) -> list[int]:
        """Returns the text's token ids."""
        if self._marks is None:
            return self._whole_ids(text)
        ids = [i for piece in self._pieces(text, *self._marks) for i in self._piece_ids(piece)]
        if self._num_to_compare:
            self._num_to_compare -= 1
            whole = self._whole_ids(text)
            if ids != whole:
                self._marks = None
                return whole
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        return PieceTokenizer, (self._tokenizer,)  # without what it remembers

    def _whole_ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    @staticmethod
    def _pieces(text: str, marks: re.Pattern[str], cuts: frozenset[str]) -> Iterator[str]:
        start = 0
        for match in marks.finditer(text):
            if match[0] in cuts and match.start() > start:
                yield text[start : match.start()]
                start = match.start()
        if start < len(text):
            yield text[start:]


def _marks_of(tokenizer: Any) -> tuple[re.Pattern[str], frozenset[str]] | None:
    """Returns what finds the tokens that are looked for in raw text, and those of them to cut in front of.

    None: texts must stay whole.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "split_special_tokens", False):
        return None
    raw = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized and token.content]
    if not raw or any(token.single_word for token in raw):
        return None
    # At one place the longest counts, as in the library. A token with `lstrip` takes the space in front of it too.
    longest_first = sorted((token.content for token in raw), key=len, reverse=True)
    cuts = frozenset(token.content for token in raw if not token.lstrip)
    return re.compile("|".join(map(re.escape, longest_first))), cuts
