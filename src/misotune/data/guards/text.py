"""Text as the guards compare it: what a user sees of a record, normal forms, words, shingles, n-gram hashes."""

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from misotune.data.records import Record

NgramHashes = NDArray[np.uint64]

# Scripts written without spaces, where each character counts as a word: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# Marks that belong to the letter before them, which `\w` leaves out: accents, vowel signs.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0971-\u0dff"
_SPACED_WORD = rf"[^\W{_UNSPACED}]+(?:[{_MARKS}]+[^\W{_UNSPACED}]*)*"
_WORD = re.compile(rf"[{_UNSPACED}]|{_SPACED_WORD}")
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_SPACED_WORD}|[^\w\s]")
# The same of ASCII texts, in half the time.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_ASCII_TOKEN = re.compile(r"\w+|[^\w\s\x1c-\x1f]", re.ASCII)

# Odd, so that no word of an n-gram is lost in the product; the golden ratio in 64 bits, as in splitmix64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)


def user_turn(record: Record) -> str:
    """Returns the last user turn without the words of a template: as it was, or instruction and constraints."""
    if record.full_text is not None:
        return record.full_text
    return "\n".join((record.instruction, *record.constraints))


def user_turns(record: Record) -> Iterator[str]:
    """Yields what the user says in a record, turn by turn."""
    yield from (message["content"] for message in record.history if message["role"] == "user")
    yield user_turn(record)


def visible_turns(record: Record) -> Iterator[tuple[str, str]]:
    """Yields role and text of all that a user sees of a record: the history, the user turn and the output."""
    yield from ((message["role"], message["content"]) for message in record.history)
    yield "user", user_turn(record)
    yield "assistant", record.output


def normalise(text: str) -> str:
    r"""Returns the text in Unicode's composed form (NFC), each run of white space as one space, none at the ends.

    Case and punctuation stay: to a constraint on them they are the point.

    >>> normalise("  Caf\u0065\u0301,\n\tplease. ")
    'Café, please.'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold(text: str) -> str:
    """Returns the text without the differences that a copy may have: case, full-width and other compatibility forms.

    >>> fold("STRASSE Straße ①")
    'strasse strasse 1'
    """
    return unicodedata.normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """Returns the words of a text; each character of a script without spaces is one, punctuation is none.

    >>> words_of("Don't use snake_case, 请用中文!")
    ['Don', 't', 'use', 'snake_case', '请', '用', '中', '文']
    """
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def shingles_of(text: str, size: int) -> list[str]:
    """Returns each run of `size` tokens of the folded text, punctuation marks being tokens: in code they matter.

    A text of fewer tokens is one shingle.

    >>> shingles_of("x = a+b", 4)
    ['x = a +', '= a + b']
    """
    text = fold(text)
    tokens = (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)
    if len(tokens) < size:
        return [" ".join(tokens)]
    return list(map(" ".join, zip(*(tokens[start:] for start in range(size)), strict=False)))


def ngram_hashes(words: Sequence[str], size: int) -> NgramHashes:
    """Returns the 64-bit hash of each run of `size` words, in order; fewer words are hashed as one run.

    The words are folded first by the caller. The same on every machine, and the words cannot be read back.
    """
    if not words:
        return np.empty(0, dtype=np.uint64)
    size = min(size, len(words))
    ids = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    hashes = np.full(len(words) - size + 1, size, dtype=np.uint64)
    for offset in range(size):
        hashes = hashes * _MULTIPLIER + ids[offset : offset + len(hashes)]
    for shift, factor in _MIXERS:
        hashes = (hashes ^ (hashes >> shift)) * factor
    return hashes ^ (hashes >> _LAST_SHIFT)
