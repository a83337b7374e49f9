"""A small para dataset and recipes over the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_tokenizer

from misotune.layout import ChatTemplate
from misotune.recipe.checking import check_recipe
from misotune.recipe.schema import Recipe

SUBJECTS = ("tea", "rain", "bread", "chess", "wool", "maps", "bees", "salt", "ice", "jazz", "moss", "clay")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve hand-written rows: 3 or 4 inputs of different lengths, outputs of different lengths."""
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, subject in enumerate(SUBJECTS):
            constraints = ["Be brief.", "Use no commas.", "Mention " + subject * 2 + "."][: 1 + i % 3]
            base = f"Write about {subject}."
            texts = [
                ("full", " ".join([base, *constraints])),
                *(("constraint", f"{base} {c}") for c in constraints),
            ]
            inputs = [
                {"role": role, "messages": [{"role": "user", "content": text}], "constraint": None}
                for role, text in [*texts, ("base", base)]
            ]
            row = {
                "id": f"row-{i}",
                "inputs": inputs,
                "output": f"All about {subject}" + " and more" * (i % 4),
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def make_recipe(tiny_model_dir: Path, dataset: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Returns recipes in float32 over the tiny model; keyword arguments replace a section's values."""

    def make(name: str = "run", **sections: Any) -> Recipe:
        values: dict[str, Any] = {
            "name": name,
            "model": {"name": str(tiny_model_dir)},
            "data": {"path": str(dataset), "max_length": 256},
            "miso": {"mode": "para"},
            "train": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "precision": "fp32"},
            "output": {"runs_dir": str(tmp_path / "runs")},
        }
        for key, section in sections.items():
            values[key] = {**values.get(key, {}), **section} if isinstance(section, dict) else section
        recipe = check_recipe(values)
        assert isinstance(recipe, Recipe), recipe
        return recipe

    return make


@pytest.fixture(scope="session")
def capped_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma-2, whose scores are capped at 50, with a window of 40 tokens in every other layer."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = make_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=40,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-gemma2")
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model_weak_at_z(folder: Path, size: float, rms_norm_eps: float) -> Path:
    """Saves a random Llama whose embedding of the letter z alone is of another size; its head has own weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        rms_norm_eps=rms_norm_eps,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("z")] = size * torch.randn(32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def nan_loss_at_z(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of finite weights that gives no number after a letter z: its norm divides zero by zero."""
    return make_model_weak_at_z(tmp_path_factory.mktemp("nan-loss"), 0.0, 0.0)


@pytest.fixture(scope="session")
def nan_gradient_at_z(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose loss is finite everywhere, but not its gradient at a letter z: the norm's scale overflows."""
    return make_model_weak_at_z(tmp_path_factory.mktemp("nan-gradient"), 1e-21, 1e-42)


@pytest.fixture
def template() -> ChatTemplate:
    """The byte-level tokenizer with ChatML."""
    return ChatTemplate(make_tokenizer())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of encoded corpora."""
    monkeypatch.setenv("MISOTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"
