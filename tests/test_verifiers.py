import random

import pytest

from misotune.errors import DataError, RunError
from misotune.evaluation.constrained import ConstrainedPrompt, read_jsonl
from misotune.verifiers import (
    PUNKT_TYPES,
    Verdicts,
    constraint_types,
    drawn_constraints,
    ensure_verifiers,
    is_met,
    language_of,
    verify,
)

# The verifier of these two prompts is given "#" and "!" for a letter, and draws a letter instead.
DRAWN = {1122: (1,), 1129: (0,)}


def prompt_with(*constraints, where="f line 1"):
    types, kwargs = zip(*constraints, strict=True)
    return ConstrainedPrompt(1, "Say something.", types, kwargs, where)


@pytest.mark.usefixtures("punkt")
def test_gpt4s_verdicts_equal_the_reference_one_by_one(shared_data, ifeval_prompts):
    folder = shared_data / "ifeval"
    responses = [row for _, row in read_jsonl(folder / "input_response_data_gpt4_20231107_145030.jsonl")]
    reference = [row for _, row in read_jsonl(folder / "reference_verdicts.jsonl")]
    ensure_verifiers(ifeval_prompts, offline=True)
    num_compared = 0
    for prompt, response, expected in zip(ifeval_prompts, responses, reference, strict=True):
        assert prompt.key == expected["key"]
        found = verify(prompt, response["response"])
        for index in set(range(len(found.strict))) - set(DRAWN.get(prompt.key, ())):
            assert found.strict[index] == expected["strict"][index], prompt.key
            assert found.loose[index] == expected["loose"][index], prompt.key
            num_compared += 2
    assert num_compared == 2 * (834 - 2)


@pytest.mark.usefixtures("punkt")
def test_only_the_two_known_prompts_of_ifeval_draw_at_random(ifeval_prompts):
    ensure_verifiers(ifeval_prompts, offline=True)
    assert {p.key: drawn_constraints(p) for p in ifeval_prompts if drawn_constraints(p)} == DRAWN


def test_verdicts_repeat_and_leave_random_and_langdetect_as_they_were():
    from langdetect import DetectorFactory

    prompt = prompt_with(
        ("keywords:letter_frequency", {"letter": "#", "let_frequency": 3, "let_relation": "at least"}),
        ("language:response_language", {"language": "en"}),
    )
    ensure_verifiers([prompt], offline=True)
    state, seed = random.getstate(), DetectorFactory.seed
    first = verify(prompt, "Rain falls. Or does it? Oui, peut-etre.")
    assert random.getstate() == state
    assert DetectorFactory.seed == seed
    random.seed(1234)
    assert verify(prompt, "Rain falls. Or does it? Oui, peut-etre.") == first


def test_loose_verdicts_forgive_a_first_line_and_asterisks():
    prompt = prompt_with(("startend:quotation", {}), ("punctuation:no_comma", {}))
    ensure_verifiers([prompt], offline=True)
    assert verify(prompt, 'Sure, here it is:\n"Rain *falls*"') == Verdicts((False, False), (True, True))


def test_an_empty_response_meets_nothing():
    prompt = prompt_with(("punctuation:no_comma", {}))
    ensure_verifiers([prompt], offline=True)
    assert verify(prompt, " \n") == Verdicts((False,), (False,))


@pytest.mark.parametrize("name", sorted(PUNKT_TYPES))
@pytest.mark.usefixtures("no_punkt")
def test_without_punkt_data_the_cure_is_named(name):
    prompt = prompt_with((name, {}), where="data.jsonl line 8")
    with pytest.raises(RunError, match=rf"data\.jsonl line 8, {name}.*python -m nltk\.downloader punkt_tab.*NLTK_DATA"):
        ensure_verifiers([prompt], offline=False)


@pytest.mark.usefixtures("no_punkt")
def test_offline_no_download_is_tried(monkeypatch):
    monkeypatch.setattr("misotune.verifiers._download_punkt", lambda: pytest.fail("tried"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for offline in (True, False):
        with pytest.raises(RunError, match="punkt_tab"):
            ensure_verifiers([prompt_with(("length_constraints:number_sentences", {}))], offline=offline)


@pytest.mark.usefixtures("no_punkt")
def test_every_other_type_is_verified_without_punkt_data(ifeval_prompts):
    others = [p for p in ifeval_prompts if not PUNKT_TYPES & set(p.instruction_id_list)]
    ensure_verifiers(others, offline=True)
    types = {name for p in others for name in p.instruction_id_list}
    assert types | PUNKT_TYPES == {name for p in ifeval_prompts for name in p.instruction_id_list}
    for prompt in others[:100]:
        verify(prompt, "Rain falls on **every** roof.\n\n* So it goes.")


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (("punctuation:no_coma", {}), "f line 1: unknown constraint .* did you mean 'punctuation:no_comma'"),
        (("zzz", {}), "unknown constraint type 'zzz'; known are change_case:capital_word_frequency"),
        (("punctuation:no_comma", {"num": 1}), "punctuation:no_comma cannot be verified with {'num': 1}"),
        (
            ("length_constraints:number_words", {"relation": "about", "num_words": 5}),
            "number_words cannot be verified with .*about is given",
        ),
        (("keywords:existence", {"keywords": ["c++("]}), "keywords:existence cannot be verified with"),
    ],
)  # fmt: skip
def test_a_constraint_that_cannot_be_verified_is_named(constraint, message):
    with pytest.raises(DataError, match=message):
        ensure_verifiers([prompt_with(constraint)], offline=True)


@pytest.mark.parametrize("text", ["", "\n", "***", "P.S.", "<<>>", "[", '"', "{", "* \n-", "******", "\u200b", "..."])
@pytest.mark.usefixtures("punkt")
def test_odd_responses_get_a_verdict_from_every_type(ifeval_prompts, text):
    by_type = {name: prompt for prompt in ifeval_prompts for name in prompt.instruction_id_list}
    ensure_verifiers(list(by_type.values()), offline=True)
    for prompt in by_type.values():
        assert len(verify(prompt, text).strict) == len(prompt.instruction_id_list)


@pytest.mark.parametrize("text", ["", " ", "Rain, falls", "rain falls on every roof of the town"])
def test_one_strict_verdict_is_that_of_lm_evals_own_loop(text):
    for name, kwargs in [
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
        ("keywords:existence", {"keywords": ["rain"]}),
    ]:
        prompt = prompt_with((name, kwargs))
        ensure_verifiers([prompt], offline=True)
        assert is_met(name, kwargs, text) == verify(prompt, text).strict[0]
    assert len(constraint_types()) == 25


def test_a_language_is_named_only_when_every_seed_is_sure_of_it():
    from langdetect import DetectorFactory

    before = DetectorFactory.seed
    assert language_of("La lluvia cae sobre los tejados desde el amanecer y nadie la escucha.") == ("es", "Spanish")
    # langdetect says English or Afrikaans, by its seed.
    assert language_of("198 passengers / 9 buses = 22 passengers fit in one bus.\n22 * 5 = 110 passengers fit") is None
    assert language_of("12 34 ...") is None
    assert DetectorFactory.seed == before
