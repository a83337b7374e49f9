import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from misotune.data.guards import make_hashed_set
from misotune.data.guards.prompts import (
    hash_prompt,
    load_evaluation_set,
    read_hashed_set,
    read_prompts,
    write_hashed_set,
)
from misotune.data.guards.text import fold, ngram_hashes, words_of
from misotune.errors import DataError, UsageError

PROMPTS = ["Write a poem about the sea. Your answer must be in lower case.", "Hi", "写一首关于大海和月亮的诗。"]


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "prompts"),
    [
        ({"prompt": "A", "key": 1}, ["A"]),
        ({"instruction": "A", "input": "B"}, ["A\nB"]),
        ({"instruction": "A", "input": ""}, ["A"]),
        ({"question": "A", "answer": "B"}, ["A"]),
        ({"text": "A", "code": "B"}, ["A"]),
        ({"turns": ["A", "B"]}, ["A", "B"]),
        ({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}]}, ["A"]),
        ({"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]}, ["A"]),
        ({"prompt": [{"role": "user", "content": "A"}]}, ["A"]),
    ],
    ids=["prompt", "alpaca", "no-input", "question", "text", "mt-bench", "messages", "sharegpt", "chat-prompt"],
)
def test_prompts_of_every_form(tmp_path, row, prompts):
    assert list(read_prompts(written(tmp_path / "set.jsonl", row))) == prompts


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "set.txt").write_text("A\n\nB\n")
    assert list(read_prompts(tmp_path / "set.txt")) == ["A", "B"]


def test_parquet_gives_the_same_set(tmp_path):
    pyarrow.parquet.write_table(pa.table({"prompt": PROMPTS}), tmp_path / "set.parquet")
    written(tmp_path / "set.jsonl", *({"prompt": prompt} for prompt in PROMPTS))
    one, other = (load_evaluation_set(tmp_path / name) for name in ("set.parquet", "set.jsonl"))
    assert (one.name, other.name) == ("set.parquet", "set.jsonl")
    for a, b in zip(one.prompts, other.prompts, strict=True):
        assert np.array_equal(a.hashes, b.hashes)
        assert np.array_equal(a.is_task, b.is_task)


def test_the_words_of_constraints_are_no_task():
    prompt = hash_prompt(PROMPTS[0])
    assert list(prompt.is_task) == [True] * 6 + [False] * 7
    assert np.array_equal(prompt.hashes, ngram_hashes(words_of(fold(PROMPTS[0])), 8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"answer": "A"}\n', r"set.jsonl:1: no prompt; one of these columns is needed: prompt, instruction"),
        ('{"prompt": ""}\n', r"set.jsonl:1: no prompt"),
        ('{"prompt": "A"}\n{"prompt": \n', r"set.jsonl:2: broken JSON"),
        ('{"messages": [1]}\n', r"set.jsonl:1: messages: a turn must be a text or have a role and a content, it is 1"),
        ("", r"set.jsonl: the file"),
    ],
    ids=["no-column", "empty-prompt", "broken", "no-turn", "empty"],
)
def test_a_file_without_prompts_is_refused_by_line(tmp_path, content, message):
    (tmp_path / "set.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        load_evaluation_set(tmp_path / "set.jsonl")


def test_a_text_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt: cannot be read as UTF-8 text"):
        load_evaluation_set(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_bytes(b"\n")
    with pytest.raises(DataError, match=r"empty\.txt: the file holds no prompts"):
        load_evaluation_set(tmp_path / "empty.txt")


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(
        UsageError, match=r"--decontaminate ifval: neither a shipped set \(starter, ifeval\) nor a file"
    ):
        load_evaluation_set("ifval")


def test_a_hashed_set_reads_as_it_was_written_and_the_same_bytes_each_time(tmp_path):
    prompts = [hash_prompt(prompt) for prompt in (*PROMPTS, "?!")]
    for name in ("one.npz", "other.npz"):
        write_hashed_set(tmp_path / name, prompts, {"origin": "here"})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    read = read_hashed_set(tmp_path / "one.npz")
    for before, after in zip(prompts, read, strict=True):
        assert np.array_equal(before.hashes, after.hashes)
        assert np.array_equal(before.is_task, after.is_task)


def test_a_damaged_hashed_set_is_named(tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"set\.npz: damaged"):
        read_hashed_set(tmp_path / "set.npz")


def test_the_script_makes_a_set_with_the_hash_of_its_source(tmp_path):
    source = written(tmp_path / "set.jsonl", *({"prompt": prompt} for prompt in PROMPTS))
    assert make_hashed_set.make_hashed_set(source, tmp_path / "set.npz", "somewhere") == 3
    with np.load(tmp_path / "set.npz") as file:
        about = json.loads(str(file["about"]))
    assert about["origin"] == "somewhere"
    assert len(about["sha256"]) == 64
    assert (about["ngram_words"], about["prompts"]) == (8, 3)


def test_the_shipped_ifeval_set_holds_the_n_grams_of_the_published_file(shared_data):
    prompts = list(read_prompts(shared_data / "ifeval/input_data.jsonl"))
    shipped = load_evaluation_set("ifeval").prompts
    assert len(shipped) == len(prompts) == 541
    for text, prompt in zip(prompts, shipped, strict=True):
        words = words_of(fold(text))
        assert np.array_equal(prompt.hashes, ngram_hashes(words, 8))
        assert len(prompt.is_task) == len(words)
    assert math.isclose(np.concatenate([prompt.is_task for prompt in shipped]).mean(), 0.6, abs_tol=0.15)
