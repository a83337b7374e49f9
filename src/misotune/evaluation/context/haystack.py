"""The text that a needle is hidden in: reading it, cutting it to a length, and the place of the needle."""

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from misotune.errors import DataError
from misotune.evaluation.constrained import read_jsonl

# A closing quotation mark or bracket belongs to its sentence.
_SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*(?= |$)")


def read_haystack(path: Path) -> list[str]:
    """Returns the words of a text, in its own order: a `.txt` file, a folder of them, or JSONL (`.gz`) with `text`.

    Line breaks become spaces: the paper takes them out, so that nothing but its words tells the needle from the text.

    Raises:
        DataError: Nothing can be read, a row has no text, or no sentence ends in it.
    """
    words = [word for text in _texts(path) for word in text.split()]
    if not _SENTENCE_END.search(" ".join(words)):
        raise DataError(f"{path}: no sentence ends in it with . ! or ? and a space; the needle is put behind one")
    return words


def _texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise DataError(f"{path}: no .txt file in this folder")
        yield from map(_read_text, files)
    elif path.suffix == ".txt":
        yield _read_text(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        for where, row in read_jsonl(path):
            if not isinstance(row.get("text"), str):
                raise DataError(f"{where}: needs a field 'text'; the haystack is made of these")
            yield row["text"]
    else:
        raise DataError(f"{path}: a haystack is a .txt file, a folder of them, or .jsonl(.gz) with a field 'text'")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def longest_start(words: Sequence[str], fits: Callable[[str], bool]) -> int:
    """Returns how many of the words, from the first on, make the longest text that fits; 0 if none does."""
    most = 1
    while most < len(words) and fits(" ".join(words[:most])):
        most *= 2
    numbers = range(1, min(most, len(words)) + 1)
    return bisect.bisect_left(numbers, True, key=lambda number: not fits(" ".join(words[:number])))


def hide_needle(text: str, needle: str, depth: int) -> str:
    """Returns the text with the needle behind the last sentence that ends at or before `depth` percent of it.

    Before the first sentence's end the needle comes first. At 100 percent it comes last: what follows the last
    sentence's end is left out.

    >>> hide_needle("One. Two, three. Four. Fi", "NEEDLE.", 70)
    'One. Two, three. NEEDLE. Four. Fi'
    >>> hide_needle("One. Two, three. Four. Fi", "NEEDLE.", 100)
    'One. Two, three. Four. NEEDLE.'
    """
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
    end = ends[bisect.bisect_right(ends, len(text) * depth / 100) - 1]
    after = "" if depth == 100 else text[end:]
    return " ".join(part for part in (text[:end].strip(), needle, after.strip()) if part)
