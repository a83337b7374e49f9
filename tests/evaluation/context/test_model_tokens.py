"""The needle test's lengths, counted by a tokenizer whose model answers elsewhere."""

import shutil

import pytest

from misotune.errors import UsageError
from misotune.evaluation.context.model_tokens import ModelTokens, load_model_tokens
from misotune.evaluation.context.needle import load_needle
from misotune.evaluation.task import prompts_sha256


@pytest.fixture
def tokenizer_dir(tmp_path, tokenizer):
    """A folder with a tokenizer and no model."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_models_folder_gives_its_counts_and_its_context(tiny_model_dir, tokenizer, text):
    loaded, expected = load_model_tokens(str(tiny_model_dir)), ModelTokens.of(tokenizer, 4096)
    turns = [{"role": "user", "content": text[:500]}]
    assert loaded.text(text[:500]) == expected.text(text[:500]) == len(text[:500].encode())
    assert loaded.prompt(turns) == expected.prompt(turns)
    assert loaded.context == 4096


def test_no_weights_are_read(tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    assert load_model_tokens(str(folder)).context == 4096


def test_a_run_stands_for_its_final_model(tiny_model_dir, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "final").symlink_to(tiny_model_dir, target_is_directory=True)
    assert load_model_tokens(str(run)).context == 4096


def test_a_tokenizer_alone_knows_no_context_but_may_be_told(tokenizer_dir):
    assert load_model_tokens(str(tokenizer_dir)).context is None
    assert load_model_tokens(str(tokenizer_dir), 1000).context == 1000


def test_a_context_that_is_told_counts(tiny_model_dir):
    assert load_model_tokens(str(tiny_model_dir), 1000).context == 1000


def test_a_config_of_a_model_that_transformers_does_not_know_has_no_context(tokenizer_dir):
    (tokenizer_dir / "config.json").write_text('{"model_type": "of-tomorrow", "max_position_embeddings": 4096}')
    assert load_model_tokens(str(tokenizer_dir)).context is None


def test_the_prompts_are_those_of_the_model_in_this_process(tiny_model_dir, tokenizer, haystack):
    """So that responses of a server and of the model itself compare, prompt by prompt."""
    grid = {"haystack": haystack, "num_lengths": 3, "num_depths": 4}
    served = load_needle(load_model_tokens(str(tiny_model_dir)), **grid)
    here = load_needle(ModelTokens.of(tokenizer, 4096), **grid)
    assert prompts_sha256(served.prompts) == prompts_sha256(here.prompts)


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, tokenizer_dir, tiny_model_dir, tokenizer):
    with pytest.raises(UsageError, match=r"\./none: no such folder"):
        load_model_tokens("./none")
    with pytest.raises(UsageError, match="model nobody/nothing: no such folder here, and the hub gave none"):
        load_model_tokens("nobody/nothing")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_model_dir / "config.json", bare)
    with pytest.raises(UsageError, match=rf"--tokenizer {bare}: no tokenizer can be loaded from there: "):
        load_model_tokens(str(bare))
    (tokenizer_dir / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=rf"--tokenizer {tokenizer_dir}: no tokenizer can be loaded from there: "):
        load_model_tokens(str(tokenizer_dir))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    from tests.conftest import make_tokenizer

    make_tokenizer(chat_template=None).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=rf"--tokenizer {tmp_path}: it has no chat template; name the tokenizer of"):
        load_model_tokens(str(tmp_path))
