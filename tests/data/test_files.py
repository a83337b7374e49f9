import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from misotune.data.files import BrokenRow, Row, read_rows
from misotune.errors import DataError, UsageError

ROWS = [{"a": 1}, {"a": "é\n"}]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_form_gives_the_same_rows(tmp_path):
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n"
    pyarrow.parquet.write_table(pa.table({"a": ["1", "2"]}), tmp_path / "rows.parquet")
    files = [
        written(tmp_path / "rows.jsonl", lines),
        written(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + lines.encode()),
        written(tmp_path / "rows.jsonl.gz", gzip.compress(lines.encode())),
        written(tmp_path / "rows.json", json.dumps(ROWS)),
        written(tmp_path / "pretty.json", json.dumps(ROWS, indent=2)),
        written(tmp_path / "rows.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ]
    for file in files:
        assert [row.values for row in read_rows(file)] == ROWS, file
    assert [row.values for row in read_rows(tmp_path / "rows.parquet")] == [{"a": "1"}, {"a": "2"}]


def test_rows_know_their_file_and_line(tmp_path):
    lines = written(tmp_path / "rows.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read_rows(lines)] == [f"{lines}:2", f"{lines}:4"]
    array = written(tmp_path / "rows.json", '[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]')
    assert [row.where for row in read_rows(array)] == [f"{array}:2", f"{array}:4", f"{array}:5"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "broken JSON at column 7"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 8"),
        (b"[1]", "a row must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["broken", "not-utf-8", "not-an-object", "deep"],
)
def test_a_bad_line_costs_only_itself(tmp_path, line, reason):
    file = written(tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read_rows(file)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, BrokenRow)
    assert bad.where == f"{file}:2"
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "the file holds no rows"),
        ("rows.jsonl", b"\n \n", "the file holds no rows"),
        ("rows.json", b"[]", "the file holds no rows"),
        ("rows.json", b'[{"a": 1},\n{"a": ]', r":2: broken JSON at column 7"),
        ("rows.json", b'[{"a": 1},\n', r":2: the JSON array is not closed"),
        ("rows.json", b'[{"a":\n "\xff"}]', r":2: invalid UTF-8"),
        ("rows.json", b'{\n"a": }', r":2: broken JSON"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-9], "broken gzip file"),
        ("rows.parquet", b"PAR1 and no more", "not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, message):
    file = written(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no\.jsonl: no such file"):
        list(read_rows(tmp_path / "no.jsonl"))
    with pytest.raises(UsageError, match="a folder; name a file in it"):
        list(read_rows(tmp_path))
