"""Rows of hub data sets; a folder of the same name stands in for the hub."""

import json

import pytest

from misotune.data.hub import is_hub_id, read_hub_rows
from misotune.errors import RunError, UsageError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Two data sets: `owner/rivers` with splits train and test, `owner/maths` with configurations."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for name, rivers in (("train", ["Rhine", "Elbe"]), ("test", ["Nile"])):
        file = tmp_path / "owner" / "rivers" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"name": river, "tags": ["a", "b"]}) + "\n" for river in rivers))
    for name in ("main", "socratic"):
        file = tmp_path / "owner" / "maths" / name / "train.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"question": name}) + "\n")
    card = "---\nconfigs:\n- config_name: main\n  data_files: main/train.jsonl\n"
    card += "- config_name: socratic\n  data_files: socratic/train.jsonl\n---\n"
    (tmp_path / "owner" / "maths" / "README.md").write_text(card)


def read(hub_id, split="train", revision=None):
    return list(read_hub_rows(hub_id, split, "misotune prepare FILE", revision))


def test_rows_come_with_their_number(hub):
    first, second = read("owner/rivers")
    assert (first.where, first.number, first.values) == (
        "owner/rivers: row 1",
        1,
        {"name": "Rhine", "tags": ["a", "b"]},
    )
    assert second.values["name"] == "Elbe"
    assert [row.values["name"] for row in read("owner/rivers", "test")] == ["Nile"]


def test_a_configuration_is_named_after_a_colon(hub):
    assert [row.values for row in read("owner/maths:socratic")] == [{"question": "socratic"}]
    assert is_hub_id("owner/maths:socratic")
    assert not is_hub_id("owner/maths:a:b")
    assert not is_hub_id("maths")


@pytest.mark.parametrize(
    ("hub_id", "split", "message"),
    [
        ("owner/rivers", "dev", r"owner/rivers: no split 'dev'; --split is one of .*train, test"),
        ("owner/maths", "train", r"has several configurations; write owner/maths:NAME, one of main, socratic"),
        ("owner/maths:algebra", "train", r"no configuration 'algebra'; there are main, socratic"),
    ],
)
def test_a_wrong_split_or_configuration_is_one_line_with_what_there_is(hub, hub_id, split, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(hub_id, split)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_cannot_be_reached_is_one_line_with_the_local_command(hub):
    with pytest.raises(
        RunError, match=r"owner/lakes: cannot be read from the hub .* --split train, --revision v2"
    ) as e:
        read("owner/lakes", revision="v2")
    assert "misotune prepare FILE" in str(e.value)
    assert "\n" not in str(e.value)
