"""Marking the user turns whose responses depend on them."""

import json
import shutil

import pytest

from misotune.data.dataset import DatasetWriter, open_dataset, read_dataset, read_manifest
from misotune.data.indicator import TURNS_COLUMN, mark_dataset, marked_with
from misotune.errors import DataError, UsageError
from misotune.indicator import with_indicator
from misotune.samples import Sample

ACCOUNT = {"read": 2, "kept": 2, "one_input": {}, "dropped": {}}


def row(*inputs, output="Yes", history_loss=False, scores=None, **more):
    """Inputs as texts of one user turn, or as lists of them with answers between."""
    made = []
    for i, entry in enumerate(inputs):
        texts = [entry] if isinstance(entry, str) else entry
        messages = [{"role": ("user", "assistant")[j % 2], "content": text} for j, text in enumerate(texts)]
        made.append({"role": "full" if i == 0 else "constraint", "messages": messages, "constraint": None})
    scored = {} if scores is None else {TURNS_COLUMN: scores}
    return {"id": f"{inputs[0]}", "inputs": made, "output": output, "history_loss": history_loss, **scored, **more}


def write(path, *rows):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return path


def users(sample):
    return [[m["content"] for m in entry.messages if m["role"] == "user"] for entry in sample.inputs]


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Who wrote it?", "Who wrote it? [IND]"),
        ("Tell me who", "Tell me who. [IND]"),
        ("in 1949 \n", "in 1949. [IND]"),
        ("说明原因", "说明原因. [IND]"),
        ("(see above)", "(see above) [IND]"),
    ],
)
def test_the_indicator_stands_behind_a_blank_and_a_word_ends_with_a_full_stop(text, marked):
    assert with_indicator(text) == marked


def test_every_input_of_a_row_above_the_threshold_is_marked_and_the_rest_stays(tmp_path):
    data = write(
        tmp_path / "rows.jsonl",
        row("Sum up: Rome fell.", "Sum it up", "Be brief.", scores=[0.61]),
        row("Hi", "Hello", scores=[0.6]),  # at the threshold is not above it
        row("Name one", scores=None),  # beyond --limit
    )
    marked = mark_dataset(data, tmp_path / "out", 0.6)
    above, at, unscored = read_dataset(tmp_path / "out")
    assert users(above) == [["Sum up: Rome fell. [IND]"], ["Sum it up. [IND]"], ["Be brief. [IND]"]]
    assert users(at) == [["Hi"], ["Hello"]]
    assert users(unscored) == [["Name one"]]
    before = [Sample.from_row(json.loads(line), "") for line in data.read_text().splitlines()]
    assert [s.output for s in (above, at, unscored)] == [s.output for s in before]
    assert (marked.num_rows, marked.num_turns, marked.num_scored, marked.num_marked) == (3, 3, 2, 1)
    assert marked.share == pytest.approx(1 / 3)


def test_of_a_conversation_the_turn_before_each_response_above_is_marked(tmp_path):
    chat = ["A b", "one", "C d?", "two", "E f"]
    data = write(
        tmp_path / "rows.jsonl",
        row(chat, history_loss=True, scores=[0.9, None, 0.7]),
        row(chat, history_loss=False, scores=[0.9]),
    )
    marked = mark_dataset(data, tmp_path / "out")
    every, last = read_dataset(tmp_path / "out")
    assert users(every) == [["A b. [IND]", "C d?", "E f. [IND]"]]
    assert users(last) == [["A b", "C d?", "E f. [IND]"]]
    assert (marked.num_turns, marked.num_marked, marked.num_marked_rows) == (4, 3, 2)


def write_folder(path, *rows):
    """A dataset folder with the scores as columns, as `inspect dependency --write` leaves it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from misotune.storage import sha256_of

    with DatasetWriter(path) as writer:
        for entry in rows:
            writer.add(Sample.from_row(entry, "row"))
        writer.add_checks(rows[0]["id"], [("punctuation:no_comma", {})])
        writer.finish({"source": {"name": "tiny"}, "mode": "para", "account": ACCOUNT})
    table = pq.read_table(path / "data.parquet")
    scores = pa.array([entry[TURNS_COLUMN] for entry in rows], pa.list_(pa.float32()))
    pq.write_table(table.append_column(TURNS_COLUMN, scores), path / "data.parquet")
    manifest = json.loads((path / "manifest.json").read_text()) | {"data_sha256": sha256_of(path / "data.parquet")}
    (path / "manifest.json").write_text(json.dumps(manifest | {"dependency": {"model": "seed"}}))
    return path


def test_a_folder_keeps_its_files_and_says_what_was_marked_by_what(tmp_path):
    rows = [row(f"Row {i}", scores=[i / 600]) for i in range(600)]  # several groups of rows
    scored = write_folder(tmp_path / "scored", *rows)
    marked = mark_dataset(scored, tmp_path / "out", 0.5)
    assert marked.num_marked == 299
    opened = open_dataset(tmp_path / "out")
    assert [users(s)[0][0].endswith(" [IND]") for s in opened] == [i > 300 for i in range(600)]
    found = read_manifest(tmp_path / "out")["indicator"]
    assert (found["token"], found["threshold"], found["marked"], found["marked_rows"]) == ("[IND]", 0.5, 299, 299)
    assert found["scores"] == {"model": "seed"}
    assert found["data_sha256"] == read_manifest(scored)["data_sha256"]
    assert (tmp_path / "out" / "checks.jsonl").read_text() == (scored / "checks.jsonl").read_text()
    assert "299 of its 600 user turns are marked" in (tmp_path / "out" / "README.md").read_text()
    assert marked_with(opened) == "[IND]"
    assert opened.column(TURNS_COLUMN)[300] == [pytest.approx(0.5)]


def test_what_cannot_be_marked_is_refused_and_nothing_is_written(tmp_path):
    scored = write(tmp_path / "scored.jsonl", row("Hi there", scores=[0.9]))
    plain = write(tmp_path / "plain.jsonl", row("Hi there"))
    odd = write(tmp_path / "odd.jsonl", row("Hi there", scores=[0.9, 0.1]))
    mark_dataset(scored, tmp_path / "marked")
    out = tmp_path / "out"
    for data, threshold, error, message in (
        (plain, 0.6, DataError, r"plain.jsonl: no column 'dependency_by_turn'.*misotune inspect dependency MODEL"),
        (odd, 0.6, DataError, r"row Hi there: 2 scores in dependency_by_turn, and 1 trained responses"),
        (tmp_path / "marked", 0.6, DataError, "its turns are marked already"),
        (scored, 1.01, UsageError, r"--threshold 1.01: must be from 0 to 1"),
        (scored, -0.1, UsageError, r"--threshold -0.1: must be from 0 to 1"),
    ):
        with pytest.raises(error, match=message):
            mark_dataset(data, out, threshold)
    assert not out.exists()
    with pytest.raises(UsageError, match="holds files that are no dataset"):
        mark_dataset(scored, tmp_path)


def test_a_dataset_without_a_mark_needs_no_token_and_may_be_marked_again(tmp_path):
    scored = write(tmp_path / "scored.jsonl", row("Hi there", scores=[0.5]))
    assert mark_dataset(scored, tmp_path / "none", 0.9).num_marked == 0
    assert marked_with(open_dataset(tmp_path / "none")) is None
    assert mark_dataset(tmp_path / "none", tmp_path / "some", 0.4).num_marked == 1


def test_a_file_that_was_joined_of_marked_and_other_rows_is_known_as_marked(tmp_path):
    mark_dataset(write(tmp_path / "scored.jsonl", row("Hi there", scores=[0.9])), tmp_path / "marked")
    rows = [sample.to_row() for sample in read_dataset(tmp_path / "marked")]
    assert marked_with(open_dataset(write(tmp_path / "both.jsonl", row("Plain"), *rows))) == "[IND]"
    assert marked_with(open_dataset(write(tmp_path / "one.jsonl", row("Plain")))) is None


def test_an_older_dataset_at_the_place_is_replaced_whole(tmp_path):
    scored = write(tmp_path / "scored.jsonl", row("Hi there", scores=[0.9]))
    mark_dataset(scored, tmp_path / "out")
    shutil.copy(scored, tmp_path / "out" / "checks.jsonl")
    mark_dataset(scored, tmp_path / "out", 0.95)
    assert not (tmp_path / "out" / "checks.jsonl").exists()
    assert users(read_dataset(tmp_path / "out")[0]) == [["Hi there"]]
