"""The seam to OpenAI-compatible servers, against a real HTTP server that misbehaves when told to."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from tests.chat_server import ChatServer, Fault, Reply, question_of

from misotune.chat.api import MAX_FAILURES_IN_A_ROW, ChatApi
from misotune.chat.cache import AnswerCache
from misotune.chat.messages import EMPTY_ANSWER, ApiFailure, ChatAnswer, ChatRequest
from misotune.chat.server import Server, read_api_key
from misotune.errors import RunError

pytest.importorskip("openai")


def ask(text: str) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), {"temperature": 0})


def echo(request) -> str:
    return f"re: {question_of(request)}"


def texts(api: ChatApi, questions) -> list[str]:
    return [answer.text if isinstance(answer, ChatAnswer) else answer.reason for _, answer in api.ask(questions, ask)]


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "answers.sqlite"


def test_answers_come_in_the_order_of_the_questions_while_many_are_asked_at_once(cache):
    def slow_first(request) -> str:
        time.sleep(0.3 if question_of(request) == "0" else 0.01)
        return echo(request)

    questions = [str(i) for i in range(100)]
    with ChatServer(slow_first) as server:
        assert texts(ChatApi(Server(server.url, "small", concurrency=5), cache=cache), questions) == [
            f"re: {q}" for q in questions
        ]
    assert server.most_at_once == 5
    assert [request["temperature"] for request in server.requests] == [0] * 100


def test_no_more_questions_are_read_than_the_window_holds(cache):
    read = 0

    def questions():
        nonlocal read
        for read in itertools.count(1):
            yield str(read)

    with ChatServer(echo, delay_s=0.01) as server:
        answers = ChatApi(Server(server.url, "small", concurrency=2), cache=cache).ask(questions(), ask)
        for _ in range(50):
            next(answers)
        answers.close()
    assert read <= 50 + 2 * 8 + 1


def test_items_without_a_question_pass_in_their_place(cache):
    with ChatServer(echo) as server:
        api = ChatApi(Server(server.url, "small"), cache=cache)
        found = list(api.ask([1, 2, 3, 4], lambda item: ask(str(item)) if item % 2 else None))
    assert [(item, answer and answer.text) for item, answer in found] == [
        (1, "re: 1"),
        (2, None),
        (3, "re: 3"),
        (4, None),
    ]


def test_what_is_in_the_cache_needs_no_server(cache):
    with ChatServer(echo) as server:
        texts(ChatApi(Server(server.url, "small"), cache=cache), "abc")
    progress = []
    api = ChatApi(Server(server.url, "small"), cache=cache, on_progress=lambda p: progress.append((p.done, p.cached)))
    assert texts(api, "abc") == ["re: a", "re: b", "re: c"]
    assert progress == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    "other",
    [
        ChatRequest(({"role": "user", "content": "b"},)),
        ChatRequest(({"role": "system", "content": "a"},)),
        ChatRequest(({"role": "user", "content": "a"},), {"temperature": 1}),
        ChatRequest(({"role": "user", "content": "a"},), {}, "2"),
    ],
    ids=["text", "role", "options", "version"],
)
def test_another_question_has_another_key(other):
    request = ChatRequest(({"role": "user", "content": "a"},))
    assert other.key("m") != request.key("m")
    assert request.key("other model") != request.key("m")
    assert ChatRequest(({"content": "a", "role": "user"},)).key("m") == request.key("m")


def test_neither_key_nor_address_is_in_the_cache(cache, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    with ChatServer(echo, api_key="sk-secret-123") as server:
        texts(ChatApi(Server(server.url, "small", api_key=read_api_key("MY_KEY")), cache=cache), "abc")
        port = str(server.port).encode()
    held = b"".join(file.read_bytes() for file in cache.parent.iterdir())
    assert b"re: a" in held
    assert b"secret" not in held
    assert b"127.0.0.1:" + port not in held


def test_a_key_that_was_not_asked_for_is_not_sent(cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    with ChatServer(echo) as server:
        texts(ChatApi(Server(server.url, "small"), cache=cache), "a")
    assert not any("sk-of-another-server" in str(headers) for headers in server.headers)


def test_a_server_that_is_down_is_one_line_with_the_cure(cache):
    with ChatServer(echo) as server:
        pass
    with pytest.raises(
        RunError, match=r"no server answers \(.+\); start one, .*transformers serve small --port"
    ) as error:
        texts(ChatApi(Server(server.url, "small"), cache=cache), "abc")
    assert "\n" not in str(error.value)


def test_a_refused_key_is_named_before_any_question(cache):
    with (
        ChatServer(echo, api_key="right") as server,
        pytest.raises(RunError, match=r"refuses the API key .*--api-key-env"),
    ):
        texts(ChatApi(Server(server.url, "small", api_key="wrong"), cache=cache), "abc")
    assert server.requests == []


def test_a_refused_key_names_the_callers_own_option(cache):
    with ChatServer(echo, api_key="right") as server:
        judge = Server(server.url, "small", api_key="wrong", key_option="--judge-api-key-env")
        with pytest.raises(RunError, match=r"the right one with --judge-api-key-env$") as error:
            texts(ChatApi(judge, cache=cache), "abc")
    assert "wrong" not in str(error.value)


@pytest.mark.parametrize("status", [400, 404], ids=["as-transformers-serve", "as-vllm"])
def test_a_wrong_model_stops_at_once_with_the_nearest_name(cache, status):
    def only_small(request) -> str:
        if request["model"] != "small":
            raise Fault(status, '{"error": {"message": "no such model"}}')
        return echo(request)

    with (
        ChatServer(only_small, models=("small", "large")) as server,
        pytest.raises(RunError, match=f"refuses model 'smal' .status {status}: no such model.; did you mean 'small'"),
    ):
        texts(ChatApi(Server(server.url, "smal"), cache=cache), "abc")
    assert len(server.requests) == 1


def test_a_server_without_a_list_of_models_is_asked_all_the_same(cache):
    with ChatServer(echo, models=None) as server:
        assert texts(ChatApi(Server(server.url, "any"), cache=cache), "ab") == ["re: a", "re: b"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(cache, status):
    counter = itertools.count()

    def sometimes(request) -> str:
        if next(counter) % 2 == 0:
            raise Fault(status, headers={"Retry-After": "0.05"})
        return echo(request)

    with ChatServer(sometimes) as server:
        assert texts(ChatApi(Server(server.url, "small", concurrency=1), cache=cache), "abc") == [
            "re: a",
            "re: b",
            "re: c",
        ]
    assert len(server.requests) == 6


def test_retry_after_is_waited_for(cache):
    times = []

    def once(request) -> str:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Fault(429, headers={"Retry-After": "1"})
        return echo(request)

    with ChatServer(once) as server:
        texts(ChatApi(Server(server.url, "small"), cache=cache), "a")
    assert times[1] - times[0] >= 1.0


def test_a_server_that_stays_busy_ends_the_run_and_keeps_the_answers(cache):
    def busy_at_c(request) -> str:
        if question_of(request) == "c":
            raise Fault(429, '{"error": {"message": "quota exceeded"}}', {"Retry-After": "0.01"})
        return echo(request)

    with ChatServer(busy_at_c) as server:
        api = ChatApi(Server(server.url, "small", concurrency=1), cache=cache, retries=2)
        with pytest.raises(
            RunError, match=r"429: quota exceeded\); .*2 answers are kept in .*answers.sqlite: run the same"
        ):
            texts(api, "abcde")
    assert [question_of(request) for request in server.requests] == ["a", "b", "c", "c", "c"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(500, '{"detail": "out of memory"}'), "the server failed with status 500"),
        (Fault(400, '{"error": {"message": "context too long"}}'), "the server failed with status 400"),
        (Fault(200, "<html>hello</html>", {"Content-Type": "text/html"}), "the server's answer is no chat completion"),
        (Fault(200, '{"choices": [}'), "the server's answer is no chat completion"),
        (Fault(200, '{"choices": []}'), "the server's answer is no chat completion"),
        (Fault(200, '{"choices": [{"message": {"content": null}}]}'), "the server's answer is empty"),
        (Fault(200, '{"choices": [{"message": {"content": 7}}]}'), "the server's answer is no chat completion"),
    ],
    ids=["500", "400", "html", "broken-json", "no-choices", "null", "number"],
)
def test_a_question_that_fails_is_a_failure_and_the_others_go_on(cache, fault, reason):
    def fails_at_b(request) -> str:
        if question_of(request) == "b":
            raise fault
        return echo(request)

    with ChatServer(fails_at_b) as server:
        assert texts(ChatApi(Server(server.url, "small"), cache=cache, retries=0), "abc") == ["re: a", reason, "re: c"]
    with AnswerCache(cache) as kept:
        assert kept.num_answers == 2


def test_an_answer_says_why_it_ended_and_how_long_it_is_the_cached_one_too(cache):
    with ChatServer(lambda request: Reply("to be cont", "length", 7)) as server:
        api = ChatApi(Server(server.url, "small"), cache=cache)
        [first], [second] = ([answer for _, answer in api.ask("a", ask)] for _ in range(2))
    assert first == ChatAnswer("to be cont", "length", 7)
    assert second == ChatAnswer("to be cont", "length", 7, is_cached=True)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("finish_reason", "num_tokens"),
    [(None, None), ("", -1), (3, "seven"), (["stop"], [7]), ({}, 2.5)],
    ids=["not said", "empty", "number and text", "lists", "object and fraction"],
)
def test_what_a_server_does_not_say_or_says_wrongly_is_not_known(cache, finish_reason, num_tokens):
    with ChatServer(lambda request: Reply("yes", finish_reason, num_tokens)) as server:
        [(_, answer)] = ChatApi(Server(server.url, "small"), cache=cache).ask("a", ask)
    assert answer == ChatAnswer("yes")


def test_an_answer_without_text_says_why_it_ended(cache):
    with ChatServer(lambda request: Reply(None, "length", 512)) as server:
        [(_, answer)] = ChatApi(Server(server.url, "small"), cache=cache).ask("a", ask)
    assert answer == ApiFailure(EMPTY_ANSWER, finish_reason="length", num_tokens=512)


def test_a_slow_answer_is_given_up_and_counted(cache):
    def slow_b(request) -> str:
        if question_of(request) == "b":
            time.sleep(2)
        return echo(request)

    with ChatServer(slow_b) as server:
        found = texts(ChatApi(Server(server.url, "small"), cache=cache, timeout_s=0.3, retries=0), "abc")
    assert found == ["re: a", "no answer from the server within 0.3 s", "re: c"]


def test_a_server_that_fails_every_time_ends_the_run(cache):
    def broken(request) -> str:
        raise Fault(500, '{"detail": "CUDA error"}')

    with ChatServer(broken) as server:
        api = ChatApi(Server(server.url, "small"), cache=cache, retries=0)
        with pytest.raises(RunError, match=f"{MAX_FAILURES_IN_A_ROW} failures in a row, .*status 500 .CUDA error"):
            texts(api, map(str, range(1000)))
    assert len(server.requests) < 2 * MAX_FAILURES_IN_A_ROW


def test_a_model_that_says_nothing_is_no_dead_server(cache):
    with ChatServer(lambda request: Reply(" \n")) as server:
        found = texts(ChatApi(Server(server.url, "small"), cache=cache, retries=0), map(str, range(60)))
    assert found == [EMPTY_ANSWER] * 60
    assert len(server.requests) == 60


def test_empty_answers_between_failures_say_that_the_server_lives(cache):
    def fails(request) -> str:
        if int(question_of(request)) % MAX_FAILURES_IN_A_ROW == 0:
            return ""
        raise Fault(500)

    with ChatServer(fails) as server:
        api = ChatApi(Server(server.url, "small", concurrency=1), cache=cache, retries=0)
        assert texts(api, map(str, range(60))).count(EMPTY_ANSWER) == 3


@pytest.mark.parametrize("number", [1, 5])
def test_an_answer_that_cannot_be_kept_ends_the_run_and_no_more_is_asked(cache, monkeypatch, number):
    put = AnswerCache.put

    def full_at(self, key, answer):
        if answer.text == f"re: {number}":
            self._db.execute("PRAGMA max_page_count = 1")  # SQLite takes it for the number of pages there are
            answer = ChatAnswer("long " * 10_000)
        put(self, key, answer)

    monkeypatch.setattr(AnswerCache, "put", full_at)
    with ChatServer(echo) as server:
        api = ChatApi(Server(server.url, "small", concurrency=1), cache=cache)
        message = r"answers.sqlite: an answer cannot be kept .*is full\); those before it are: make room there and run"
        with pytest.raises(RunError, match=message) as error:
            texts(api, map(str, range(1, 100)))
    assert "\n" not in str(error.value)
    assert len(server.requests) == number
    with AnswerCache(cache) as kept:
        assert kept.num_answers == number - 1


def test_a_server_that_goes_down_loses_nothing_and_the_next_run_goes_on(cache):
    questions = [str(i) for i in range(40)]
    server = ChatServer(echo, delay_s=0.01)
    server.start()
    api = ChatApi(Server(server.url, "small", concurrency=2), cache=cache, retries=1)
    got = []

    def ask_until_it_breaks() -> None:
        for _, answer in api.ask(questions, ask):
            got.append(answer.text)
            if len(got) == 10:
                server.stop()

    with pytest.raises(RunError, match=r"the server went away .*answers are kept in .*run the same command again"):
        ask_until_it_breaks()
    assert got == [f"re: {q}" for q in questions[: len(got)]]
    with AnswerCache(cache) as kept:
        num_kept = kept.num_answers
    assert num_kept >= len(got) >= 10
    num_before = len(server.requests)
    server.start()
    try:
        assert texts(api, questions) == [f"re: {q}" for q in questions]
    finally:
        server.stop()
    assert len(server.requests) - num_before == len(questions) - num_kept


def test_a_killed_process_keeps_every_answer_it_had(cache):
    """kill -9 while answers come in: the file opens, and holds what the process had reported."""
    code = f"""
        import sys
        from pathlib import Path
        from misotune.chat.api import ChatApi
        from misotune.chat.messages import ChatRequest
        from misotune.chat.server import Server
        api = ChatApi(Server(sys.argv[1], "small", concurrency=4), cache=Path({str(cache)!r}))
        ask = lambda text: ChatRequest(({{"role": "user", "content": text}},), {{"temperature": 0}})
        for item, answer in api.ask(map(str, range(10_000)), ask):
            print(item, flush=True)
    """
    with ChatServer(echo, delay_s=0.002) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), server.url], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seen = [process.stdout.readline().strip() for _ in range(60)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    api = ChatApi(Server(server.url, "small"), cache=cache)
    assert texts(api, seen) == [f"re: {item}" for item in seen]


def test_a_second_process_may_use_the_same_cache(cache):
    with ChatServer(echo, delay_s=0.005) as server:
        apis = [ChatApi(Server(server.url, "small"), cache=cache) for _ in range(2)]
        found: list[list[str]] = [[], []]
        threads = [
            threading.Thread(target=lambda i=i: found[i].extend(texts(apis[i], map(str, range(50))))) for i in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found[0] == found[1] == [f"re: {i}" for i in range(50)]


def test_an_error_in_the_questions_reaches_the_caller(cache):
    def questions():
        yield "a"
        raise KeyError("of the caller")

    with ChatServer(echo) as server, pytest.raises(KeyError, match="of the caller"):
        texts(ChatApi(Server(server.url, "small"), cache=cache), questions())


@pytest.mark.parametrize("text", ["half \ud800 pair", "nul \x00 byte", "日本語 🎉"], ids=["surrogate", "nul", "emoji"])
def test_odd_text_in_a_question_is_a_failure_or_an_answer_and_no_crash(cache, text):
    with ChatServer(echo) as server:
        [(_, answer)] = ChatApi(Server(server.url, "small"), cache=cache, retries=0).ask([text], ask)
    assert isinstance(answer, ChatAnswer | ApiFailure)
