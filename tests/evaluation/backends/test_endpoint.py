import json

import pytest
from tests.chat_server import ChatServer, Fault, Reply, question_of

from misotune.chat.api import MAX_FAILURES_IN_A_ROW
from misotune.chat.cache import AnswerCache
from misotune.chat.server import Server
from misotune.errors import RunError
from misotune.evaluation.backends.base import generate_responses
from misotune.evaluation.backends.endpoint import EndpointBackend

PROMPTS = [f"Question {number}" for number in range(6)]


def echo(request):
    return f"answer to {question_of(request)}"


def ask(server, cache, prompts=PROMPTS, model="small", **options):
    backend = EndpointBackend(Server(server.url, model, **{"concurrency": 2, **options}), retries=0)
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return generate_responses(backend, conversations, max_new_tokens=77, cache=cache)


def test_responses_come_in_the_order_of_the_prompts_greedy_and_of_the_length_asked_for(tmp_path):
    with ChatServer(echo, delay_s=0.01) as server:
        found = ask(server, tmp_path / "c.sqlite", concurrency=3)
    assert found.responses == [f"answer to {prompt}" for prompt in PROMPTS]
    assert {(r["model"], r["temperature"], r["max_tokens"]) for r in server.requests} == {("small", 0, 77)}
    assert server.requests[0]["messages"][0]["role"] == "user"
    assert 1 < server.most_at_once <= 3
    assert found.settings == {
        "backend": "endpoint", "endpoint": f"{server.url}/v1", "max_new_tokens": 77, "concurrency": 3,
        "decoding": "greedy",
    }  # fmt: skip
    assert (found.account.num_new_tokens, found.account.num_cut, found.account.num_kept) == (None, 0, 0)


def test_a_server_that_dies_half_way_costs_only_what_is_missing(tmp_path):
    cache = tmp_path / "c.sqlite"

    def dying(request):
        if question_of(request) == PROMPTS[3]:
            raise Fault(429, '{"error": {"message": "overloaded"}}')
        return echo(request)

    with ChatServer(dying) as server, pytest.raises(RunError, match=r"3 answers are kept in .*: run the same command"):
        ask(server, cache, concurrency=1)
    with ChatServer(echo) as server:
        found = ask(server, cache)
    assert [question_of(r) for r in server.requests] == PROMPTS[3:]
    assert found.account.num_kept == 3
    assert found.responses == [f"answer to {prompt}" for prompt in PROMPTS]


def test_prompts_without_a_response_are_counted_not_scored(tmp_path):
    cache = tmp_path / "c.sqlite"

    def broken(request):
        if question_of(request) in PROMPTS[2:4]:
            raise Fault(500, '{"error": {"message": "cuda error"}}')
        return echo(request)

    message = r"2 of 6 prompts got no response: 2 x the server failed with status 500 \(cuda error\)\. The other"
    with ChatServer(broken) as server, pytest.raises(RunError, match=message):
        ask(server, cache)
    with ChatServer(echo) as server:
        assert ask(server, cache).account.num_kept == 4
    assert sorted(question_of(r) for r in server.requests) == PROMPTS[2:4]


def test_an_empty_answer_is_an_empty_response(tmp_path):
    with ChatServer(lambda request: "" if question_of(request) == PROMPTS[1] else "x") as server:
        assert ask(server, tmp_path / "c.sqlite").responses == ["x", "", "x", "x", "x", "x"]


def test_a_model_that_says_nothing_at_all_is_scored_and_not_taken_for_a_dead_server(tmp_path):
    prompts = [f"Question {number}" for number in range(3 * MAX_FAILURES_IN_A_ROW)]
    with ChatServer(lambda request: Reply("", "stop", 1)) as server:
        found = ask(server, tmp_path / "c.sqlite", prompts)
    assert found.responses == [""] * len(prompts)
    assert (found.account.num_new_tokens, found.account.num_cut) == (len(prompts), 0)


def test_tokens_and_cut_responses_are_those_that_the_server_counts_the_kept_ones_too(tmp_path):
    cache = tmp_path / "c.sqlite"
    is_up = False

    def reply(request):
        number = PROMPTS.index(question_of(request))
        if number == 4 and not is_up:
            raise Fault(429)
        # The last one thought until it was cut, and said nothing.
        return Reply("" if number == 5 else "x", "length" if number % 2 else "stop", 10 + number)

    with ChatServer(reply) as server:
        with pytest.raises(RunError, match="4 answers are kept"):
            ask(server, cache, concurrency=1)
        is_up = True
        found = ask(server, cache)
    account = found.account
    assert (account.num_new_tokens, account.num_cut, account.num_kept) == (10 + 11 + 12 + 13 + 14 + 15, 3, 4)
    assert account.tokens_per_s == pytest.approx((14 + 15) / account.elapsed_s, rel=0.5)


@pytest.mark.parametrize(
    ("silent", "expected"),
    [(Reply("x", "stop", None), (None, 2)), (Reply("x", None, 3), (18, None)), (Reply("x", None, None), (None, None))],
    ids=["no tokens", "no reason", "neither"],
)
def test_what_a_server_does_not_say_of_one_response_is_not_known_of_all(tmp_path, silent, expected):
    def reply(request):
        number = PROMPTS.index(question_of(request))
        return silent if number == 0 else Reply("x", "length" if number > 3 else "stop", 3)

    with ChatServer(reply) as server:
        account = ask(server, tmp_path / "c.sqlite").account
    assert (account.num_new_tokens, account.num_cut) == expected
    assert (account.tokens_per_s is None) == (expected[0] is None)


def test_progress_counts_the_tokens_as_they_come(tmp_path):
    seen = []
    with ChatServer(lambda request: Reply("x", "stop", 5)) as server:
        generate_responses(
            EndpointBackend(Server(server.url, "small")),
            [[{"role": "user", "content": prompt}] for prompt in PROMPTS],
            max_new_tokens=9,
            cache=tmp_path / "c.sqlite",
            on_progress=lambda now: seen.append((now.num_done, now.num_new_tokens)),
        )
    assert seen[-1] == (6, 30)
    assert [tokens for done, tokens in seen if tokens == 5 * done] == [5 * done for done in range(7)]


def test_a_response_that_cannot_be_kept_ends_it_with_the_way_on(tmp_path, monkeypatch):
    put = AnswerCache.put

    def read_only(self, key, answer):
        if answer.text.endswith("3"):
            self._db.execute("PRAGMA query_only = ON")
        put(self, key, answer)

    monkeypatch.setattr(AnswerCache, "put", read_only)
    cache = tmp_path / "c.sqlite"
    with ChatServer(echo) as server:
        with pytest.raises(RunError, match=r"c.sqlite: an answer cannot be kept .*make it .*writable and run the same"):
            ask(server, cache, concurrency=1)
        monkeypatch.undo()
        assert ask(server, cache).account.num_kept == 3


def test_the_key_is_sent_and_never_written(tmp_path):
    cache = tmp_path / "c.sqlite"
    with ChatServer(echo, api_key="s3cret") as server:
        with pytest.raises(RunError, match="refuses the API key"):
            ask(server, cache)
        found = ask(server, cache, api_key="s3cret")
    assert "s3cret" not in json.dumps(found.settings)
    assert b"s3cret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_another_models_answers_are_not_taken(tmp_path):
    with ChatServer(echo, models=("small", "large")) as server:
        ask(server, tmp_path / "c.sqlite")
        assert ask(server, tmp_path / "c.sqlite", model="large").account.num_kept == 0
