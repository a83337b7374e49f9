"""Every rule on texts that meet it and texts that do not; verdicts worked out by hand from the published code."""

# ruff: noqa: RUF001 -- the marks of Chinese are meant

import string

import pytest

from misotune.evaluation.complexbench import rules
from misotune.evaluation.complexbench.rule_checks import chinese_punctuation, unquoted
from misotune.evaluation.complexbench.rules import parse_rule

# Rule, parts that meet it, parts that do not.
CASES = [
    ("model_keyword_each:[甲,乙.]", [["甲乙。", "乙。甲"], ["甲乙.", ""]], [["甲乙。", "甲"], [], [""]]),
    (
        "model_keyword_num_each:[1,1,甲,乙]\nmodel_forbidden_word_each:[丙]",
        [["甲", "乙"], ["甲丁", ""]],
        [["甲乙"], ["丁"], ["甲丙"], []],
    ),
    ("model_keyword_num_each:[1,2,甲,乙,丙]", [["甲", "乙丙"], ["甲甲甲"]], [["甲乙丙"], ["甲", "丁"], [""]]),
    ("model_keyword_num:[2,3,甲,乙]", [["甲乙"], ["乙甲", "丁"]], [["甲"], ["丁", "甲乙"], []]),
    ("model_keyword:[甲,乙]", [["乙甲"], ["甲乙", "丁"]], [["甲"], ["丁", "甲乙"], [], [""]]),
    ("model_forbidden_word_each:[甲,a.]", [["乙", "丙"], [], [""], ["a"]], [["乙", "甲"], ["a."]]),
    ("model_forbidden_word:[甲,乙]", [["丙"], ["丙", "甲"], [], [""]], [["丙甲"], ["乙", "丙"]]),
    ("model_number_each:[2,3]", [["a", "b"], ["a", "", "c"]], [["a"], ["a", "b", "c", "d"], [], [""]]),
    ("model_length_each:[2,3]", [["ab", "abc"], ['"ab"', ""]], [["ab", "abcd"], ["a"], []]),
    ("model_length_word_each:[2,3]", [["a b", "c d e"], ['"a b" ']], [["a b", "c"], [], [""]]),
    ("model_length_word:[2,2]", [["a b"], ["a b", "c"]], [["a"], ["a b c"], []]),
    ("model_length:[3,5]", [["abc"], ["“abcde”"], ["abc", "a"]], [["ab"], ["abcdef"], ["a", "abc"], [], [""]]),
    ("model_startswith_each:甲.", [["甲。乙", "甲.丙", ""]], [["甲。", "乙"], ["甲"], [], [""]]),
    ("model_starts_with_list_each:[甲, 乙]", [["甲1", "乙2"], ["甲1", ""]], [["乙", "甲"], ["甲"], ["甲", "乙", ""]]),
    ("model_startswith:甲\nmodel_endswith:乙", [["甲丙乙"], ["甲乙。"]], [["甲丙"], ["丙乙"], []]),
    ("model_startswith:甲,", [["甲,乙"], ["甲，乙", "丙"]], [["甲"], ["乙甲,"], [], [""]]),
    ("model_endswith_each:乙", [["甲乙"], ["乙", "乙。", "丙"], ["“甲乙”", "丙"]], [["甲"], ["甲", "乙"], [], [""]]),
    ("model_endswith:乙!", [["甲乙!"], ["甲乙！。"], ["乙！？"]], [["甲乙"], ["乙!甲"], [], ["“乙!”"]]),
    ("model_constraint_punc_each:[，,。]", [["甲，乙。", "丙"], ['"甲"']], [["甲！"], ["甲", "乙;"], [], [""]]),
    ("model_constraint_punc:[。]", [["甲。"], ["“甲。”"], ["甲,乙!"]], [["甲；"], ["甲，乙"], [], [""]]),
    ("model_not_startswith:甲", [["乙甲"], [], [""]], [["甲乙"]]),
    ("model_not_endswith_each:乙", [["乙甲", "甲"], [], [""]], [["甲", "甲乙"], ["乙。"]]),
    ("model_not_endswith:乙", [["甲", "乙"], [], [""]], [["甲乙"], ["乙？", "甲"]]),
    ("keyword:[甲, 乙.]", [["乙。甲"], ["甲乙.", ""]], [["甲"], ["甲乙。None"], [], [""]]),
    ("match:甲", [["甲"], ["甲。"], ["甲."], ["“甲”"]], [["甲乙"], ["甲!"], []]),
    ("constraint_punc:[，,。]", [["甲，乙."], ["“甲”"]], [["甲！乙"], ["None"], []]),
    ("forbidden_word:[甲]", [["乙"], [], ["甲None"]], [["甲"], ["乙甲丙"]]),
    ("startswith:甲\nendswith:乙", [["甲乙"], ["“甲丙乙。”"]], [["甲"], ["乙甲"], []]),
    ("startswith:甲:", [["甲：乙"], ["“甲:”"]], [["乙甲:"], [], ["甲:None"]]),
    ("not endswith:乙", [["甲"], [], [""]], [["甲乙"], ["乙。"]]),
    ("endswith:乙", [["甲乙"], ["乙？"], ["“乙”"]], [["乙甲"], [], ["None乙"]]),
    ("length_word:[2,3]", [["a b"], ["“a b c”"]], [["a"], ["a b c d"], []]),
    ("length:[2,3]", [["甲乙"], ["“甲乙”"]], [["甲"], ["甲乙丙丁"], []]),
    (
        'Json:["a","b"]',
        [['{"a": 1, "b": {"c": 2}}'], ['好：{"b": 1, "a": 2} 完 {"c": 1}']],
        [['{"a": 1}'], ['{"a": 1, "b": 2, "c": 3}'], ['{"a": 1, "b": }'], ["[1]"], ['{"a": "}", "b": 1}'], []],
    ),
    ("Json:[]", [['{"a": 1}'], ["{}"]], [["[]"], ["{"], ['{"a": None}']]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts", "verdict"),
    [
        pytest.param(text, parts, verdict, id=f"{text}-{parts}-{verdict}")
        for text, met, failed in CASES
        for verdict, all_parts in ((True, met), (False, failed))
        for parts in all_parts
    ],
)
def test_a_rule_decides_as_the_published_code_does(text, parts, verdict):
    assert parse_rule(text).decide(parts) is verdict


def test_there_are_cases_for_every_rule():
    kinds = [kind.label for kind in (*rules._OF_PARTS, *rules._OF_ONE)]
    # `keyword` with `forbidden_word` takes one line, and then reads the second list as words of the first.
    assert {parse_rule(text).name for text, _, _ in CASES} | {"keyword and forbidden_word"} == set(kinds)


def test_two_lists_in_one_line_are_read_as_published():
    rule = parse_rule("keyword:[甲]forbidden_word:[乙]")
    assert rule.name == "keyword and forbidden_word"
    assert rule.decide(["甲"]) is False


def test_the_words_of_counting_rules_keep_their_blanks_only_where_each_part_is_looked_at():
    assert parse_rule("model_keyword_num:[1,1, 甲]").decide(["甲"])
    assert not parse_rule("model_keyword_num_each:[1,1, 甲]").decide(["甲"])


def test_several_parts_are_asked_for_wherever_the_text_has_each_in_it():
    assert parse_rule("model_length_each:[1,2]").has_many_parts
    assert not parse_rule("model_length:[1,2]").has_many_parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not known"),
        ("sentences:[1,2]", "is not known"),
        ("keyword_num:[1,2,甲]", "is not known"),
        ("keyword:[teacher]", "is not known"),
        ("model_sentences:[1,2]", "is not known"),
        ("model_length:300", "cannot be read"),
        ("model_length:[300,many]", "cannot be read"),
        ("model_length:[300]", "needs two numbers"),
        ("model_length:['1','2']", "needs two numbers"),
        ("model_keyword_num:[甲,乙]", "must begin with two numbers"),
        ("keyword:[甲]\nforbidden_word:[乙]", "cannot be read"),
        ("Json:[a]", "cannot be read"),
        ("startswith:甲endswith:乙", "cannot be read"),
    ],
)
def test_what_the_published_code_cannot_decide_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_rule(text)


def test_punctuation_becomes_chinese_mark_by_mark():
    became = dict(zip(string.punctuation, chinese_punctuation(string.punctuation), strict=True))
    assert {mark for mark, chinese in became.items() if mark != chinese} == set("!#$%&(),.:;?*\\^")
    # All but the full stop are the fullwidth form of the same mark.
    assert all(ord(became[mark]) == ord(mark) + 0xFEE0 for mark in "!#$%&(),:;?*\\^")
    assert became["."] == "。"
    assert chinese_punctuation("“甲”") == '"甲"'


@pytest.mark.parametrize(
    ("text", "bare"),
    [("“甲”", "甲"), ('\n\n"甲`', "甲"), ("“甲", "“甲"), ("甲", "甲"), ("", ""), ("\n", ""), ('"', "")],
)
def test_quotation_marks_around_a_text_are_taken_off(text, bare):
    assert unquoted(text) == bare
