"""The verbs one after the other, through the command line, on the tiny model."""

import json
from pathlib import Path

import pytest

from misotune.cli.main import main

RECIPE = """\
name: small
model:
  name: {model}
data:
  path: data/starter-para
  max_length: 4096
miso:
  mode: para
train:
  max_steps: 2
  batch_size: 2
  learning_rate: 1e-3
"""


def misotune(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code or 0


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.slow
def test_each_verb_finds_what_the_one_before_wrote(in_folder, tiny_model_dir, capsys):
    Path("small.yaml").write_text(RECIPE.format(model=tiny_model_dir))
    assert misotune("prepare", "starter", "--limit", "8") == 0
    assert misotune("train", "small.yaml") == 0
    assert misotune("eval", "starter", "--limit", "4", "--max-new-tokens", "8") == 0
    assert misotune("export") == 0
    said = capsys.readouterr()
    assert "evaluating the newest finished run: runs/small" in said.err
    assert "exporting the newest finished run: runs/small" in said.err
    assert json.loads(Path("runs/small/scores/starter/scores.json").read_text())["num_prompts"] == 4
    card = Path("exports/small/README.md").read_text()
    assert "starter" in card
    assert Path("exports/small/model.safetensors").is_file()


@pytest.mark.slow
def test_trained_adapter_is_exported_merged(in_folder, tiny_model_dir):
    Path("small.yaml").write_text(RECIPE.format(model=tiny_model_dir))
    assert misotune("prepare", "starter", "--limit", "8") == 0
    assert misotune("train", "small.yaml", "lora={rank: 4}", "train.learning_rate=1e-2") == 0
    assert misotune("export") == 0
    assert "LoRA merged" in Path("exports/small/README.md").read_text()
    assert not Path("exports/small/adapter_config.json").exists()


@pytest.mark.slow
def test_quickstart_ends_with_the_table(in_folder, tiny_model_dir, capsys):
    overrides = ["train.epochs=null", "train.max_steps=2", "data.max_length=4096"]
    assert misotune("quickstart", f"model.name={tiny_model_dir}", *overrides) == 0
    said = capsys.readouterr().out
    assert "6/6 export" in said
    assert "starter: 68 held-out prompts, accuracy in percent" in said
    assert Path("exports/quickstart/config.json").is_file()
    assert Path("runs/quickstart/scores/starter/samples.jsonl").is_file()
    assert "against its base model: starter prompt strict did not change beyond the noise" in said
    before = Path("runs/quickstart/scores/base/starter/scores.json").read_text()
    assert before == Path("scores", tiny_model_dir.name, "starter", "scores.json").read_text()
    assert "Against its base model: starter prompt strict" in Path("exports/quickstart/README.md").read_text()


def test_error_is_one_line_with_its_exit_code(in_folder, capsys):
    assert misotune("train", "nothing.yaml") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: nothing.yaml: no such")


def test_interrupt_says_so(in_folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("misotune.cli.main.app", interrupt)
    assert misotune("export") == 130
    assert "interrupted" in capsys.readouterr().err
