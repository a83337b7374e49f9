"""Many questions at once to any server that speaks OpenAI's chat completions, answers kept on disk.

The `openai` package brings the connection, its time-outs and the retries: exponential back-off with jitter, and
`Retry-After` where the server sends one. What it has not: a cache that survives a kill, answers in the order of
the questions with flat memory, and errors that say what to do.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from misotune.chat.cache import AnswerCache
from misotune.chat.client import ChatClient, ServerGoneError, require_openai
from misotune.chat.messages import EMPTY_ANSWER, ApiFailure, ChatAnswer, ChatRequest
from misotune.chat.server import Server
from misotune.errors import MisotuneError, RunError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FAILURES_IN_A_ROW = 20
# Answers that wait for a slower one before them, per request in flight.
_WINDOW_PER_REQUEST = 8


@dataclass(slots=True)
class AskProgress:
    """Questions answered so far: all of them, those out of the cache, and those that failed."""

    done: int = 0
    cached: int = 0
    failed: int = 0


class ChatApi:
    """Asks one model on one server.

    Args:
        server: Who is asked.
        cache: A file for the answers. It holds neither address nor key, so the same questions to the same model
            are not asked twice even when the server moves.
        timeout_s: Seconds until one try of a request is given up.
        retries: Tries after the first, with growing pauses, when the server is busy, fails or is away.
        on_progress: Called after each answer.

    Raises:
        UsageError: The package `openai` is missing.
    """

    def __init__(
        self,
        server: Server,
        *,
        cache: Path,
        timeout_s: float = 120.0,
        retries: int = 5,
        on_progress: Callable[[AskProgress], None] | None = None,
    ) -> None:
        self._server = server
        self._cache_path = cache
        self._timeout_s = timeout_s
        self._retries = retries
        self._on_progress = on_progress
        require_openai()

    def ask(
        self, items: Iterable[Item], to_request: Callable[[Item], ChatRequest | None]
    ) -> Iterator[tuple[Item, ChatAnswer | ApiFailure | None]]:
        """Yields every item with its answer, in the order of the items, reading no further ahead than needed.

        Nothing is sent before a question is not in the cache.

        Args:
            items: What to ask about.
            to_request: The question; None: the item passes without one.

        Raises:
            RunError: The server is down, refuses the key, does not know the model, or fails one request after
                another, or an answer cannot be kept. Answers so far are in the cache.
            UsageError: The cache is another file.
        """
        progress = AskProgress()
        window = self._server.concurrency * _WINDOW_PER_REQUEST
        waiting: deque[tuple[Item, Future[ChatAnswer | ApiFailure] | None]] = deque()
        with AnswerCache(self._cache_path) as cache, _LoopThread() as loop:
            session = loop.run(self._open(cache))
            try:
                for item in items:
                    request = to_request(item)
                    waiting.append((item, None if request is None else loop.submit(session.answer(request))))
                    while len(waiting) >= window or (waiting and _is_ready(waiting[0][1])):
                        yield self._finish(*waiting.popleft(), progress)
                while waiting:
                    yield self._finish(*waiting.popleft(), progress)
            finally:
                for _, future in waiting:
                    if future is not None:
                        future.cancel()
                loop.run(session.close())

    async def _open(self, cache: AnswerCache) -> "_Session":
        return _Session(self._server, ChatClient(self._server, self._timeout_s, self._retries), cache)

    def _finish(
        self, item: Item, future: "Future[ChatAnswer | ApiFailure] | None", progress: AskProgress
    ) -> tuple[Item, ChatAnswer | ApiFailure | None]:
        if future is None:
            return item, None
        answer = future.result()
        progress.done += 1
        progress.cached += isinstance(answer, ChatAnswer) and answer.is_cached
        progress.failed += isinstance(answer, ApiFailure)
        if self._on_progress is not None:
            self._on_progress(progress)
        return item, answer


class _Session:
    """The questions of one `ask`, on the event loop."""

    def __init__(self, server: Server, client: ChatClient, cache: AnswerCache) -> None:
        self._server = server
        self._client = client
        self._cache = cache
        self._slots = asyncio.Semaphore(server.concurrency)
        self._check = asyncio.Lock()
        self._is_checked = False
        self._failures_in_a_row = 0
        self._dead: MisotuneError | None = None

    async def answer(self, request: ChatRequest) -> ChatAnswer | ApiFailure:
        key = request.key(self._server.model)
        known = self._cache.get(key)
        if known is not None:
            return known
        async with self._slots:
            if self._dead is not None:
                raise self._dead
            try:
                await self._check_once(request)
                answer = await self._client.ask(request)
                if isinstance(answer, ChatAnswer):
                    self._cache.put(key, answer)
                self._count(answer)
            except ServerGoneError as error:
                self._dead = self._gone(str(error))
                raise self._dead from error
            except MisotuneError as error:
                self._dead = error
                raise
        return answer

    async def close(self) -> None:
        await self._client.close()

    async def _check_once(self, request: ChatRequest) -> None:
        async with self._check:
            if self._dead is not None:
                raise self._dead
            if not self._is_checked:
                await self._client.check(request)
                self._is_checked = True

    def _count(self, answer: ChatAnswer | ApiFailure) -> None:
        """Tells a dead server from one that fails at a few questions; one whose model says nothing is alive."""
        if isinstance(answer, ChatAnswer) or answer.reason == EMPTY_ANSWER:
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise ServerGoneError(f"{MAX_FAILURES_IN_A_ROW} failures in a row, the last: {answer}")

    def _gone(self, what: str) -> RunError:
        return RunError(
            f"{self._server.base_url}: {what}; {self._cache.num_answers} answers are kept in {self._cache.path}: "
            "run the same command again, and it goes on from there"
        )


class _LoopThread:
    """An event loop in a thread of its own, so that requests go on while the caller works on an answer."""

    def __enter__(self) -> "_LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat-api", daemon=True)
        self._thread.start()
        return self

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.submit(work).result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_ready(future: "Future[Any] | None") -> bool:
    return future is None or future.done()
