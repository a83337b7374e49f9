import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from random import Random

import pytest

from misotune.data.account import DroppedRow
from misotune.data.dataset import DATA_FILE, MANIFEST_FILE, DatasetWriter, open_dataset, read_dataset
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
        writer.add_dropped(DroppedRow("f:3", "empty"))
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


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700])
def test_random_access_iteration_and_reading_agree(tmp_path, size):
    samples = [replace(SAMPLE, id=str(i), chunk=f"c{i // 3}", output=f"y{i}") for i in range(size)]
    for path in (write(tmp_path / "set", *samples), tmp_path / "set" / DATA_FILE, written_lines(tmp_path, samples)):
        dataset = open_dataset(path)
        assert len(dataset) == size
        assert list(dataset) == samples == read_dataset(path)
        assert [dataset[i] for i in reversed(range(size))] == samples[::-1]
        assert (dataset[-1], dataset[-3:]) == (samples[-1], samples[-3:])
        assert dataset.column("id") == [sample.id for sample in samples]
        assert dataset.column("chunk") == [sample.chunk for sample in samples]
        with pytest.raises(IndexError, match=f"no row {size}, there are {size}"):
            dataset[size]


def written_lines(tmp_path, samples):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(sample.to_row()) + "\n" for sample in samples), encoding="utf-8")
    return file


def test_an_open_dataset_stays_what_it_was_when_it_is_replaced(tmp_path):
    old = [replace(SAMPLE, id=f"old{i}") for i in range(600)]
    dataset = open_dataset(write(tmp_path / "set", *old))
    write(tmp_path / "set", SAMPLE)
    assert list(dataset) == old
    assert dataset.manifest["rows"] == 600
    assert len(open_dataset(tmp_path / "set")) == 1


def test_a_dataset_replaced_while_it_is_opened_is_read_anew(tmp_path, monkeypatch):
    from misotune.data import dataset as module

    out = write(tmp_path / "set", SAMPLE)
    read, replaced = module.read_manifest, []

    def read_then_replace(path):
        manifest = read(path)
        if not replaced:
            replaced.append(True)
            write(out, SAMPLE, SAMPLE)
        return manifest

    monkeypatch.setattr(module, "read_manifest", read_then_replace)
    assert (len(open_dataset(out)), replaced) == (2, [True])


def test_reading_a_dataset_needs_little_memory(tmp_path):
    """Iterated in a process of its own, 120 MB of text raise the peak by a fraction of it."""
    text = "".join(chr(97 + i * 7 % 26) for i in range(30_000))
    with DatasetWriter(tmp_path / "set") as writer:
        for i in range(4000):
            writer.add(replace(SAMPLE, id=str(i), output=f"{i}{text}"))
        writer.finish(MANIFEST)
    script = (
        "import resource, sys, pyarrow.parquet; from pathlib import Path\n"
        "from misotune.data.dataset import open_dataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(len(sample.output) for sample in open_dataset(Path(sys.argv[1]))) > 120_000_000\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    grown_mib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_mib < 60


def test_two_processes_cannot_write_the_same_dataset(tmp_path):
    with DatasetWriter(tmp_path / "set") as writer:
        other = DatasetWriter(tmp_path / "set")
        with pytest.raises(UsageError, match="another prepare is writing it"):
            other.__enter__()
        writer.add(SAMPLE)
        writer.finish(MANIFEST)
    assert len(read_dataset(tmp_path / "set")) == 1


# Writes datasets over one another in forks of itself; the n-th is killed at its n-th event that touches files.
KILL_AT_EVERY_EVENT = """
import os, signal, sys
from itertools import count
from pathlib import Path
import pyarrow.parquet
from misotune import storage
from misotune.data.dataset import DatasetWriter, read_dataset
from misotune.samples import Sample, SampleInput

out = Path(sys.argv[1])
if sys.argv[2] == "renamed twice":
    storage._renameat2 = lambda: None
inputs = (SampleInput("full", ({"role": "user", "content": "x"},)),)
account = {"read": 1, "kept": 1, "one_input": {}, "dropped": {}}

def write(version):
    with DatasetWriter(out) as writer:
        for _ in range(version):
            writer.add(Sample(str(version), "s", "d", inputs, "y"))
        writer.finish({"source": {"name": "s"}, "mode": "para", "seed": 0, "settings": {}, "account": account})

def killing_at(number):
    events = iter(range(1, number))
    def hook(event, arguments):
        if event != "os.kill" and event.startswith(("open", "os.", "shutil.")):
            if next(events, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

write(1)
seen = []
for number in count(1):
    child = os.fork()
    if child == 0:
        sys.addaudithook(killing_at(number))
        write(number + 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    ids = [sample.id for sample in read_dataset(out)]
    assert ids == [ids[0]] * int(ids[0]), ids
    seen.append(int(ids[0]) == number + 1)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(len(seen), sum(seen), os.listdir(out.parent))
"""


@pytest.mark.parametrize("way", ["exchanged", "renamed twice"])
def test_a_writer_killed_at_any_moment_leaves_the_old_dataset_or_the_new_one(tmp_path, way):
    command = [sys.executable, "-c", KILL_AT_EVERY_EVENT, str(tmp_path / "set"), way]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    moments, new, left = done.stdout.strip().split(maxsplit=2)
    assert int(moments) > 20
    assert 1 < int(new) < int(moments)  # killed before and after the new one was in its place
    assert left == "['set']"


# Writes datasets of version 1, 2, ... over one another; each has as many rows as its version says, modulo 5.
WRITE_OVER_AND_OVER = """
import sys
from itertools import count
from pathlib import Path
from misotune import storage
from misotune.data.dataset import DatasetWriter
from misotune.samples import Sample, SampleInput

if sys.argv[2] == "renamed twice":
    storage._renameat2 = lambda: None
inputs = (SampleInput("full", ({"role": "user", "content": "x"},)),)
account = {"read": 1, "kept": 1, "one_input": {}, "dropped": {}}
for version in count(1):
    with DatasetWriter(Path(sys.argv[1])) as writer:
        for _ in range(1 + version % 5):
            writer.add(Sample(str(version), "s", "d", inputs, "y" * 1000))
        writer.finish({"source": {"name": "s"}, "mode": "para", "seed": 0, "settings": {}, "account": account})
    if version == 1:
        print("written", flush=True)
"""


def test_a_writer_that_can_exchange_removes_what_a_killed_one_that_could_not_had_left(tmp_path):
    out = tmp_path / "set"
    write(out, SAMPLE)
    shutil.copytree(out, tmp_path / ".set.old")  # killed between its second rename and the removal
    write(out, SAMPLE)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("way", ["exchanged", "renamed twice"])
def test_a_killed_writer_leaves_the_old_dataset_or_the_new_one(tmp_path, way):
    random = Random(0)
    out = tmp_path / "set"
    for _ in range(4):
        command = [sys.executable, "-c", WRITE_OVER_AND_OVER, str(out), way]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
            time.sleep(random.random() * 0.1)
            writer.kill()
        samples = read_dataset(out)
        (version,) = {sample.id for sample in samples}
        assert len(samples) == 1 + int(version) % 5
        assert json.loads((out / MANIFEST_FILE).read_text())["rows"] == len(samples)
    write(out, SAMPLE)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
