"""Tiny models and tokenizers made on the spot, and the way to the real data where it is at hand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine's example may take a second: times belong into benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Else deepspeed, which transformers imports, prints that it found no GPU.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of encoded corpora for the tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MISOTUNE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data samples; without it the test is skipped."""
    root = Path(os.environ.get("MISOTUNE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip("needs the real data samples: set MISOTUNE_SHARED")
    return root / "data"


@pytest.fixture
def punkt(shared_data, monkeypatch):
    """NLTK's English Punkt data out of the real data samples."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data")])


@pytest.fixture
def no_punkt(monkeypatch):
    """NLTK without any data, and without the chance to fetch some."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr("misotune.verifiers._download_punkt", lambda: None)


@pytest.fixture(scope="session")
def ifeval_prompts(shared_data):
    """IFEval's 541 prompts."""
    from misotune.evaluation.constrained import prompts_from_rows, read_jsonl

    return prompts_from_rows(read_jsonl(shared_data / "ifeval" / "input_data.jsonl"))


def make_tokenizer(chat_template: str | None = CHATML):
    """A byte-level tokenizer without merges: 256 bytes, ChatML's marks, pad; `<|im_end|>` ends a turn."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in ("<|im_start|>", "<|im_end|>", "<|pad|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=chat_template,
        model_max_length=4096,
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (2 layers, hidden 32, 4 heads on 2 key-value heads) with the byte-level tokenizer."""
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
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
