"""Decomposition through a server: what holds is taken, what does not is counted, and nothing is lost."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest
from tests.chat_server import ChatServer, Fault, question_of

from misotune.chat.server import Server
from misotune.data.account import Account
from misotune.data.decompose.llm import NO_JSON, NONE_FOUND, TOO_LONG, LlmDecomposition, decomposed, read_parts
from misotune.data.decompose.prompt import SYSTEM
from misotune.data.records import Record, to_samples
from misotune.errors import RunError

pytest.importorskip("openai")

TASK = "Write a story about a keeper."


def record(i: int, text: str, **fields) -> Record:
    values = {"source": "s", "domain": "d", "history": (), "constraints": (), "output": "An answer."}
    return Record(id=f"r{i}", instruction=text, **{**values, **fields})


def split_at_sentences(request) -> str:
    """What a good model would say: the first sentence is the task."""
    task, *rest = question_of(request).split(". ")
    return json.dumps({"instruction": f"{task}.", "constraints": rest})


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "answers.sqlite"


def run(server, cache, records, **settings) -> list[Record]:
    step = LlmDecomposition(Server(server.url, "small"), cache, **settings)
    return list(step(iter(records), Account()))


def test_records_come_back_in_order_with_their_constraints_apart(cache):
    records = [record(i, f"{TASK} Use {i} words. Do not use commas.") for i in range(50)]
    with ChatServer(split_at_sentences) as server:
        found = run(server, cache, records)
    assert [r.id for r in found] == [r.id for r in records]
    assert found[7].instruction == TASK
    assert found[7].constraints == ("Use 7 words", "Do not use commas.")
    assert (found[7].rule, found[7].one_input) == ("llm", None)
    [sample] = to_samples(found[7], "para")
    assert sample.inputs[0].messages[-1]["content"] == records[7].instruction
    assert sample.inputs[1].messages[-1]["content"] == f"{TASK} Use 7 words"


def test_the_model_sees_the_rules_examples_and_the_text(cache):
    with ChatServer(split_at_sentences) as server:
        run(server, cache, [record(0, f"{TASK} Use 5 words.")])
    [request] = server.requests
    roles = [message["role"] for message in request["messages"]]
    assert request["messages"][0] == {"role": "system", "content": SYSTEM}
    assert roles[1:] == ["user", "assistant"] * (len(roles) // 2 - 1) + ["user"]
    assert request["temperature"] == 0
    assert request["max_tokens"] >= 256


def test_options_can_be_added_and_left_out(cache):
    with ChatServer(split_at_sentences) as server:
        run(server, cache, [record(0, f"{TASK} Use 5 words.")], options={"temperature": None, "top_p": 0.5})
    [request] = server.requests
    assert "temperature" not in request
    assert request["top_p"] == 0.5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot do that.", NO_JSON),
        ('{"instruction": "Write', NO_JSON),
        ('{"instruction": 3, "constraints": []}', NO_JSON),
        ('{"instruction": "Write a story about a keeper.", "constraints": "Use 5 words."}', NO_JSON),
        ('{"instruction": "Write a story about a keeper. Use 5 words.", "constraints": []}', NONE_FOUND),
        (
            '{"instruction": "Write a story about a keeper.", "constraints": ["Use 5 words.", "Be polite."]}',
            "LLM: a constraint is not in the instruction",
        ),
        ('{"instruction": "", "constraints": ["Use 5 words."]}', "LLM: no task is left"),
        (
            '{"instruction": "Write a story.", "constraints": ["Use 5 words."]}',
            "LLM: a part of the instruction is lost",
        ),
        ("[" * 100_000, NO_JSON),
        ('{"instruction": ' * 10_000, NO_JSON),
    ],
    ids=["prose", "cut", "number", "text", "none", "invented", "empty", "lost", "brackets", "nested"],
)
def test_an_answer_that_does_not_hold_leaves_one_input_and_says_why(cache, answer, reason):
    before = record(0, f"{TASK} Use 5 words.", one_input="no constraints")
    with ChatServer(lambda request: answer) as server:
        [after] = run(server, cache, [before])
    assert after.one_input == reason
    assert (after.instruction, after.constraints, after.full_text) == (before.instruction, (), None)


@pytest.mark.parametrize(
    "wrapped",
    [
        "Sure! Here it is:\n```json\n{}\n```\nAnything else?",
        '<think>{{"instruction": "no", "constraints": []}}</think>{}',
        '{{"note": "first"}} {}',
        "{}",
    ],
    ids=["fenced", "thoughts", "another-object", "bare"],
)
def test_the_json_is_found_in_what_models_write_around_it(wrapped):
    inner = '{"instruction": "Name it.", "constraints": ["Be brief."]}'
    text = wrapped.format(inner) if "{{" in wrapped or wrapped != "{}" else inner
    assert read_parts(text) == ("Name it.", ["Be brief."])


def test_chats_split_records_and_long_texts_are_not_sent(cache):
    records = [
        record(0, f"{TASK} Use 5 words.", history_loss=True, one_input="chat"),
        record(1, TASK, constraints=("Be brief.",)),
        record(2, "word " * 5000),
        record(3, f"{TASK} Use 5 words."),
    ]
    with ChatServer(split_at_sentences) as server:
        found = run(server, cache, records)
    assert found[:2] == records[:2]
    assert found[2].one_input == TOO_LONG
    assert found[3].constraints == ("Use 5 words.",)
    assert len(server.requests) == 1


def test_failures_of_the_server_are_counted_and_the_rest_goes_on(cache):
    def broken_at_3(request) -> str:
        if "Use 3 words" in question_of(request):
            raise Fault(500)
        return split_at_sentences(request)

    records = [record(i, f"{TASK} Use {i} words.") for i in range(6)]
    with ChatServer(broken_at_3) as server:
        found = run(server, cache, records, retries=0)
    assert Counter(r.one_input for r in found) == {None: 5, "LLM: the server failed with status 500": 1}
    assert found[3].id == "r3"


def test_a_server_that_dies_in_the_middle_loses_nothing(cache):
    records = [record(i, f"{TASK} Use {i} words.") for i in range(60)]
    server = ChatServer(split_at_sentences, delay_s=0.01)
    server.start()
    step = LlmDecomposition(Server(server.url, "small", concurrency=2), cache, retries=1)
    taken: list[Record] = []

    def take() -> None:
        for one in step(iter(records), Account()):
            taken.append(one)
            if len(taken) == 20:
                server.stop()

    with pytest.raises(RunError, match=r"went away .* answers are kept in .*: run the same command again"):
        take()
    num_asked = len(server.requests)
    server.start()
    try:
        found = list(step(iter(records), Account()))
    finally:
        server.stop()
    assert found[: len(taken)] == taken
    assert all(r.constraints for r in found)
    assert len(server.requests) <= len(records) + 2  # at most those that were on their way are asked twice
    assert len(server.requests) > num_asked


def test_memory_stays_flat_however_many_records_come(cache):
    seen = 0

    def records():
        nonlocal seen
        for seen in range(1, 100_000):
            yield record(seen, f"{TASK} Use {seen} words.")

    with ChatServer(split_at_sentences) as server:
        out = LlmDecomposition(Server(server.url, "small", concurrency=2), cache)(records(), Account())
        for _ in range(30):
            next(out)
        out.close()
    assert seen < 60


def test_an_answer_is_judged_by_the_text_and_not_by_the_server():
    before = record(0, f"{TASK} Do not use commas.")
    after = decomposed(before, json.dumps({"instruction": TASK, "constraints": ["Use commas."]}))
    assert (after.constraints, after.one_input) == ((), "LLM: a negation was lost or added")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def transformers_serve(tmp_path):
    """`transformers serve` with a tiny random model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    import torch
    from tests.conftest import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path / "model")]
    with open(tmp_path / "serve.log", "w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health", process, tmp_path / "serve.log")
        yield url, str(tmp_path / "model")
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen, log) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {url}")


@pytest.mark.slow
def test_a_real_server_is_asked_and_nonsense_is_counted(transformers_serve, cache):
    url, model = transformers_serve
    records = [record(i, f"{TASK} Use {i} words.") for i in range(4)]
    progress = []
    step = LlmDecomposition(
        Server(url, model, concurrency=2),
        cache,
        on_progress=lambda p: progress.append(p.done),
        options={"max_tokens": 24},
    )
    found = list(step(iter(records), Account()))
    assert [r.id for r in found] == [r.id for r in records]
    assert all(r.one_input in (NO_JSON, "LLM: the server's answer is empty") for r in found)
    assert progress == [1, 2, 3, 4]
    with pytest.raises(RunError, match=r"the server refuses model 'other' \(status 400: .*pinned"):
        list(LlmDecomposition(Server(url, "other"), cache)(iter(records), Account()))
