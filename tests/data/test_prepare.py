import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace

import pytest

from misotune.data.account import Account
from misotune.data.dataset import read_dataset, read_manifest
from misotune.data.prepare import PrepareSettings, prepare_dataset, read_records
from misotune.data.records import SkippedRowError
from misotune.data.sources.columns import instruction_record
from misotune.data.sources.registry import Source, find_source
from misotune.errors import DataError, RunError

GOOD = {"instruction": "Name a river.", "constraints": ["Be brief.", "Use no commas."], "output": "Rhine"}


def written(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return find_source(str(file))


def test_the_account_covers_every_row_read(tmp_path):
    source = written(tmp_path, GOOD, '{"broken', GOOD | {"output": ""}, {"instruction": "Hi", "output": "o"}, GOOD)
    bad = []
    settings = PrepareSettings(fail_above={"bad": 0.5})
    prepared = prepare_dataset(source, tmp_path / "out", settings, on_dropped=bad.append)
    account = prepared.account
    assert (account.read, account.kept, account.num_bad) == (5, 3, 2)
    assert account.one_input == {"no constraints": 1}
    assert account.bad == {"broken JSON: Unterminated string starting": 1, "'output' is empty": 1}
    assert [row.where for row in bad] == [f"{source.path}:2", f"{source.path}:3"]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [row["where"] for row in dropped] == [row.where for row in bad]
    manifest = read_manifest(tmp_path / "out")
    assert [(row["kind"], row["id"]) for row in dropped] == [("bad", ""), ("bad", "rows-3")]
    assert manifest["account"]["dropped"] == manifest["account"]["bad"] == dict(account.bad)
    assert (manifest["source"]["name"], manifest["mode"], manifest["rows"]) == ("rows", "para", 3)


def test_ids_are_stable_and_every_row_has_its_own(tmp_path):
    source = written(tmp_path, GOOD, GOOD | {"id": "x"}, GOOD | {"id": "x"}, GOOD | {"id": 7})
    for _ in range(2):
        prepare_dataset(source, tmp_path / "out", PrepareSettings())
        assert [sample.id for sample in read_dataset(tmp_path / "out")] == ["rows-1", "x", "x~2", "7"]


@pytest.mark.parametrize(("mode", "rows", "roles"), [("para", 2, 4), ("succ", 2, 1), ("sft", 2, 1), ("flat", 8, 1)])
def test_modes_decide_rows_and_inputs(tmp_path, mode, rows, roles):
    prepare_dataset(written(tmp_path, GOOD, GOOD), tmp_path / "out", PrepareSettings(mode=mode))
    samples = read_dataset(tmp_path / "out")
    assert (len(samples), {len(sample.inputs) for sample in samples}) == (rows, {roles})


def test_limit_counts_kept_rows(tmp_path):
    source = written(tmp_path, GOOD, GOOD | {"output": ""}, GOOD, GOOD)
    prepared = prepare_dataset(source, tmp_path / "out", PrepareSettings(limit=2, fail_above={}))
    assert (prepared.account.read, prepared.num_rows) == (3, 2)


def test_too_many_bad_rows_fail_and_leave_nothing(tmp_path):
    source = written(tmp_path, GOOD, GOOD | {"output": ""})
    with pytest.raises(
        DataError, match=r"1 of 2 rows are bad.*--fail-above bad=0\.05.*rows\.jsonl:2: 'output' is empty"
    ):
        prepare_dataset(source, tmp_path / "out", PrepareSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_row_kept_fails(tmp_path):
    source = written(tmp_path, GOOD | {"output": ""})
    with pytest.raises(DataError, match="no row was kept of 1 read"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings(fail_above={}))


def different(number):
    return GOOD | {"instruction": f"Name river number {number} of {number * number}."}


def contents(folder):
    """What decides a dataset; the card and the manifest name the folder."""
    return [(folder / name).read_bytes() for name in ("data.parquet", "dropped.jsonl")]


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_the_number_of_workers_changes_nothing(tmp_path, workers):
    rows = [different(n) | {"id": f"r{n // 2}"} for n in range(700)]
    rows[300], rows[301], rows[500], rows[699] = rows[2], "{broken", rows[4], GOOD | {"output": 3}
    source = written(tmp_path, *rows)
    settings = PrepareSettings(dedupe="exact", seed=3, join="mixed")
    one = prepare_dataset(source, tmp_path / "one", settings)
    many = prepare_dataset(source, tmp_path / "many", replace(settings, workers=workers))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert many.account == one.account
    assert many.statistics == one.statistics
    assert (one.account.num_bad, one.account.duplicates.total()) == (2, 2)
    assert len({sample.id for sample in read_dataset(tmp_path / "many")}) == 696


def test_limit_gives_the_same_rows_and_account_with_workers(tmp_path):
    source = written(tmp_path, *(different(n) for n in range(900)))
    one, many = (
        prepare_dataset(source, tmp_path / str(n), PrepareSettings(limit=400, workers=n, dedupe="exact"))
        for n in (1, 2)
    )
    assert many.account == one.account
    assert (many.account.read, many.num_rows, many.statistics["rows"]) == (400, 400, 400)


def test_what_the_guards_refuse_is_counted_and_listed(tmp_path):
    prompts = tmp_path / "test.jsonl"
    asked = "Describe in two long sentences how a river finds its way from the mountains to the sea."
    prompts.write_text(json.dumps({"prompt": asked}))
    source = written(tmp_path, GOOD, GOOD | {"id": "again"}, GOOD | {"instruction": asked}, different(1))
    dropped = []
    settings = PrepareSettings(dedupe="exact", decontaminate=(str(prompts),))
    account = prepare_dataset(source, tmp_path / "out", settings, on_dropped=dropped.append).account
    assert (account.read, account.kept) == (4, 2)
    assert (account.duplicates.total(), account.overlap.total()) == (1, 1)
    assert [(row.kind, row.where, row.id) for row in dropped] == [
        ("duplicates", f"{source.path}:2", "again"),
        ("overlap", f"{source.path}:3", "rows-3"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert lines == [row.to_dict() for row in dropped]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| dropped: duplicate of an earlier row | 1 |" in card


class EverySecond:
    """A guard that keeps every second record, by the order in which it is asked."""

    def __init__(self):
        self.asked = 0

    def fingerprint(self, record):
        return record.id.encode()

    def accept(self, record, fingerprint):
        assert fingerprint == record.id.encode()
        self.asked += 1
        return None if self.asked % 2 else "every second row"


def test_guards_are_asked_in_the_order_of_the_rows(tmp_path):
    source = written(tmp_path, *(different(n) for n in range(600)))
    account = Account()
    records = list(read_records(source, PrepareSettings(workers=2), account, guards={"duplicates": EverySecond()}))
    assert [record.id for record in records] == [f"rows-{n}" for n in range(1, 600, 2)]
    assert account.duplicates == {"every second row": 300}


def test_steps_change_records_or_leave_them_out(tmp_path):
    def shout(records, account):
        for record in records:
            yield replace(record, output=record.output.upper())

    def without_the_second(records, account):
        for number, record in enumerate(records):
            if number == 1:
                account.skipped["not wanted"] += 1
            else:
                yield record

    source = written(tmp_path, *(different(n) for n in range(3)))
    prepared = prepare_dataset(source, tmp_path / "out", PrepareSettings(), [shout, without_the_second])
    assert [(sample.id, sample.output) for sample in read_dataset(tmp_path / "out")] == [
        ("rows-1", "RHINE"),
        ("rows-3", "RHINE"),
    ]
    assert (prepared.account.read, prepared.account.kept, prepared.account.skipped) == (3, 2, {"not wanted": 1})
    assert prepared.statistics["rows"] == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("duplicates", r"1 of 4 rows repeat an earlier row, more than the share 0\.2 .*rows\.jsonl:3: duplicate"),
        ("bad", r"1 of 4 rows are bad, more than the share 0\.2 that --fail-above bad=0\.2 allows"),
        ("fallback", r"1 of 2 rows kept fell back to one input.*; the first: rows-4: no constraints found by rules"),
    ],
)
def test_a_share_above_its_threshold_fails_and_keeps_the_older_dataset(tmp_path, kind, message):
    source = written(tmp_path, GOOD, GOOD | {"output": ""}, GOOD, {"instruction": "Name a lake.", "output": "Como"})
    settings = PrepareSettings(dedupe="exact", decompose_by_rules=True, fail_above={})
    prepare_dataset(source, tmp_path / "out", settings)
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=message) as caught:
        prepare_dataset(source, tmp_path / "out", replace(settings, fail_above={kind: 0.2}))
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before
    prepare_dataset(source, tmp_path / "out", replace(settings, fail_above={kind: 0.5}))


def test_rows_without_constraints_to_find_are_no_fallback(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    source = written(tmp_path, chat, {"instruction": "Name a lake.", "output": "Como"})
    account = prepare_dataset(source, tmp_path / "out", PrepareSettings(fail_above={"fallback": 0})).account
    assert (account.one_input.total(), account.num_fallback) == (2, 0)


def test_a_row_of_which_a_part_was_cut_is_listed_with_its_id(tmp_path):
    turns = [("assistant", "Go on."), ("user", "Hi"), ("assistant", "Hello")]
    chat = {"id": "c1", "messages": [{"role": role, "content": text} for role, text in turns]}
    source = written(tmp_path, chat)
    prepare_dataset(source, tmp_path / "out", PrepareSettings())
    (line,) = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "where": f"{source.path}:1",
        "id": "c1",
        "kind": "changed",
        "reason": "opening assistant turns cut",
    }


def skipping(row, context):
    raise SkippedRowError("left out by rule")


def test_a_source_that_skips_every_row_fails_with_the_reason(tmp_path):
    source = Source("x", skipping, path=written(tmp_path, GOOD).path)
    with pytest.raises(DataError, match=r"no row was kept of 1 read; the first: .*:1: left out by rule"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings())


def killed_at_400(row, context):
    if context.fallback_id == "x-400" and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return instruction_record(row, context)


def test_a_killed_worker_is_one_line_and_the_older_dataset_stays(tmp_path):
    file = written(tmp_path, *(different(n) for n in range(900))).path
    source = Source("x", killed_at_400, path=file)
    prepare_dataset(source, tmp_path / "out", PrepareSettings(limit=5))
    with pytest.raises(RunError, match="a worker process was killed") as caught:
        prepare_dataset(source, tmp_path / "out", PrepareSettings(workers=2))
    assert "\n" not in str(caught.value)
    assert len(read_dataset(tmp_path / "out")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_the_manifest_says_what_decided_the_dataset(tmp_path):
    settings = PrepareSettings(dedupe="near", decontaminate=("starter",), seed=7, decompose_by_rules=True)
    prepare_dataset(written(tmp_path, GOOD), tmp_path / "out", settings, described={"model": "m"})
    manifest = read_manifest(tmp_path / "out")
    assert manifest["seed"] == 7
    assert manifest["settings"] == {
        "join": "bullets",
        "limit": None,
        "fail_above": {"bad": 0.05},
        "dedupe": "near",
        "decontaminate": ["starter"],
        "decompose": "rules",
        "model": "m",
    }
    assert manifest["statistics"]["constraints"]["mean"] == 2
    assert manifest["statistics"]["languages"]


def test_back_translated_rows_come_with_what_verifies_them(tmp_path, shared_data, punkt):
    from misotune.data.backtranslate.build import Backtranslation

    source = find_source(str(shared_data / "chat" / "alpaca_en_demo.json.gz"))
    out = tmp_path / "out"
    prepared = prepare_dataset(source, out, PrepareSettings(limit=40), [Backtranslation(seed=0)])
    checks = {entry["id"]: entry for entry in map(json.loads, (out / "checks.jsonl").read_text().splitlines())}
    assert len(checks) == prepared.account.rules["backtranslate"] > 10
    for sample in read_dataset(out):
        names = checks.get(sample.id, {"instruction_id_list": []})["instruction_id_list"]
        assert len(names) == sum(entry.role == "constraint" for entry in sample.inputs)


def test_half_a_surrogate_pair_is_a_bad_row(tmp_path):
    source = written(tmp_path, '{"instruction": "a", "output": "b \\ud83d"}', GOOD)
    prepared = prepare_dataset(source, tmp_path / "out", PrepareSettings(fail_above={"bad": 0.5}))
    assert prepared.account.bad == {"text with half a surrogate pair": 1}


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_cure(tmp_path, monkeypatch):
    import datasets.config
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    message = re.escape("THU-KEG/Crab-SFT: cannot be read from the hub (no route)")
    with pytest.raises(RunError, match=message + r".*misotune prepare crab --data FILE") as caught:
        prepare_dataset(find_source("crab"), tmp_path / "out", PrepareSettings())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_hub_are_prepared_like_those_of_a_file(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([GOOD]))
    prepare_dataset(find_source("someone/rivers"), tmp_path / "out", PrepareSettings())
    (sample,) = read_dataset(tmp_path / "out")
    assert (sample.id, len(sample.inputs)) == ("rivers-1", 4)
    assert read_manifest(tmp_path / "out")["source"] == {
        "name": "rivers",
        "hub_id": "someone/rivers",
        "split": "train",
        "revision": None,
    }


def test_real_crab_rows_are_all_split(shared_data, tmp_path):
    source = find_source("crab", shared_data / "crab" / "rendered.jsonl.gz")
    prepared = prepare_dataset(source, tmp_path / "out", PrepareSettings())
    assert (prepared.account.kept, prepared.account.one_input.total()) == (150, 0)
    seed = find_source("crab", shared_data / "crab" / "constraint_back_translation_sample.json")
    assert prepare_dataset(seed, tmp_path / "seed", PrepareSettings()).account.rules == {"seed form": 12}


def test_real_chats_and_traces_have_one_input(shared_data, tmp_path):
    source = find_source("sharegpt", shared_data / "chat" / "sharegpt_sample.jsonl.gz")
    account = prepare_dataset(source, tmp_path / "chat", PrepareSettings()).account
    assert (account.read, account.kept, account.num_inputs) == (1000, 987, {1: 987})
    source = find_source("r1", shared_data / "reasoning" / "r1_pcmb_traces_filtered.jsonl.gz")
    prepare_dataset(source, tmp_path / "r1", PrepareSettings(mode="succ"))
    assert {entry.role for sample in read_dataset(tmp_path / "r1") for entry in sample.inputs} == {"chunked"}
