"""The judge's answers are read as published, and what is no clear answer is told apart."""

# ruff: noqa: RUF001 -- the marks of Chinese are meant

import pytest

from misotune.evaluation.complexbench.answers import read_parts, read_verdict

HEADER = "【模型回复中评分问题的评测对象】\n"


@pytest.mark.parametrize(
    ("answer", "verdict", "is_clear"),
    [
        ("分析：是否满足？满足。\n答案：是", True, True),
        ("分析：是否满足？没有。\n答案：否\n", False, True),
        ("是", True, True),
        ("否。", False, True),
        ("答案：是\n再看一遍。\n答案：是", True, True),
        # The published code takes all of these for a no.
        ("答案：是\n不，答案：否", False, False),
        ("**答案**：是（模型是否满足：满足）", False, False),
        ("答案: 是，不是否", False, False),
        ("Yes.", False, False),
        # And this, the form of the answer repeated, for a yes.
        ("答案：是/否", True, True),
    ],
)
def test_a_verdict(answer, verdict, is_clear):
    assert read_verdict(answer) == (verdict, is_clear)


@pytest.mark.parametrize(
    ("answer", "parts", "is_clear"),
    [
        (f"整个回复。\n\n{HEADER}评分对象：all", ["全文"], True),
        (f"没有。\n\n{HEADER}评分对象：None", [], True),
        (f"{HEADER}评分对象：甲|| 乙 ||丙\n", ["甲", "乙", "丙"], True),
        (f"评分对象：甲\n{HEADER}评分对象：乙", ["乙"], True),
        (f"{HEADER}评测对象：乙", ["乙"], True),
        (f"{HEADER}评分对象：乙\n\n请注意，这里没有标点。", ["乙"], True),
        (f"{HEADER}评分对象：乙\n\n**注意**：好", ["乙"], True),
        (f"{HEADER}评分对象：乙\n\n注意：好", ["乙"], True),
        # Without the mark: what follows the last colon, or all of it.
        (f"{HEADER}甲乙", ["甲乙"], True),
        (f"{HEADER}标题：甲乙", ["甲乙"], True),
        ("None", [], True),
        ("对象是：甲乙", ["甲乙"], False),
        ("The response is fine.", ["The response is fine."], False),
    ],
)
def test_parts(answer, parts, is_clear):
    assert read_parts(answer, "全文") == (parts, is_clear)
