"""The corpus is the same however it comes about; what decides it is in its key; nothing is dropped in silence."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from tests.conftest import CHATML, make_tokenizer
from tests.training.corpora import (
    LIMITS,
    ROLES,
    chat_row,
    chunk_row,
    content_of,
    contents,
    mixed_rows,
    para_row,
    read,
    write,
)

from misotune.errors import DataError, RunError
from misotune.layout import ChatTemplate, Chunking, encode_sample, join_samples
from misotune.samples import select_inputs
from misotune.training import corpus as corpus_module
from misotune.training import shards
from misotune.training.corpus import ENCODING_VERSION, key_parts
from misotune.training.corpus_cache import corpus_key
from misotune.training.encoded import MANIFEST
from misotune.training.shards import Limits, RowEncoder

# What ENCODING_VERSION stands for: the SHA-256 of what the rows below give.
GOLDEN = {2: "92c3564dc04d1349eb650454bbaf36f145d28c59ae290c6c9f944103f40c2a67"}


def test_samples_are_those_that_the_layout_makes_row_by_row(tmp_path, template, own_cache):
    rows = mixed_rows()
    corpus = read(write(tmp_path / "set", rows), template)
    alone = [encode_sample(row, template) for row in rows]
    joined = [join_samples(alone[start:stop]) for start, stop in ((6, 8), (8, 11), (12, 14))]
    expected = [*alone[:6], *joined[:2], alone[11], joined[2], alone[14]]
    assert [content_of(sample) for sample in corpus.samples] == [content_of(sample) for sample in expected]
    assert corpus.samples[-1].id == corpus.samples[len(corpus.samples) - 1].id
    assert corpus.samples.num_tokens.tolist() == [sample.num_tokens for sample in expected]
    assert corpus.samples.num_inputs.tolist() == [len(sample.inputs) for sample in expected]
    assert corpus.samples.num_trained_tokens.tolist() == [sample.num_trained_tokens for sample in expected]
    assert corpus.samples.num_instructions.tolist() == [1] * 6 + [2, 3, 1, 2, 1]
    assert corpus.account()["chunks"] == {"samples": 3, "rows": 7}
    with pytest.raises(IndexError):
        corpus.samples[len(corpus.samples)]
    with pytest.raises(ValueError, match="read-only"):
        corpus.samples[0].output[0] = 1


@pytest.mark.parametrize("rows_of_a_shard", [1, 2, 3, 4, 7])
def test_shards_change_nothing(tmp_path, template, own_cache, monkeypatch, rows_of_a_shard):
    """Also where a chunk reaches over several shards."""
    path = write(tmp_path / "set", mixed_rows())
    whole = contents(read(path, template, use_cache=False))
    monkeypatch.setattr(shards, "SHARD_ROWS", rows_of_a_shard)
    progress = []
    assert contents(read(path, template, on_progress=lambda *call: progress.append(call))) == whole
    assert progress[0] == (0, 15)
    assert progress[-1] == (15, 15)
    assert progress == sorted(progress)


def test_corpus_from_the_cache_is_the_one_that_was_made(tmp_path, template, own_cache):
    path = write(tmp_path / "set", mixed_rows())
    fresh = read(path, template)
    assert not fresh.from_cache
    cached = read(path, template)
    assert cached.from_cache
    assert cached.key == fresh.key == cached.cache.name
    assert contents(cached) == contents(fresh)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_the_same_corpus(tmp_path, template, own_cache, monkeypatch, workers):
    path = write(tmp_path / "set", mixed_rows())
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    alone = read(path, template, use_cache=False)
    assert contents(read(path, template, workers=workers)) == contents(alone)


def test_cache_can_be_switched_off(tmp_path, template, own_cache, monkeypatch):
    path = write(tmp_path / "set", mixed_rows())
    kept = read(path, template)
    assert [entry.name for entry in own_cache.iterdir() if entry.is_dir()] == [kept.key]
    monkeypatch.setenv("MISOTUNE_CACHE", "off")
    off = read(path, template)
    assert (off.from_cache, off.cache) == (False, None)
    assert contents(off) == contents(kept)


def test_equal_rows_elsewhere_are_found_and_other_rows_are_not(tmp_path, template, own_cache):
    rows = mixed_rows()
    here = read(write(tmp_path / "here", rows), template)
    assert read(write(tmp_path / "there", rows), template).from_cache
    changed = [*rows[:-1], replace(rows[-1], output=rows[-1].output + "!")]
    other = read(write(tmp_path / "here", changed), template)
    assert not other.from_cache
    assert other.key != here.key


def encoder_of(template, **changes):
    settings = {"mode": "para", "roles": ROLES, "limits": LIMITS, "chunking": None} | changes
    return RowEncoder(template, **settings)


def with_template(text):
    return ChatTemplate(make_tokenizer(text))


def with_token():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["tea"])
    return ChatTemplate(tokenizer)


CHANGES = {
    "mode": {"mode": "sft"},
    "roles": {"roles": ("full", "base")},
    "max_length": {"limits": Limits(401, "drop")},
    "too_long": {"limits": Limits(400, "cut")},
    "max_sample_length": {"limits": Limits(400, "drop", 900)},
    "chunk-prefix": {"chunking": Chunking({1: 0.5, 2: 0.5}, 0, "system")},
    "most-chunks": {"chunking": Chunking({1: 0.5, 3: 0.5}, 0, "system")},
    "bos": {"chunking": Chunking({1: 0.5, 3: 0.5}, 0, "bos", 7)},
}


def test_each_part_of_the_key_changes_it(tmp_path, template, monkeypatch):
    path = write(tmp_path / "set", mixed_rows())
    key = corpus_key(key_parts(path, encoder_of(template)))
    encoders = [encoder_of(template, **change) for change in CHANGES.values()]
    encoders += [encoder_of(with_template(CHATML.replace("\n", "\n\n", 1))), encoder_of(with_token())]
    keys = [corpus_key(key_parts(path, encoder)) for encoder in encoders]
    monkeypatch.setattr(corpus_module, "ENCODING_VERSION", ENCODING_VERSION + 1)
    keys.append(corpus_key(key_parts(path, encoder_of(template))))
    assert len({key, *keys}) == len(keys) + 1


def test_what_changes_no_token_changes_no_key(tmp_path, template):
    """The same tokenizer from a folder; the order of roles; the seed of chunks, which are drawn while training."""
    from transformers import AutoTokenizer

    path = write(tmp_path / "set", mixed_rows())
    template.tokenizer.save_pretrained(tmp_path / "tokenizer")
    saved = ChatTemplate(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    assert key_parts(path, encoder_of(template)) == key_parts(path, encoder_of(saved, roles=ROLES[::-1]))
    seeds = [encoder_of(template, chunking=Chunking({2: 1.0}, seed)) for seed in (0, 1)]
    assert key_parts(path, seeds[0]) == key_parts(path, seeds[1])


def test_template_that_writes_the_time_gets_a_new_key(tmp_path):
    path = write(tmp_path / "set", mixed_rows())
    encoder = encoder_of(with_template("{{ strftime_now('%H:%M:%S.%f') }}" + CHATML))
    assert key_parts(path, encoder) != key_parts(path, encoder)


def test_encoding_has_not_changed_without_a_new_version(tmp_path, template):
    rows = [*mixed_rows(), para_row(99), chat_row(100, turns=40)]
    rows += [chunk_row(i, "long", answer="No. " * 40) for i in (101, 102, 103)]
    path = write(tmp_path / "set", rows)
    hashed = hashlib.sha256()
    for mode, too_long in (("para", "drop"), ("para", "cut"), ("flat", "drop"), ("sft", "cut")):
        corpus = read(path, template, mode=mode, limits=Limits(240, too_long), use_cache=False)
        assert corpus.num_dropped
        assert len(corpus.samples)
        hashed.update(json.dumps(contents(corpus)).encode())
    assert hashed.hexdigest() == GOLDEN[ENCODING_VERSION], (
        "the same rows give other tokens than before: raise ENCODING_VERSION and write down the new hash, "
        "else runs go on with tokens of the old kind from the cache"
    )


def test_chunk_that_is_too_long_is_dropped_with_all_its_rows(tmp_path, template, own_cache):
    rows = [chunk_row(i, "a", answer="No. " * 50) for i in range(3)] + [chunk_row(i, "b") for i in (3, 4)]
    corpus = read(write(tmp_path / "set", rows), template)
    assert [sample.id for sample in corpus.samples] == ["row-3+row-4"]
    reason = "a chunk of rows is longer than data.max_length (400 tokens)"
    assert corpus.account() == {
        "rows": 5,
        "samples": 1,
        "cut": 0,
        "dropped": {reason: {"samples": 3, "first": "row-0"}},
        "chunks": {"samples": 1, "rows": 2},
    }
    with pytest.raises(RunError, match=r"3 of 5 samples would be dropped, more than data.max_dropped=0\.5"):
        read(tmp_path / "set", template, max_dropped=0.5)


def test_chunk_that_is_cut_loses_whole_rows_and_counts_them(tmp_path, template, own_cache):
    rows = [chunk_row(i, "a", answer="No. " * 30) for i in range(4)]
    corpus = read(write(tmp_path / "set", rows), template, limits=Limits(400, "cut"))
    whole = join_samples([encode_sample(row, template) for row in rows[:2]])
    (sample,) = corpus.samples
    assert sample.id == "row-0+row-1"
    assert sample.output.tolist() == whole.output.tolist()
    assert sample.starts == whole.starts
    reason = "cut off a chunk of rows: it is longer than data.max_length (400 tokens)"
    account = corpus.account()
    assert account["dropped"] == {reason: {"samples": 2, "first": "row-2"}}
    assert (account["cut"], account["chunks"]) == (1, {"samples": 1, "rows": 2})


def test_rows_that_cannot_be_joined_are_dropped_with_the_cure(tmp_path, template, own_cache):
    rows = [replace(para_row(i), chunk="a") for i in range(2)] + [para_row(2)]
    corpus = read(write(tmp_path / "set", rows), template)
    assert [sample.id for sample in corpus.samples] == ["row-2"]
    ((reason, number),) = corpus.dropped.items()
    assert reason.endswith("set miso.mode=sft, or prepare the mixture with n_mix: 1")
    assert (number, corpus.examples[reason]) == (2, "row-0")


def test_wrong_row_of_a_hand_written_file_is_named_and_nothing_is_kept(tmp_path, template, own_cache):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"inputs": [], "output": "x"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'inputs' must be a list"):
        read(path, template)
    assert not list(own_cache.glob(f"*/{MANIFEST}"))


def test_hand_written_rows_without_ids_are_named_by_their_own_file(tmp_path, template, own_cache):
    row = {"inputs": [{"role": "full", "messages": [{"role": "user", "content": "Hi"}]}], "output": "Hi!"}
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        (sample,) = read(tmp_path / name, template).samples
        assert sample.id == f"{tmp_path / name}:1"


@pytest.mark.parametrize("mode", ["flat", "succ"])
def test_modes_give_what_select_inputs_chooses(tmp_path, template, own_cache, mode):
    rows = [para_row(i) for i in range(6)]
    chunking = Chunking({1: 0.5, 2: 0.5}, 0) if mode == "succ" else None
    corpus = read(write(tmp_path / "set", rows), template, mode=mode, chunking=chunking)
    chosen = [sample for row in rows for sample in select_inputs(row, mode, ROLES)]
    assert [content_of(s) for s in corpus.samples] == [content_of(encode_sample(s, template)) for s in chosen]


def test_corpus_without_samples_is_refused_each_time(tmp_path, template, own_cache):
    path = write(tmp_path / "set", [para_row(1)])
    for _ in range(2):
        with pytest.raises(RunError, match="1 of 1 samples would be dropped"):
            read(path, template, limits=Limits(20, "drop"))


def test_reading_holds_no_array_of_the_corpus_in_memory(tmp_path, template, own_cache):
    corpus = read(write(tmp_path / "set", mixed_rows()), template)
    base = corpus.samples[0].output
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
