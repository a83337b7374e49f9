import random
import re
import string

import pytest

from misotune.evaluation.context.matching import (
    contains,
    contains_words,
    first_sentences,
    keywords_found,
    normalize_answer,
)


def official_normalize(s):
    """`normalize_answer` of SQuAD's evaluation scripts, v1.1 and v2.0."""

    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def papers_recall(response, words):
    """`SubwordMatchEvaluator` of the context-awareness paper's code."""
    for p in string.punctuation:
        response = response.lower().replace(p, " ")
    response = response.split(" ")
    response = [part for r in response for part in r.split("\n")]
    response = [a.strip() for a in response]
    return sum(any(word == r for r in response) for word in words) / len(words)


def random_texts(number, pieces):
    draw = random.Random(0)
    return ["".join(draw.choice(pieces) for _ in range(draw.randrange(30))) for _ in range(number)]


PIECES = (*"aAnNtThHeE .,-'\"\n\té%$\u2019中", "the ", " A ", "An", "1,000", "\u00a0")


def test_answers_are_normalised_as_the_official_script_does():
    for text in random_texts(3000, PIECES):
        assert normalize_answer(text) == official_normalize(text)


def test_real_answers_are_normalised_as_the_official_script_does(shared_data):
    from misotune.evaluation.context.reading import load_reading

    prompts = load_reading("squad", data=shared_data / "qa" / "squad_v2_dev_subset.json.gz").prompts
    for text in (text for prompt in prompts for text in (prompt.prompt, *prompt.answers)):
        assert normalize_answer(text) == official_normalize(text)


def test_keywords_are_found_as_the_papers_code_finds_them():
    words = ["eat", "sandwich", "sit", "day"]
    pieces = ("eat", "Eat", "eating", "sandwich", "SIT", "sits", "day", "sunday", " ", " ", "\n", ".", "-", "'s", "é")
    for response in random_texts(3000, pieces):
        assert len(keywords_found(response, words)) / len(words) == papers_recall(response, words)


@pytest.mark.parametrize(
    ("response", "answers", "anywhere", "as_words"),
    [
        ("The Normans lived in FRANCE.", ["the France"], True, True),
        ("It is Denmark, Iceland and Norway", ["Denmark Iceland, and Norway"], True, True),
        ("About 4,400,000 children", ["4400000"], True, True),
        ("He scored 12 points", ["2"], True, False),
        ("He scored 12 points", ["3", "12 points"], True, True),
        ("I cannot say. It is France", ["France"], False, False),
        ("It is version 2.5 of it", ["2.5"], True, True),
        ("It is St. Louis. Chicago is another", ["St. Louis"], True, True),
        ("It is St. Louis. Chicago is another", ["Chicago", "Louis"], False, False),
        ("Of St. Louis, Mo. and others", ["St. Louis, Mo. and"], True, True),
        ("I cannot say. Perhaps. It is St. Louis", ["St. Louis"], False, False),
        ("An East. Louisiana river", ["St. Louis"], True, False),
        ("", ["France"], False, False),
        ("France", [], False, False),
    ],
)
def test_an_answer_counts_in_the_first_sentence(response, answers, anywhere, as_words):
    assert (contains(response, answers), contains_words(response, answers)) == (anywhere, as_words)


def test_containing_agrees_with_a_loop_over_windows_of_words():
    pieces = ("a ", "the ", "red", "reddish", "fox", " ", " ", ". ", "-", "Fox's", "12", "2")
    answers = random_texts(40, pieces)
    answers = [answer for answer in answers if official_normalize(answer)]
    for response in random_texts(300, pieces):
        for answer in answers:
            text = official_normalize(". ".join(response.split(". ")[: len(answer.split(". "))]))
            words = text.split()
            wanted = official_normalize(answer)
            windows = [
                words[i : i + len(wanted.split())] == wanted.split()
                for i in range(len(words) - len(wanted.split()) + 1)
            ]
            assert contains(response, [answer]) == (text.find(wanted) >= 0)
            assert contains_words(response, [answer]) == any(windows)


def test_the_first_sentence_ends_as_the_papers_generation_stops():
    assert first_sentences("At 2.5 km.\nNo space. Rest. More") == "At 2.5 km.\nNo space"
    assert first_sentences("No end") == "No end"
    assert [first_sentences("A. B. C", number) for number in (1, 2, 3, 4)] == ["A", "A. B", "A. B. C", "A. B. C"]
