"""A text of numbered sentences, and models that count it in three ways."""

import json
import random

import pytest

from misotune.evaluation.context.model_tokens import ModelTokens


def made_text(num_sentences=400, seed=0):
    draw = random.Random(seed)
    words = ("river", "of", "stone", "and", "an", "old", "harbour", "quietly", "moved", "beneath", "Ünïcode", "snow")
    return " ".join(
        f"Number {n} " + " ".join(draw.choices(words, k=draw.randrange(3, 25))) + draw.choice([".", "!", "?", '."'])
        for n in range(num_sentences)
    )


@pytest.fixture(scope="session")
def text():
    return made_text()


@pytest.fixture
def haystack(tmp_path, text):
    path = tmp_path / "essays.txt"
    path.write_text(text.replace(" Number", "\n\nNumber"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bpe_tokenizer(text):
    """A byte-level BPE with merges, trained on the text."""
    from tests.conftest import CHATML
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=marks, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHATML, model_max_length=512
    )


@pytest.fixture(params=["bytes", "merges", "words", "sevenths"])
def tokens(request, tokenizer, bpe_tokenizer):
    """A model with a context of 3000 tokens."""
    if request.param == "sevenths":  # of characters, rounded down: a whole can have more than its parts
        return ModelTokens(lambda text: len(text) // 7, lambda turns: sum(len(t["content"]) // 7 for t in turns), 3000)
    if request.param == "words":
        return ModelTokens(
            lambda text: len(text.split()), lambda turns: 5 + sum(len(t["content"].split()) for t in turns), 3000
        )
    return ModelTokens.of(tokenizer if request.param == "bytes" else bpe_tokenizer, 3000)


@pytest.fixture
def write_json(tmp_path):
    def write(value, name="data.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write
