import pytest

from misotune.data.backtranslate.checks import CHECKS, is_met
from misotune.data.backtranslate.constraint_types import FINDERS, constraint_types
from misotune.data.backtranslate.text import Text
from misotune.verifiers import constraint_types as ifeval_types

LIST = "Two things:\n\n1. Rain\n2. Snow"
CODE = "Here:\n\n```python\nimport re\n\ndef f(a):\n    return a\n```\n"

# type, arguments, a response that meets it, one that does not by as little as possible
CASES = [
    ("length:words_between", {"low": 2, "high": 3}, "Rain falls", "Rain does not fall"),
    ("length:words_between", {"low": 3, "high": 9}, "Rain does fall", "Rain doesn't."),  # IFEval counts 3, an editor 2
    ("length:max_characters", {"num_characters": 5}, " Rain.\n", "Rains."),
    ("length:paragraphs", {"num_paragraphs": 2}, "A\n \nB\n", "A\nB"),
    ("length:lines", {"num_lines": 2}, "A\n\nB", "A\n\nB\nC"),
    ("length:single_paragraph", {}, "A. B. C.\n", "A. B.\nC."),
    ("length:max_sentence_words", {"num_words": 3}, "It rains now. It will snow!", "It rains right now."),
    ("length:max_sentence_words", {"num_words": 5}, "I met Mr. Fox there.", "I met Dr. Fox and Mrs. Hare."),
    ("length:max_paragraph_words", {"num_words": 2}, "a b\n\nc d", "a b c\n\nd"),
    ("length:max_word_letters", {"num_letters": 4}, "rain, fog-bank", "rainy"),
    ("list:bullets", {"num_items": 2}, "* a\n  - b", "* a\n-b"),
    ("list:numbered", {"num_items": 2}, LIST, LIST + "\n4. Hail"),
    ("list:numbered", {"num_items": 2}, "1) a\n2) b", "2) a\n1) b"),
    ("list:none", {}, "It rained on 3. May", "3. May"),
    ("markdown:headings", {"num_headings": 1}, "# Rain\nfalls", "#Rain\n```\n# not this\n```"),
    ("markdown:table", {}, "| a | b |\n|---|:-:|\n| 1 | 2 |", "| a | b |\n---"),
    ("markdown:none", {}, "Rain * 2", "Rain **falls**"),
    ("code:blocks", {"num_blocks": 1}, CODE, CODE + CODE),
    ("code:blocks", {"num_blocks": 1}, CODE, CODE + "\n```\nopen"),
    ("code:language", {"language": "python"}, CODE, CODE.replace("python", "py")),
    ("code:bare", {}, "def f(a):\n    return a", CODE),
    ("code:bare", {}, "def f(a):\n    return a", "x = 1\ny = f(x)\nz = 2\nThis adds one to the argument."),
    ("code:function_name", {"name": "f"}, CODE, CODE.replace("def f", "def g")),
    ("code:no_comments", {}, CODE, CODE.replace("return a", "return a  # back")),
    ("code:comments", {}, CODE.replace("    return", "    # back\n    return"), "```c\n#include <a>\n```\n"),
    ("code:no_imports", {}, CODE.replace("import re\n", ""), CODE),
    ("code:max_line_characters", {"num_characters": 12}, CODE, CODE.replace("return a", "return aa")),
    ("code:max_lines", {"num_lines": 3}, CODE, CODE.replace("import re", "import re\nx = 1")),
    ("start:word", {"word": "Rain"}, "  rain's? No: rain".replace("'s", ""), "Rainy days"),
    ("start:phrase", {"phrase": "Rain falls"}, "\nRain falls.", "rain falls."),
    ("end:question", {}, "Rain?\n", "Rain? Yes."),
    ("end:last_line", {"prefix": "####"}, "1 + 1\n#### 2\n", "#### 2\nDone"),
    ("punctuation:no_question_mark", {}, "Rain.", "Rain\uff1f"),
    ("punctuation:no_exclamation_mark", {}, "Rain.", "Rain!"),
    ("punctuation:no_parentheses", {}, "[Rain]", "(Rain"),
    ("punctuation:no_colon", {}, "Rain;", "12:30"),
    ("punctuation:no_semicolon", {}, "Rain:", "Rain;"),
    ("punctuation:no_dash", {}, "Rain_fall", "Rain-fall"),
    ("punctuation:no_double_quotes", {}, "'Rain'", "“Rain"),
    ("punctuation:quoted", {}, 'a "dry" day', 'a 5" pipe'),
    ("punctuation:question_marks", {"num_marks": 2}, "Rain? Snow?", "Rain? Snow."),
    ("punctuation:exclamation_marks", {"num_marks": 1}, "Rain!", "Rain!!"),
    ("digits:none", {}, "three", "\u0663 drops"),
    ("digits:numbers", {"num_numbers": 2}, "1,000 or 3.5", "1,000.5"),
    ("style:no_first_person", {}, "It is mined. USA", "Rain I\u2019ve seen"),
    ("style:second_person", {"num_words": 2}, "You\u2019re late, are you?", "You young fool"),
    ("style:no_second_person", {}, "Young people", "Is it yours"),
    ("style:no_contractions", {}, "The dog's bone", "It\u2019s wet"),
    ("style:no_contractions", {}, "cant", "can't"),
    ("keyword:in_order", {"first": "rain", "second": "snow"}, "Rain, snow, rain", "Snow, rain, snow"),
    ("keyword:in_order", {"first": "rain", "second": "snow"}, "Rain, snow", "Rainy snow"),
    ("keyword:first_sentence", {"word": "rain"}, "The Rain fell. It was wet.", "It was wet. The rain fell."),
    ("keyword:last_sentence", {"word": "rain"}, "It was wet. The rain fell.", "The rain fell.\nIt was wet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "met", "broken"), CASES)
def test_a_check_tells_the_response_that_meets_it(name, kwargs, met, broken):
    assert is_met(name, kwargs, Text(met))
    assert not is_met(name, kwargs, Text(broken))


def test_every_check_of_ours_has_a_case_and_a_definition():
    assert {name for name, *_ in CASES} == CHECKS.keys()
    assert all(check.__doc__ for check in CHECKS.values())


def test_an_empty_response_has_nothing_that_must_be_there():
    absence_holds = {"length:max_characters", "length:max_sentence_words", "length:max_paragraph_words"}
    absence_holds |= {"length:max_word_letters", "list:none", "markdown:none", "digits:none"}
    absence_holds |= {"code:max_line_characters", "code:max_lines", "punctuation:no_double_quotes"}
    absence_holds |= {name for name in CHECKS if name.startswith("style:no_")}
    arguments = {name: kwargs for name, kwargs, *_ in CASES}
    assert {name for name in CHECKS if is_met(name, arguments[name], Text(""))} == absence_holds


def test_each_type_can_be_found_verified_and_put_into_words():
    types = constraint_types()
    assert types.keys() == FINDERS.keys()
    for name, kind in types.items():
        assert (name in CHECKS) != (name in ifeval_types()), name
        assert kind.wordings
        for wordings in kind.wordings.values():
            assert len(wordings) >= 3, name
            assert len(set(wordings)) == len(wordings)
            assert all(wording[-1] in '."' for wording in wordings), name
    assert len(types.keys() & set(ifeval_types())) == len(ifeval_types()) - 1  # all but "My answer is yes."


def test_words_of_sentences_and_lists_are_those_an_editor_counts():
    text = Text("Dr. Fox, e.g., ate 3.5 figs. Did he? Yes!\n\n1. Rain fell.\n2. Done")
    assert text.sentences == ["Dr. Fox, e.g., ate 3.5 figs.", "Did he?", "Yes!", "1. Rain fell.", "2. Done"]
    assert text.item_numbers == [1, 2]
    assert len(text.paragraphs) == 2
