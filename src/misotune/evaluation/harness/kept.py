"""Answers to lm-eval's requests, kept as they come, and how far they are.

lm-eval has a cache of its own, which knows a request by its text alone: a model that was trained again at the same
place would be given the answers of the one before.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from misotune.evaluation.backends.base import GenerationAccount, GenerationProgress, OnProgress, Response
from misotune.evaluation.backends.response_cache import ResponseCache


class KeptAnswers:
    """What a model answered, by request; stands where lm-eval has its cache hook.

    Args:
        cache: Where they are kept.
        identity: What tells the model, and how it answers, from every other; as JSON can hold it.
        on_progress: Called with every answer; None: nobody wants to know.
    """

    def __init__(self, cache: ResponseCache, identity: Any, on_progress: OnProgress | None = None) -> None:
        self._cache = cache
        self._identity = identity
        self._on_progress = on_progress
        self._found: dict[str, Response] = {}
        self._asked: set[str] = set()
        self._num_kept = 0
        self._num_new_tokens = 0
        self._start_s = time.perf_counter()

    def missing(self, kind: str, requests: Iterable[Any]) -> list[Any]:
        """Returns the requests that are still to be answered, each once; the others are remembered."""
        missing: dict[str, Any] = {}
        for request in requests:
            key = self._key(kind, request.args)
            if key in self._found or key in missing:
                continue
            kept = self._cache.get(key)
            if kept is None:
                missing[key] = request
            else:
                self._found[key] = kept
                self._num_kept += 1
            self._asked.add(key)
        self._report()
        return list(missing.values())

    def add(self, kind: str, args: Sequence[Any], answer: Any, num_tokens: int | None, is_cut: bool | None) -> None:
        """Keeps an answer, at once.

        Raises:
            RunError: It cannot be written.
        """
        key = self._key(kind, args)
        if key in self._found:
            return
        response = Response(json.dumps(answer), num_tokens, is_cut)
        self._cache.put(key, response)
        self._found[key] = response
        self._num_new_tokens += num_tokens or 0
        self._report()

    def answer(self, kind: str, request: Any) -> Any:
        """Returns the answer to a request that was asked before; a pair comes back as a list."""
        return json.loads(self._found[self._key(kind, request.args)].text)

    def account(self) -> GenerationAccount:
        """Returns what answering took; probabilities alone make no new tokens."""
        now = self._progress()
        told = [response for response in self._found.values() if response.num_tokens is not None]
        return GenerationAccount(
            num_new_tokens=sum(response.num_tokens or 0 for response in told) if told else None,
            num_cut=sum(bool(response.is_cut) for response in told) if told else None,
            num_kept=self._num_kept,
            elapsed_s=round(now.elapsed_s, 2),
            tokens_per_s=round(now.tokens_per_s, 1) if told else None,
        )

    def _key(self, kind: str, args: Sequence[Any]) -> str:
        return hashlib.sha256(json.dumps([self._identity, kind, *args], sort_keys=True).encode()).hexdigest()

    def _progress(self) -> GenerationProgress:
        elapsed_s = time.perf_counter() - self._start_s
        return GenerationProgress(len(self._found), len(self._asked), self._num_kept, self._num_new_tokens, elapsed_s)

    def _report(self) -> None:
        if self._on_progress is not None and self._asked:
            self._on_progress(self._progress())
