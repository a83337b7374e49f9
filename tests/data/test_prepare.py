import json
import re

import pytest

from misotune.data.dataset import read_dataset, read_manifest
from misotune.data.prepare import PrepareSettings, prepare_dataset
from misotune.data.sources.registry import find_source
from misotune.errors import DataError, RunError

GOOD = {"instruction": "Name a river.", "constraints": ["Be brief.", "Use no commas."], "output": "Rhine"}


def written(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return find_source(str(file))


def test_the_account_covers_every_row_read(tmp_path):
    source = written(tmp_path, GOOD, '{"broken', GOOD | {"output": ""}, {"instruction": "Hi", "output": "o"}, GOOD)
    bad = []
    settings = PrepareSettings(max_dropped=0.5)
    prepared = prepare_dataset(source, tmp_path / "out", settings, on_bad=bad.append)
    account = prepared.account
    assert (account.read, account.kept, account.num_bad) == (5, 3, 2)
    assert account.one_input == {"no constraints": 1}
    assert account.bad == {"broken JSON: Unterminated string starting": 1, "'output' is empty": 1}
    assert [row.where for row in bad] == [f"{source.path}:2", f"{source.path}:3"]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [row["where"] for row in dropped] == [row.where for row in bad]
    manifest = read_manifest(tmp_path / "out")
    assert manifest["account"]["dropped"] == dict(account.bad)
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
    prepared = prepare_dataset(source, tmp_path / "out", PrepareSettings(limit=2, max_dropped=1))
    assert (prepared.account.read, prepared.num_rows) == (3, 2)


def test_too_many_bad_rows_fail_and_leave_nothing(tmp_path):
    source = written(tmp_path, GOOD, GOOD | {"output": ""})
    with pytest.raises(DataError, match=r"1 of 2 rows are bad.*--max-dropped.*rows\.jsonl:2: 'output' is empty"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_row_kept_fails(tmp_path):
    source = written(tmp_path, GOOD | {"output": ""})
    with pytest.raises(DataError, match="no row was kept of 1 read"):
        prepare_dataset(source, tmp_path / "out", PrepareSettings(max_dropped=1))


def test_half_a_surrogate_pair_is_a_bad_row(tmp_path):
    source = written(tmp_path, '{"instruction": "a", "output": "b \\ud83d"}', GOOD)
    prepared = prepare_dataset(source, tmp_path / "out", PrepareSettings(max_dropped=0.5))
    assert prepared.account.bad == {"text with half a surrogate pair": 1}


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_cure(tmp_path, monkeypatch):
    import datasets.config
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
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
