import json

import pytest
from tests.chat_server import ChatServer, Fault, question_of

from misotune.errors import RunError, UsageError
from misotune.evaluation.backends.base import generate_responses
from misotune.evaluation.backends.endpoint import EndpointBackend

PROMPTS = [f"Question {number}" for number in range(6)]


def echo(request):
    return f"answer to {question_of(request)}"


def ask(server, cache, prompts=PROMPTS, model="small", **options):
    backend = EndpointBackend(server.url, model, retries=0, concurrency=options.pop("concurrency", 2), **options)
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
    assert (found.account.num_new_tokens, found.account.num_cut, found.account.num_kept) == (None, None, 0)


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


def test_a_wrong_address_is_told_at_once():
    with pytest.raises(UsageError, match=r"'127\.0\.0\.1:8000' is no http address"):
        EndpointBackend("127.0.0.1:8000", "small")
