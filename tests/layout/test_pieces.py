"""Text that is tokenised in pieces gives the tokens of the whole, for every kind of tokenizer."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from misotune.layout.pieces import PieceTokenizer

WORDS = ["tea", " tea", "\n", "\n\n", " ", "  ", "a", "ab", "<|im_end|", "|>", "<", "é", "\U0001f375", ".", "▁"]
MARKS = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
texts = st.lists(st.sampled_from(WORDS + MARKS * 3), max_size=24).map("".join)


def metaspace(scheme):
    """Unigram with the space sign in front of a text's first word alone, or of every piece (Llama-2's kind)."""
    vocab = [("<unk>", 0.0), *((f"▁{c}", -2.0) for c in "tab"), *((c, -3.0) for c in "▁teab\n<|_imsrnd>.")]
    tokenizer = Tokenizer(models.Unigram([*vocab, ("▁tea", -1.0)], unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


def prepending():
    tokenizer = metaspace("never")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def splitting():
    tokenizer = metaspace("first")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "merged_with_next"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    return tokenizer


def wrapped(tokenizer, **options):
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False, **options) for mark in MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def overlapping():
    """One added token begins inside the others; it is looked for first where it is the longer one."""
    tokenizer = wrapped(metaspace("first"))
    tokenizer.add_tokens(
        [AddedToken("tea<|im_end|>", normalized=False), AddedToken("<|im_end|><|pad|>", normalized=False)]
    )
    return tokenizer


TOKENIZERS = {
    "byte-level": make_tokenizer,
    "first-word": lambda: wrapped(metaspace("first")),
    "every-piece": lambda: wrapped(metaspace("always")),
    "prepending": lambda: wrapped(prepending()),
    "splitting": lambda: wrapped(splitting()),
    "space-before-marks": lambda: wrapped(metaspace("first"), lstrip=True),
    "space-behind-marks": lambda: wrapped(metaspace("first"), rstrip=True),
    "whole-words": lambda: wrapped(metaspace("first"), single_word=True),
    "normalized-words": lambda: (t := wrapped(prepending()), t.add_tokens(["ab"]))[0],
    "overlapping": overlapping,
}
MADE = {name: make() for name, make in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_pieces_give_the_tokens_of_the_whole(name, text):
    pieces = PieceTokenizer(MADE[name])
    pieces._num_to_compare = 0  # no help from the comparison
    assert pieces(text) == MADE[name](text, add_special_tokens=False)["input_ids"]


def test_a_piece_is_tokenised_once(monkeypatch):
    seen = []
    tokenizer = make_tokenizer()

    class Noted:
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, text, **options):
            seen.append(text)
            return tokenizer(text, **options)

    pieces = PieceTokenizer(Noted())
    pieces._num_to_compare = 0
    pieces("<|im_start|>a<|im_end|>\n<|im_start|>b")
    pieces("<|im_start|>a<|im_end|>\n<|im_start|>c")
    assert seen == ["<|im_start|>a", "<|im_end|>\n", "<|im_start|>b", "<|im_start|>c"]


def test_tokenizer_that_reads_over_cuts_gets_whole_texts():
    """Its pieces differ from the whole: the first text shows it, and no later one is cut."""
    tokenizer = make_tokenizer()

    class Counting:
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, text, **options):
            return {"input_ids": [len(text)]}

    pieces = PieceTokenizer(Counting())
    assert pieces("a<|im_end|>b") == [12]
    pieces._num_to_compare = 0
    assert pieces("ab<|im_end|>b") == [13]


def test_it_is_pickled_for_workers_without_what_it_remembers():
    pieces = PieceTokenizer(make_tokenizer())
    ids = pieces("<|im_start|>user\n" + "tea " * 10_000)
    sent = pickle.dumps(pieces)
    assert len(sent) < 40_000
    assert pickle.loads(sent)("<|im_start|>user\n" + "tea " * 10_000) == ids
