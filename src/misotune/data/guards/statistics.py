"""Statistics of the texts of a dataset: lengths, languages, constraints a row."""

import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from misotune.data.guards.text import user_turns, words_of
from misotune.data.records import Record

Measured = tuple[str, tuple[int, ...]]

UNDETERMINED = "und"
PERCENTILES = (5, 25, 50, 75, 95, 99)
_MEASURES = (
    "prompt_characters",
    "prompt_words",
    "output_characters",
    "output_words",
    "constraints",
    "turns",
)
# Longer prefixes are no surer on real answers, and take longer.
_LANGUAGE_CHARACTERS = 200
_READ_CHARACTERS = 2000
_LEAST_LETTERS = 8
# Spoken forms that short texts in Chinese characters are often taken for.
_VARIETIES = {"wuu": "zh", "yue": "zh"}
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)


class TextStatistics:
    """Lengths, languages and constraints of the records added, four bytes a figure and row.

    - prompt: all user turns together; output: the response.
    - words: a character counts as one in scripts without spaces (Chinese, Japanese, Thai and the like).
    - language: of the first 200 characters of the response without code, as py3langid guesses it (ISO 639 code);
      of response and prompt where the response is short; `und` where there are fewer than 8 letters.
    """

    def __init__(self) -> None:
        self._languages: Counter[str] = Counter()
        self._figures = {name: array("I") for name in _MEASURES}

    @staticmethod
    def measure(record: Record) -> Measured:
        """Returns the language and the figures of one record."""
        prompts = list(user_turns(record))
        figures = (
            sum(map(len, prompts)),
            sum(len(words_of(prompt)) for prompt in prompts),
            len(record.output),
            len(words_of(record.output)),
            len(record.constraints),
            len(prompts),
        )
        return language_of(record.output, "\n".join(prompts)), figures

    def add(self, measured: Measured) -> None:
        """Adds what `measure` returned for one record."""
        language, figures = measured
        self._languages[language] += 1
        for values, figure in zip(self._figures.values(), figures, strict=True):
            values.append(figure)

    def to_dict(self) -> dict[str, Any]:
        """Returns rows and share by language, and for each figure total, mean, least, percentiles and most."""
        rows = self._languages.total()
        return {
            "rows": rows,
            "languages": {
                language: {"rows": count, "share": round(count / rows, 4)}
                for language, count in sorted(self._languages.items(), key=lambda item: (-item[1], item[0]))
            },
            **{name: _summary(values) for name, values in self._figures.items() if rows},
        }


def language_of(text: str, fallback: str = "") -> str:
    """Returns the language of a text as an ISO 639 code, `und` where too few letters tell it.

    Args:
        text: Of it the beginning is read, without code.
        fallback: Read behind the text where that has few letters.
    """
    import py3langid

    prose = _prose(text)
    if _num_letters(prose) < _LEAST_LETTERS:
        prose = f"{prose} {_prose(fallback)}"[:_LANGUAGE_CHARACTERS]
    if _num_letters(prose) < _LEAST_LETTERS:
        return UNDETERMINED
    language = str(py3langid.classify(prose)[0])
    return _VARIETIES.get(language, language)


def _prose(text: str) -> str:
    return " ".join(_CODE.sub(" ", text[:_READ_CHARACTERS]).split())[:_LANGUAGE_CHARACTERS]


def _num_letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _summary(values: Sequence[int]) -> Mapping[str, float]:
    figures = np.frombuffer(values, dtype=np.uint32) if isinstance(values, array) else np.asarray(values)
    # An observed value, not one between two: half a word is none.
    at = np.percentile(figures, PERCENTILES, method="inverted_cdf")
    return {
        "total": int(figures.sum(dtype=np.int64)),
        "mean": round(float(figures.mean()), 1),
        "min": int(figures.min()),
        **{f"p{percent}": int(value) for percent, value in zip(PERCENTILES, at, strict=True)},
        "max": int(figures.max()),
    }
