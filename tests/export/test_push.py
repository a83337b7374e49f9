"""An export is pushed only by name, only after its proof, and stays where it is when the push fails."""

import pytest

from misotune.errors import RunError, UsageError
from misotune.export.export import ExportOptions, export_source
from misotune.export.source import find_source

pytestmark = pytest.mark.usefixtures("in_process")


class Hub:
    """In place of huggingface_hub.HfApi."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.calls = []

    def __getattr__(self, name):
        def call(**arguments):
            self.calls.append((name, arguments))
            if name == self.fails_at:
                raise ConnectionError("503 Service Unavailable")
            return "https://huggingface.co/me/tiny"

        return call


def push(run, out, hub):
    return export_source(find_source(run.path), out, options=ExportOptions(push_to_hub="me/tiny", hub=hub))


def test_a_proved_export_is_pushed_to_a_private_repository(full_run, tmp_path):
    hub = Hub()
    report = push(full_run, tmp_path / "out", hub)
    assert report.pushed_to == "https://huggingface.co/me/tiny"
    assert [name for name, _ in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert hub.calls[1][1] == {"repo_id": "me/tiny", "repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls[2][1]["folder_path"] == str(tmp_path / "out")


def test_nothing_is_pushed_when_the_proof_fails(full_run, change_weights, tmp_path):
    change_weights(full_run.final / "model.safetensors", lambda tensors: tensors["model.norm.weight"].mul_(-1))
    hub = Hub()
    with pytest.raises(RunError, match="its logits differ"):
        push(full_run, tmp_path / "out", hub)
    assert [name for name, _ in hub.calls] == ["whoami"]
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_leaves_the_export_and_says_how_to_go_on(full_run, tmp_path):
    with pytest.raises(RunError, match=r"is exported and proved, but was not pushed \(503 .*; push it: hf upl"):
        push(full_run, tmp_path / "out", Hub("upload_folder"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_missing_login_is_told_before_anything_is_written(full_run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"the hub does not know you .*; log in: hf auth login"):
        push(full_run, tmp_path / "out", Hub("whoami"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set; unset it, or export without pushing"):
        push(full_run, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
