import gzip
import json

import pytest

from misotune.errors import DataError
from misotune.evaluation.constrained import ConstrainedPrompt, prompts_from_rows, read_jsonl
from misotune.evaluation.task import prompts_sha256

ROW = {
    "key": 7,
    "prompt": "Describe rain without commas.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{"num_words": None, "language": None}],
}


def test_null_arguments_of_the_hub_are_dropped():
    assert ConstrainedPrompt.from_row(ROW, "f line 1").kwargs == ({},)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 1.5}, r"f line 1: 'key' must be a number or a text, got 1\.5"),
        ({"key": True}, "'key' must be a number or a text"),
        ({"prompt": "  "}, "'prompt' must be a text that is not empty"),
        ({"instruction_id_list": []}, "'instruction_id_list' must be a list of constraint types"),
        ({"kwargs": [{}, {}]}, "'kwargs' must be a list of 1 mappings, one per constraint"),
        ({"kwargs": [None]}, "'kwargs' must be a list of 1 mappings"),
    ],
)
def test_a_bad_row_is_named_with_its_fault(change, message):
    with pytest.raises(DataError, match=message):
        ConstrainedPrompt.from_row({**ROW, **change}, "f line 1")


def test_a_missing_field_is_named():
    with pytest.raises(DataError, match="f line 1: no field 'kwargs'"):
        ConstrainedPrompt.from_row({name: ROW[name] for name in ROW if name != "kwargs"}, "f line 1")


def test_two_rows_with_one_key_are_refused():
    with pytest.raises(DataError, match="line 2: key 7 stands already at line 1"):
        prompts_from_rows([("line 1", ROW), ("line 2", ROW)])


def test_plain_and_gzipped_files_hold_the_same_rows_with_their_lines(tmp_path):
    text = json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "key": 8}) + "\n"
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    assert [row for _, row in read_jsonl(plain)] == [row for _, row in read_jsonl(packed)]
    assert [where for where, _ in read_jsonl(packed)] == [f"{packed} line 1", f"{packed} line 3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"key": 1}\n{"key": \n', "a.jsonl line 2: not JSON: Expecting value at column"),
        ("a.jsonl", b"[1]\n", r"line 1: must be a JSON object, got '\[1\]'"),
        ("a.jsonl", b"\n", "a.jsonl: no rows"),
        ("a.jsonl", b"\xff\n", "a.jsonl: not UTF-8 text"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: cannot be read: Not a gzipped file"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_jsonl(tmp_path / name))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        list(read_jsonl(tmp_path / "nowhere.jsonl"))


def test_the_hash_follows_the_content_and_not_the_file():
    a = prompts_from_rows([("one line 1", ROW)])
    assert prompts_sha256(a) == prompts_sha256(prompts_from_rows([("two line 9", {**ROW, "kwargs": [{}]})]))
    assert prompts_sha256(a) != prompts_sha256(prompts_from_rows([("one line 1", {**ROW, "prompt": "x"})]))
