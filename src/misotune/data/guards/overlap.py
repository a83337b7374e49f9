"""Decontamination: rows whose prompts overlap the prompts of an evaluation set are left out.

The rule is that of Tulu 3 (arXiv 2411.15124, section 3.2; open-instruct, decontamination/): n-grams of 8 words, and
a test prompt counts as seen when more than half of its words lie in n-grams that one row has. Constraints
are where we deviate, for their wordings are public and shared: data made with the constraint types of IFEval has
"In your response, the letter q should appear at least 5 times." word for word. Hence the share is taken
of the prompt's task, without its constraints, and n-grams that several prompts of the set have do not count.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from misotune.data.guards.prompts import NGRAM_WORDS, EvaluationSet, load_evaluation_set
from misotune.data.guards.text import NgramHashes, fold, ngram_hashes, user_turns, words_of
from misotune.data.records import Record

_THRESHOLD = 0.5


class Decontamination:
    """Leaves out rows that overlap an evaluation prompt; the user turns are compared, and not the responses.

    Args:
        sets: Names of shipped sets, or files of prompts.

    Raises:
        UsageError: There is no such set and no such file.
        DataError: A file cannot be read, or a row of it has no prompt.
    """

    def __init__(self, sets: Sequence[str | Path]) -> None:
        self._indexes = [PromptIndex(load_evaluation_set(name)) for name in dict.fromkeys(sets)]

    def fingerprint(self, record: Record) -> bytes:
        """Returns the name of the first set that the record overlaps; empty: none."""
        hashes = np.concatenate([ngram_hashes(words_of(fold(turn)), NGRAM_WORDS) for turn in user_turns(record)])
        return next((index.name.encode() for index in self._indexes if index.overlaps(hashes)), b"")

    def accept(self, record: Record, fingerprint: bytes) -> str | None:
        """Returns None to keep the record, else the reason for the account.

        Args:
            record: The record.
            fingerprint: What `fingerprint` returned for it.
        """
        return f"overlaps an evaluation prompt ({fingerprint.decode()})" if fingerprint else None


class _Counted(NamedTuple):
    """What counts of a prompt: the words whose covered share decides, how many, and whether common n-grams cover."""

    words: NDArray[np.bool_]
    num: int
    counts_common: bool


class PromptIndex:
    """The n-grams of an evaluation set, to be looked up by their hashes.

    Attributes:
        name: The set's name.
    """

    def __init__(self, prompts: EvaluationSet) -> None:
        self.name = prompts.name
        # A prompt that stands in the file twice must not make its own n-grams common.
        distinct = {prompt.hashes.tobytes(): prompt for prompt in prompts.prompts if len(prompt.hashes)}.values()
        hashes = np.concatenate([np.empty(0, np.uint64), *(prompt.hashes for prompt in distinct)])
        prompt_of = np.repeat(np.arange(len(distinct)), [len(prompt.hashes) for prompt in distinct])
        start_of = np.concatenate([np.empty(0, np.int64), *(np.arange(len(prompt.hashes)) for prompt in distinct)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._prompt_of, self._start_of = hashes[order], prompt_of[order], start_of[order]
        self._is_common = _occurs_in_several(self._hashes, self._prompt_of)
        is_common = np.empty_like(self._is_common)
        is_common[order] = self._is_common
        bounds = itertools.pairwise(np.cumsum([0, *(len(prompt.hashes) for prompt in distinct)]))
        self._counted = [
            _counted(prompt.is_task, is_common[start:end])
            for prompt, (start, end) in zip(distinct, bounds, strict=True)
        ]

    def overlaps(self, hashes: NgramHashes) -> bool:
        """True when more than half of what counts in one prompt lies in n-grams with these hashes."""
        matches: dict[int, list[int]] = defaultdict(list)
        for entry in self._matches(hashes):
            matches[int(self._prompt_of[entry])].append(entry)
        return any(self._is_covered(prompt, entries) for prompt, entries in matches.items())

    def _matches(self, hashes: NgramHashes) -> list[int]:
        """The entries of the index with one of these hashes."""
        if not len(self._hashes):
            return []
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self._hashes)] = 0
        found = np.unique(hashes[self._hashes[at] == hashes])
        first, last = (np.searchsorted(self._hashes, found, side=side) for side in ("left", "right"))
        return [entry for start, end in zip(first, last, strict=True) for entry in range(start, end)]

    def _is_covered(self, prompt: int, entries: list[int]) -> bool:
        counted = self._counted[prompt]
        if NGRAM_WORDS * len(entries) <= _THRESHOLD * counted.num:  # most matches end here
            return False
        covered, covered_by_own = np.zeros((2, len(counted.words)), dtype=np.bool_)
        for entry in entries:
            words = slice(self._start_of[entry], self._start_of[entry] + NGRAM_WORDS)
            covered[words] = True
            covered_by_own[words] |= counted.counts_common or not self._is_common[entry]
        if (covered_by_own & counted.words).sum() <= _THRESHOLD * counted.num:
            return False
        # A task of a few words is no proof by itself: then the prompt as a whole must be covered too.
        return counted.num >= NGRAM_WORDS or bool(covered.sum() > _THRESHOLD * len(covered))


def _occurs_in_several(hashes: NgramHashes, prompt_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each entry, sorted by hash, whether another prompt has the same hash."""
    if not len(hashes):
        return np.empty(0, dtype=np.bool_)
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    is_several = np.minimum.reduceat(prompt_of, starts) != np.maximum.reduceat(prompt_of, starts)
    return np.repeat(is_several, np.diff(np.append(starts, len(hashes))))


def _counted(is_task: NDArray[np.bool_], is_common: NDArray[np.bool_]) -> _Counted:
    """The words of the task that lie in an n-gram of this prompt alone; else all words that do; else all words."""
    own = np.zeros(len(is_task), dtype=np.bool_)
    for start in np.flatnonzero(~is_common):
        own[start : start + NGRAM_WORDS] = True
    for words in (own & is_task, own):
        if words.any():
            return _Counted(words, int(words.sum()), counts_common=False)
    return _Counted(np.ones_like(own), len(own), counts_common=True)
