import json
import re

import pytest

from misotune.data.account import BadRow
from misotune.data.dataset import DATA_FILE, MANIFEST_FILE, DatasetWriter, read_dataset
from misotune.errors import DataError, UsageError
from misotune.samples import Sample, SampleInput

SAMPLE = Sample(
    id="a",
    source="s",
    domain="d",
    inputs=(
        SampleInput("full", ({"role": "user", "content": "Hé\n\n- x"},)),
        SampleInput("constraint", ({"role": "system", "content": "S"}, {"role": "user", "content": "x"}), "x"),
    ),
    output="y",
    history_loss=True,
)
ACCOUNT = {"read": 1, "kept": 1, "one_input": {}, "dropped": {}}
MANIFEST = {"source": {"name": "s"}, "mode": "para", "seed": 0, "settings": {}, "account": ACCOUNT}


def write(out, *samples):
    with DatasetWriter(out) as writer:
        for sample in samples:
            writer.add(sample)
        writer.finish(MANIFEST)
    return out


def test_what_is_written_is_read_back(tmp_path):
    samples = [SAMPLE, Sample("b", "", "", SAMPLE.inputs[:1], "z")] * 400
    assert read_dataset(write(tmp_path / "set", *samples)) == samples


def test_the_same_rows_give_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "one", SAMPLE), write(tmp_path / "two", SAMPLE)
    assert (one / DATA_FILE).read_bytes() == (two / DATA_FILE).read_bytes()


def test_a_hand_written_file_of_rows_is_read_as_it_is(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(SAMPLE.to_row()) + "\n", encoding="utf-8")
    assert read_dataset(file) == [SAMPLE]
    file.write_text(json.dumps(SAMPLE.to_row()) + '\n{"inputs": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.jsonl:2: no field 'output'"):
        read_dataset(file)
    file.write_text(json.dumps(SAMPLE.to_row()) + '\n{"inputs\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.jsonl:2: broken JSON"):
        read_dataset(file)


def test_the_datasets_library_opens_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    folder = tmp_path / "set"
    with DatasetWriter(folder) as writer:
        writer.add(SAMPLE)
        writer.add_dropped(BadRow("f:3", "empty"))
        writer.finish(MANIFEST)
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert [Sample.from_row(row, "row") for row in rows] == [SAMPLE]


def test_leaving_early_keeps_the_older_dataset_whole(tmp_path):
    out = write(tmp_path / "set", SAMPLE)

    def interrupted():
        with DatasetWriter(out) as writer:
            writer.add(SAMPLE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_dataset(out) == [SAMPLE]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_new_dataset_replaces_the_older_one_whole(tmp_path):
    out = write(tmp_path / "set", SAMPLE)
    (out / "dropped.jsonl").write_text("{}\n")
    write(out, SAMPLE, SAMPLE)
    assert len(read_dataset(out)) == 2
    assert sorted(path.name for path in out.iterdir()) == ["README.md", DATA_FILE, MANIFEST_FILE]


def test_what_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds something that is not a misotune dataset"):
        DatasetWriter(tmp_path / "mine")
    with pytest.raises(UsageError, match="is a file; choose a folder"):
        DatasetWriter(tmp_path / "mine" / "thesis.tex")


def test_a_changed_or_foreign_dataset_is_refused(tmp_path):
    out = write(tmp_path / "set", SAMPLE)
    manifest = json.loads((out / MANIFEST_FILE).read_text())

    (out / MANIFEST_FILE).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="format 99, this misotune reads 1"):
        read_dataset(out)
    (out / MANIFEST_FILE).write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: broken"):
        read_dataset(out)
    (out / MANIFEST_FILE).write_text(json.dumps(manifest | {"data_sha256": "0"}))
    with pytest.raises(DataError, match=re.escape("differs from its manifest.json (data_sha256)")):
        read_dataset(out)
    (out / DATA_FILE).unlink()
    with pytest.raises(DataError, match=r"data\.parquet: no such file"):
        read_dataset(out)
    (out / MANIFEST_FILE).unlink()
    with pytest.raises(DataError, match=r"not a prepared dataset \(there is no manifest\.json\)"):
        read_dataset(out)


def test_a_missing_dataset_comes_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(DataError, match=r"no such dataset; write it: misotune prepare crab --mode para"):
        read_dataset(tmp_path / "crab-para")
