import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misotune.data.csv_rows import csv_rows
from misotune.data.files import BrokenRow, Row, read_rows
from misotune.data.json_rows import json_rows
from misotune.data.rows import MAX_ROW_BYTES
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
        written(tmp_path / "bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        written(tmp_path / "rows.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        written(tmp_path / "named.json", json.dumps({"first": ROWS[0], "second": ROWS[1]}, indent=1)),
        written(tmp_path / "named-on-one-line.json", json.dumps({"first": ROWS[0], "second": ROWS[1]})),
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
        ("rows.json", b'[{"a": 1}\n{"a": 2}]', r":2: broken JSON: no comma between rows"),
        ("rows.json", b'[{"a": 1}', r":1: the JSON array is not closed"),
        ("rows.json", b"[" + b'{"a":' * 100_000, r":1: JSON is nested too deeply"),
        ("rows.json", b'{\n"a": {"b": 1},\n"c" {}}', r":3: broken JSON: expected ':'"),
        ("rows.json", b'{\n"a": {"b": 1}\n"c": {}}', r":3: broken JSON: no comma between values"),
        ("rows.csv", b"a,b\n", "the file holds no rows"),
        ("rows.csv", b"\n1,2\n", "the file holds no rows"),
        ("rows.csv", b"a,a\n1,2\n", r":1: the first row must name the columns, it has 'a' twice"),
        ("rows.csv", b"a,,b\n1,2,3\n", r":1: the first row must name the columns, it has an empty name"),
        ("rows.csv", b'a,"b\n1,2\n', r":1: the first row must name the columns"),
        ("rows.csv", b'a,b\n1,2\n3,"4\n5,6\n', r":3: a quotation mark \(\"\) opened in this row is not closed"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd....", "packed with zstd; unpack it first"),
        ("rows.zip", b"PK\x03\x04....", "a zip archive; unpack it first"),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("rows.json", b'{\n"a": }', r":2: broken JSON"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "broken gzip file"),
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


def test_csv_and_tsv_give_rows_of_text_with_their_lines(tmp_path):
    table = 'a;b\r\n1;"x;\n""y"""\r\n\r\n2;é\r\n'
    rows = [{"a": "1", "b": 'x;\n"y"'}, {"a": "2", "b": "é"}]
    for file in (
        written(tmp_path / "rows.csv", table),
        written(tmp_path / "comma.csv", table.replace(";", ",")),
        written(tmp_path / "rows.tsv", table.replace(";", "\t")),
        written(tmp_path / "rows.csv.gz", gzip.compress(b"\xef\xbb\xbf" + table.replace(";", ",").encode())),
    ):
        found = list(read_rows(file))
        assert [row.values["a"] for row in found] == ["1", "2"], file
        assert [row.where for row in found] == [f"{file}:2", f"{file}:5"]
    assert [row.values for row in read_rows(tmp_path / "rows.csv")] == rows


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8")), min_size=2, max_size=2)))
def test_csv_cells_come_back_as_they_were_written(cells):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["first", "second"], *cells, ["the", "end"]])
    rows = csv_rows(Path("rows.csv"), io.BytesIO(text.getvalue().encode()), delimiter=",")
    assert [list(row.values.values()) for row in rows] == [*cells, ["the", "end"]]


def test_bad_csv_rows_cost_only_themselves(tmp_path):
    file = written(tmp_path / "rows.csv", b'a,b\n1,2\n3\n4,5,6\n"7"8,9\n\xff,1\n8,9\n')
    found = list(read_rows(file))
    assert [row.where for row in found] == [f"{file}:{n}" for n in range(2, 8)]
    assert [row.reason for row in found if isinstance(row, BrokenRow)] == [
        "a row of another length (1 cells for 2 columns)",
        "a row of another length (3 cells for 2 columns)",
        "broken CSV (',' expected after '\"')",
        "invalid UTF-8 at byte 1",
    ]


def test_rows_of_an_array_that_are_not_utf8_cost_only_themselves(tmp_path):
    file = written(tmp_path / "rows.json", b'[{"a": "\xff"},\n{"a": "\xc3\xa9"}, 12]')
    bad, good, number = read_rows(file)
    assert (bad.where, bad.reason) == (f"{file}:1", "invalid UTF-8")
    assert good.values == {"a": "é"}
    assert number.reason == "a row must be a JSON object, this is 12"


def test_rows_before_a_fault_of_the_file_are_not_lost(tmp_path):
    packed = gzip.compress(b"".join(b'{"a": "%d"}\n' % n for n in range(20_000)), compresslevel=1)
    for name, content in (("rows.jsonl.gz", packed[: len(packed) // 2]), ("rows.json", b'[{"a": "0"}, {"a": "1"}, {')):
        rows, fault = rows_and_fault(written(tmp_path / name, content))
        assert [row.values["a"] for row in rows if isinstance(row, Row)][:2] == ["0", "1"]
        assert fault is not None


def rows_and_fault(file):
    """What a reader of the file gets to see before it fails, and the failure."""
    rows = []
    try:
        for row in read_rows(file):
            rows.append(row)  # noqa: PERF402
    except DataError as error:
        return rows, error
    return rows, None


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_of_an_array_do_not_depend_on_where_the_file_is_cut(data):
    values = st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=5)
    rows = data.draw(st.lists(st.dictionaries(st.text(), values), min_size=1, max_size=5))
    text = json.dumps(rows, indent=data.draw(st.sampled_from([None, 2])), ensure_ascii=data.draw(st.booleans()))
    try:
        content = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        content = json.dumps(rows).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("misotune.data.json_rows._PIECE_BYTES", data.draw(st.integers(1, 9)))
        assert [row.values for row in json_rows(Path("rows.json"), io.BytesIO(content))] == rows


def peak_bytes(file):
    """The rows of a file as counts of characters, and the most memory that reading took."""
    tracemalloc.start()
    try:
        found = [row.reason if isinstance(row, BrokenRow) else len(row.values["a"]) for row in read_rows(file)]
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_file_is_never_whole_in_memory(tmp_path):
    row = '{"a": "' + "x" * 9_990 + '"}'
    many = 1_500
    files = [
        written(tmp_path / "rows.json", "[" + ",".join([row] * many) + "]"),
        written(tmp_path / "pretty.json", "[\n" + ",\n".join([row] * many) + "\n]"),
        written(tmp_path / "rows.jsonl", f"{row}\n" * many),
        written(tmp_path / "rows.csv", "a\n" + ("x" * 9_990 + "\n") * many),
    ]
    pyarrow.parquet.write_table(pa.table({"a": [f"{n:09990}" for n in range(many)]}), tmp_path / "rows.parquet")
    for file in [*files, tmp_path / "rows.parquet"]:
        found, peak = peak_bytes(file)
        assert found == [9_990] * many, file
        assert peak < 8 * 2**20, (file, peak)


def test_a_row_of_50_megabytes_is_refused_and_the_others_are_read(tmp_path):
    long = "y" * 50_000_000
    files = [
        written(tmp_path / "rows.jsonl", f'{{"a": "x"}}\n{{"a": "{long}"}}\n{{"a": "xx"}}\n'),
        written(tmp_path / "rows.csv", f"a\nx\n{long}\nxx\n"),
    ]
    pyarrow.parquet.write_table(pa.table({"a": ["x", long, "xx"]}), tmp_path / "rows.parquet")
    for file in [*files, tmp_path / "rows.parquet"]:
        found, peak = peak_bytes(file)
        assert found == [1, "the row is longer than 16 MiB", 2], file
        assert peak < 4 * MAX_ROW_BYTES, (file, peak)


def test_what_is_too_long_to_find_its_end_is_one_line(tmp_path):
    array = written(tmp_path / "rows.json", '[{"a": "x"},\n{"a": "' + "y" * 50_000_000 + '"}]')
    with pytest.raises(DataError, match=r"rows\.json:2: the row is longer than 16 MiB, or is not closed"):
        list(read_rows(array))
    table = written(tmp_path / "rows.csv", 'a\nx\n"' + ("y" * 999 + "\n") * 20_000)
    with pytest.raises(DataError, match=r"rows\.csv:3: the row is longer than 16 MiB; is a quotation mark"):
        list(read_rows(table))


def test_a_row_of_ten_megabytes_is_read(tmp_path):
    text = "é" * 5_000_000
    for name, content in (
        ("rows.jsonl", json.dumps({"a": text}, ensure_ascii=False)),
        ("rows.json", json.dumps([{"a": text}], ensure_ascii=False)),
        ("rows.csv", f"a\n{text}\n"),
    ):
        (row,) = read_rows(written(tmp_path / name, content))
        assert row.values == {"a": text}
