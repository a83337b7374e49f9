import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import make_tokenizer

from misotune.preview.tokens import special_ids, token_texts, visible

TOKENIZER = make_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_pieces_join_to_the_decoded_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = token_texts(ids, TOKENIZER)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_a_character_over_several_tokens_stands_at_its_last():
    ids = TOKENIZER("a🦊b", add_special_tokens=False)["input_ids"]
    assert token_texts(ids, TOKENIZER) == ["a", "", "", "", "🦊", "b"]


def test_bytes_that_are_no_character_are_shown_where_the_text_ends():
    ids = TOKENIZER("🦊", add_special_tokens=False)["input_ids"][:3]
    assert token_texts(ids, TOKENIZER) == ["", "", "\ufffd"]


def test_a_word_keeps_the_space_that_its_tokenizer_drops_at_the_beginning_of_a_text():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1]) == "two"
    assert token_texts([0, 1, 1], tokenizer) == ["one", " two", " two"]


@given(st.text(max_size=40))
def test_nothing_is_left_that_a_terminal_or_browser_would_obey(text):
    shown = visible(text)
    for char in shown:
        assert char in "\n\t\u200c\u200d" or unicodedata.category(char) == "Zs" or char.isprintable()
    assert shown.count("\n") == shown.count("⏎\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("a\r\nb", "a␍⏎\nb"),
        ("\x1b]0;x\x07", "␛]0;x␇"),
        ("\u2028", "<U+2028>"),
        ("\x7f", "␡"),
    ],
)
def test_signs_stand_for_what_is_invisible(text, shown):
    assert visible(text) == shown


def test_special_tokens_are_those_of_the_tokenizer():
    marks = TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    assert special_ids(TOKENIZER) == frozenset(marks)
