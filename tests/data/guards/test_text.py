import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.guards.text import (
    fold,
    ngram_hashes,
    normalise,
    shingles_of,
    user_turns,
    visible_turns,
    words_of,
)
from misotune.data.records import Record, Template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def test_what_a_user_sees_is_history_turn_and_output_without_the_words_of_a_template():
    history = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    history += ({"role": "assistant", "content": "Hello"},)
    template = Template("{instruction} Obey these rules: {constraints}")
    record = Record("1", "s", "d", history, "Name it.", ("Be brief.", "No commas."), "Rex", template)
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]
    assert list(visible_turns(record)) == [*turns, ("user", "Name it.\nBe brief.\nNo commas."), ("assistant", "Rex")]
    assert list(user_turns(record)) == ["Hi", "Name it.\nBe brief.\nNo commas."]


def test_a_turn_with_constraints_among_its_sentences_is_taken_as_it_was():
    record = Record("1", "s", "d", (), "Name it.", ("Be brief.",), "Rex", full_text="Be brief. Name it.")
    assert list(user_turns(record)) == ["Be brief. Name it."]


@given(TEXTS)
def test_normal_form_is_blind_to_white_space_and_composition_and_to_nothing_else(text):
    normal = normalise(text)
    assert normalise(normal) == normal
    assert normalise(unicodedata.normalize("NFD", text).replace(" ", "\t\n")) == normal
    assert "".join(normal.split()) == "".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The well-known x_1 isn't 3.5!", ["The", "well", "known", "x_1", "isn", "t", "3", "5"]),
        ("请用iPhone写一首诗。", ["请", "用", "iPhone", "写", "一", "首", "诗"]),
        ("日本語のテスト", list("日本語のテスト")),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
        ("cafe\u0301 nai\u0308ve", ["cafe\u0301", "nai\u0308ve"]),
        ("مُحَمَّد هنا", ["مُحَمَّد", "هنا"]),
        ("Привет, мир", ["Привет", "мир"]),
    ],
    ids=["english", "chinese-and-latin", "japanese", "korean", "hindi", "combining-accents", "arabic", "russian"],
)
def test_words_of_many_scripts(text, words):
    assert words_of(text) == words


@given(st.text(st.characters(codec="ascii"), max_size=80))
def test_ascii_text_has_the_same_words_and_tokens_by_either_path(text):
    assert words_of(text) == words_of(text + " é")[:-1]
    several = shingles_of(text + " é", 1)
    assert [token for token in shingles_of(text, 1) if token] == several[:-1]


@given(TEXTS, st.integers(1, 6))
def test_shingles_are_all_runs_of_tokens(text, size):
    tokens = [token for token in shingles_of(text, 1) if token]
    assert "".join(tokens).replace("_", "") == "".join(
        character for character in fold(text) if not character.isspace()
    ).replace("_", "")
    expected = [" ".join(tokens[i : i + size]) for i in range(len(tokens)) if i + size <= len(tokens)]
    assert shingles_of(text, size) == (expected or [" ".join(tokens)])


def test_code_that_differs_in_an_operator_has_other_shingles():
    assert shingles_of("x = a + b", 5) != shingles_of("x = a - b", 5)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_hashes_are_equal_exactly_where_the_runs_of_words_are(one, other):
    def runs(words):
        size = min(3, len(words))
        return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if words else []

    hash_of = dict(zip(runs(one) + runs(other), [*ngram_hashes(one, 3), *ngram_hashes(other, 3)], strict=True))
    assert len(set(hash_of.values())) == len(hash_of)
    for words in (one, other):
        assert [hash_of[run] for run in runs(words)] == list(ngram_hashes(words, 3))


def test_hashes_are_the_same_on_every_machine():
    # Computed by Python's integers from the definition: a polynomial of CRC-32s, then splitmix64's finish.
    import zlib

    value = 2
    for word in ("hello", "welt"):
        value = (value * 0x9E3779B97F4A7C15 + zlib.crc32(word.encode())) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> shift)) * factor % 2**64
    assert list(ngram_hashes(["hello", "welt"], 2)) == [value ^ (value >> 31)]


def test_hashes_of_real_n_grams_do_not_collide():
    words = [str(i) for i in range(100_000)]
    assert len(np.unique(ngram_hashes(words, 8))) == len(words) - 7
