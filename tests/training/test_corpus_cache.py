"""The cache holds whole corpora only, made once, whoever is killed, waits or asks at the same time."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.training.corpora import contents, mixed_rows, read, write

from misotune.errors import RunError, UsageError
from misotune.layout import ChatTemplate
from misotune.training import corpus_cache, shards
from misotune.training.corpus_cache import cache_folder, prune
from misotune.training.encoded import MANIFEST
from misotune.training.shards import RowEncoder

NUM_SHARDS = 5

# A process that reads the corpus of argv[1] with the tokenizer of argv[2]; argv[3]: workers, argv[4]: what it does
# when rows are done, argv[5]: a file to wait for.
PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
from misotune.training import shards
from misotune.training.corpus import read_corpus
from misotune.layout import ChatTemplate
from misotune.training.model import ModelSource, load_tokenizer
shards.SHARD_ROWS = 3
template = ChatTemplate(load_tokenizer(ModelSource(sys.argv[2])))
def on_progress(done, total):
    if sys.argv[4] == "slow":
        time.sleep(0.1)
    if sys.argv[4] == "kill" and done >= 6:
        children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
        print(json.dumps(children), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
Path(sys.argv[5] + str(os.getpid())).touch()
while not Path(sys.argv[5]).exists():
    time.sleep(0.01)
corpus = read_corpus(
    Path(sys.argv[1]), template, mode="para", roles=("full", "constraint", "base"), max_dropped=1.0,
    limits=shards.Limits(400, "drop"), workers=int(sys.argv[3]), on_progress=on_progress,
)
print(json.dumps([corpus.from_cache, [s.output.tolist() for s in corpus.samples]]))
"""


@pytest.fixture
def dataset(tmp_path):
    """Hides the dataset of the runs."""
    return write(tmp_path / "set", mixed_rows())


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)


@pytest.fixture
def encoded_ranges(monkeypatch):
    """The (start, stop) of rows that are encoded in this process."""
    ranges = []
    encode = RowEncoder.encode

    def noted(self, rows, start, stop):
        ranges.append((start, stop))
        return encode(self, rows, start, stop)

    monkeypatch.setattr(RowEncoder, "encode", noted)
    return ranges


def start_process(dataset, template_dir, *, workers, does, barrier):
    command = [sys.executable, "-c", PROCESS, str(dataset), str(template_dir), str(workers), does, str(barrier)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def template_dir(tmp_path, template):
    """A folder that `load_tokenizer` reads: the tokenizer, and a configuration for the loader to find."""
    template.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "model"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_build_goes_on_with_the_shards_that_were_done(
    dataset, template, template_dir, own_cache, small_shards, encoded_ranges, tmp_path, workers
):
    (tmp_path / "go").touch()
    killed = start_process(dataset, template_dir, workers=workers, does="kill", barrier=tmp_path / "go")
    said, error = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, error
    deadline = time.monotonic() + 20
    for child in map(int, json.loads(said)):  # workers end with their parent
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()
    (partial,) = own_cache.glob("*.partial")
    assert not list(own_cache.glob(f"*/{MANIFEST}"))
    done = {tuple(map(int, path.name.split("-")[1:3])) for path in partial.glob("rows-*.npz")}
    assert len(done) >= 2

    progress = []
    corpus = read(dataset, template, on_progress=lambda *call: progress.append(call))
    assert not corpus.from_cache
    assert sorted([*encoded_ranges, *done]) == [(start, start + 3) for start in range(0, 15, 3)]
    assert progress[0] == (3 * len(done), 15)
    assert contents(corpus) == contents(read(dataset, template, use_cache=False))
    assert sorted(path.name for path in own_cache.iterdir()) == [corpus.key, f"{corpus.key}.lock"]


def test_shard_that_was_changed_is_made_again(dataset, template, own_cache, small_shards, encoded_ranges):
    class Cut(Exception):
        pass

    def cut(done, total):
        if done >= 9:
            raise Cut

    with pytest.raises(Cut):
        read(dataset, template, on_progress=cut)
    (partial,) = own_cache.glob("*.partial")
    first = min(partial.glob("rows-0-*.npz"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    encoded_ranges.clear()
    corpus = read(dataset, template)
    assert encoded_ranges == [(0, 3), (9, 12), (12, 15)]
    assert contents(corpus) == contents(read(dataset, template, use_cache=False))


def test_of_two_processes_one_makes_the_corpus(dataset, template, template_dir, own_cache, tmp_path):
    barrier = tmp_path / "go"
    processes = [start_process(dataset, template_dir, workers=1, does="slow", barrier=barrier) for _ in range(2)]
    while len(list(tmp_path.glob("go*"))) < 2:
        time.sleep(0.02)
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
    barrier.touch()
    outputs = [process.communicate(timeout=120) for process in processes]
    results = [json.loads(said) for said, _ in outputs]
    assert sorted(from_cache for from_cache, _ in results) == [False, True]
    expected = [sample.output.tolist() for sample in read(dataset, template, use_cache=False).samples]
    assert [tokens for _, tokens in results] == [expected, expected]


def test_many_readers_at_once_all_get_it(dataset, template, own_cache, small_shards):
    """Threads, whose locks exclude one another as those of processes do."""
    found = []

    def run():
        # A tokenizer of its own: they are not made for several threads.
        found.append(read(dataset, ChatTemplate(type(template.tokenizer)(**INIT)), workers=1))

    INIT = {"tokenizer_object": template.tokenizer.backend_tokenizer, "eos_token": "<|im_end|>"}
    INIT |= {"pad_token": "<|pad|>", "chat_template": template.tokenizer.chat_template, "model_max_length": 4096}
    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(corpus.from_cache for corpus in found) == [False] + [True] * 5
    assert all(contents(corpus) == contents(found[0]) for corpus in found)


def test_waiting_process_shows_progress_and_takes_over_when_the_builder_dies(dataset, template, own_cache, monkeypatch):
    monkeypatch.setattr(corpus_cache, "_POLL_S", 0.01)
    made = read(dataset, template)
    os.rename(made.cache, tmp_work := made.cache.with_name(f"{made.key}.partial"))  # as if it were still being made
    for file in tmp_work.iterdir():
        file.unlink()
    (tmp_work / "progress.json").write_text("[4, 15]")
    lock = corpus_cache._lock_of(made.cache)
    lock.acquire()
    progress, said = [], []

    def on_progress(done, total):
        progress.append((done, total))
        if len(progress) == 3:
            lock.release()

    corpus = read(dataset, template, on_progress=on_progress, on_message=said.append)
    assert progress[:3] == [(4, 15)] * 3
    assert said == ["another process is turning the dataset into tokens; waiting for it"]
    assert not corpus.from_cache
    assert contents(corpus) == contents(made)


def test_other_ranks_of_a_node_leave_the_work_to_the_first(dataset, template, own_cache, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(corpus_cache, "_POLL_S", 0.01)
    found = []
    waiting = threading.Thread(target=lambda: found.append(read(dataset, template)))
    waiting.start()
    time.sleep(0.3)
    assert not list(own_cache.glob("*.partial"))
    assert waiting.is_alive()
    monkeypatch.setenv("LOCAL_RANK", "0")
    first = read(dataset, template)
    waiting.join(timeout=20)
    assert not first.from_cache
    assert found[0].from_cache


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


DAMAGES = {
    "cut": ("tokens.bin", cut, "is not what was written"),
    "one-bit": ("trained.bin", flip, "is not what was written"),
    "offsets": ("segment_offsets.bin", flip, "is not what was written"),
    "missing": ("ids.bin", Path.unlink, "cannot be read (No such file or directory)"),
    "manifest": (MANIFEST, cut, "is missing or broken"),
}


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_broken_corpus_is_made_again_with_one_line(dataset, template, own_cache, name, damage, reason):
    made = read(dataset, template)
    before = contents(made)
    if name == MANIFEST:
        (made.cache / MANIFEST).write_text("{")
    else:
        damage(made.cache / name)
    said = []
    again = read(dataset, template, on_message=said.append)
    assert said == [f"{made.cache / name} {reason}; the dataset is turned into tokens again"]
    assert not again.from_cache
    assert contents(again) == before
    assert read(dataset, template).from_cache


def make_entry(folder, name, mib, age):
    entry = folder / name
    entry.mkdir(parents=True)
    with (entry / "tokens.bin").open("wb") as file:
        file.truncate(mib << 20)
    os.utime(entry, (age, age))
    return entry


def test_corpora_used_longest_ago_go_first(tmp_path):
    names = [f"{digit * 32}" for digit in "abcd"]
    old, partial, kept, new = (
        make_entry(tmp_path, name, 64, age)
        for name, age in zip((names[0], f"{names[1]}.partial", names[2], names[3]), (3, 2, 1, 4), strict=True)
    )
    other = make_entry(tmp_path, "thesis", 512, 0)
    prune(tmp_path, 200 / 1024, keep=kept)
    assert [path.exists() for path in (old, partial, kept, new)] == [True, False, True, True]
    prune(tmp_path, 0, keep=kept)
    assert [path.exists() for path in (old, kept, new)] == [False, True, False]
    assert other.exists()  # it was not made here


def test_build_under_way_is_not_pruned(tmp_path):
    entry = make_entry(tmp_path, "a" * 32 + ".partial", 64, 1)
    with corpus_cache._lock_of(tmp_path / ("a" * 32)):
        prune(tmp_path, 0, keep=tmp_path / "b")
    assert entry.exists()
    prune(tmp_path, 0, keep=tmp_path / "b")
    assert not entry.exists()


def test_cache_is_pruned_when_a_corpus_is_added(dataset, template, own_cache, monkeypatch):
    first = read(dataset, template)
    monkeypatch.setenv("MISOTUNE_CACHE_GIB", "0")
    second = read(dataset, template, mode="sft")
    assert not first.cache.exists()
    assert second.cache.exists()


def test_size_limit_that_is_no_number_is_refused(dataset, template, own_cache, monkeypatch):
    monkeypatch.setenv("MISOTUNE_CACHE_GIB", "much")
    with pytest.raises(UsageError, match="MISOTUNE_CACHE_GIB=much is not a number of GiB"):
        read(dataset, template)


def test_cache_in_a_place_that_cannot_be_written_is_refused_with_the_cure(dataset, template, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MISOTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"the cache of tokens cannot be written .* or to off"):
        read(dataset, template)


def test_full_disk_is_one_line(dataset, template, own_cache, monkeypatch):
    def no_space(path, content):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shards, "write_whole", no_space)
    with pytest.raises(RunError, match=re.escape("(No space left on device); free some space")):
        read(dataset, template)


def test_default_place(monkeypatch, tmp_path):
    monkeypatch.delenv("MISOTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "misotune" / "encoded"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "misotune" / "encoded"
    monkeypatch.setenv("MISOTUNE_CACHE", "~/tokens")
    assert cache_folder() == Path.home() / "tokens" / "encoded"
