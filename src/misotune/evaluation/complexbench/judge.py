"""The judge: a model behind an OpenAI-compatible server that is asked about every question of ComplexBench."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from misotune.chat.api import MAX_FAILURES_IN_A_ROW, ChatApi
from misotune.chat.cache import AnswerCache
from misotune.chat.messages import ApiFailure, ChatAnswer, ChatRequest
from misotune.chat.server import Server

MAX_LOST_SHARE = 0.01
# An empty answer is asked for again, as published; what a server refuses for its content it refuses every time.
_NUM_ROUNDS = 3


@dataclass(slots=True)
class JudgeProgress:
    """Questions that the judge has answered so far.

    Attributes:
        num_questions: To be asked in all.
        num_done: Asked, and answered or not.
        num_cached: Of those done, answered in an earlier run.
        num_failed: Of those done, not answered.
    """

    num_questions: int
    num_done: int = 0
    num_cached: int = 0
    num_failed: int = 0

    def count(self, answer: ChatAnswer | ApiFailure, *, is_first: bool) -> None:
        """Counts an answer; not the first: one to a question that had none."""
        if is_first:
            self.num_done += 1
            self.num_cached += isinstance(answer, ChatAnswer) and answer.is_cached
            self.num_failed += isinstance(answer, ApiFailure)
        elif isinstance(answer, ChatAnswer):
            self.num_failed -= 1


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Who judges, and how it is asked.

    Attributes:
        server: The judge and where it is.
        cache: A file for the answers; a killed judging goes on from it.
        prompts: `evaluation/prompts` of the ComplexBench repository; None: where the data file's repository has it.
        timeout_s: Seconds until one try of a request is given up.
        retries: Tries after the first. The published code tries 30 times, 1.2 s apart; with growing pauses of
            up to 8 s, eight tries are as patient.
        options: Fields of each request; as published, the temperature alone.
        on_progress: Called after each answer.
    """

    server: Server
    cache: Path
    prompts: Path | None = None
    timeout_s: float = 120.0
    retries: int = 8
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    on_progress: Callable[[JudgeProgress], None] | None = None


class Judge:
    """Asks many questions and brings all answers that can be had.

    Raises:
        UsageError: The package `openai` is missing.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self._api = ChatApi(options.server, cache=options.cache, timeout_s=options.timeout_s, retries=options.retries)

    def ask(self, texts: Sequence[Callable[[], str]]) -> list[ChatAnswer | ApiFailure]:
        """Returns the answers, in the order of the questions.

        Args:
            texts: What to ask, each made when it is needed: thousands of long prompts do not stand in memory.

        Raises:
            RunError: The server is down or refuses; answers so far are in the cache.
            UsageError: The cache is another file.
        """

        def request_of(place: int) -> ChatRequest:
            return ChatRequest(({"role": "user", "content": texts[place]()},), self.options.options)

        answers: dict[int, ChatAnswer | ApiFailure] = {}
        account = JudgeProgress(len(texts))
        open_places: Sequence[int] = range(len(texts))
        for round_ in range(_NUM_ROUNDS):
            for batch in self._batches(open_places, request_of, len(texts)):
                for place, answer in self._api.ask(batch, request_of):
                    assert answer is not None  # every place has a question
                    answers[place] = answer
                    account.count(answer, is_first=round_ == 0)
                    if self.options.on_progress is not None:
                        self.options.on_progress(replace(account))
            open_places = [place for place in open_places if isinstance(answers[place], ApiFailure)]
            if not open_places:
                break
        return [answers[place] for place in range(len(texts))]

    def _batches(
        self, places: Sequence[int], request_of: Callable[[int], ChatRequest], num_questions: int
    ) -> Iterator[Sequence[int]]:
        """Yields what to ask in one go: what is in the cache; then the rest.

        A server that fails many times in a row is taken for dead. A few questions that it refuses each time, as some
        do for their content, are no such sign, though nothing else may be left to ask: they are asked in small lots.
        """
        with AnswerCache(self.options.cache) as cache:
            is_known = [cache.get(request_of(place).key(self.options.server.model)) is not None for place in places]
        yield [place for place, known in zip(places, is_known, strict=True) if known]
        rest = [place for place, known in zip(places, is_known, strict=True) if not known]
        lot = len(rest) if len(rest) > MAX_LOST_SHARE * num_questions else MAX_FAILURES_IN_A_ROW - 1
        for start in range(0, len(rest), lot or 1):
            yield rest[start : start + lot]
