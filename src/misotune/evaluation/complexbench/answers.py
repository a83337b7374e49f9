"""What the judge's answers say, read as the published code of ComplexBench reads them."""

import re

_VERDICT = re.compile("答案：是|答案：否")  # noqa: RUF001
_YES, _NO = "是", "否"
_PARTS = "【模型回复中评分问题的评测对象】"
_BEFORE_PARTS = ("评分对象：", "评测对象：")  # noqa: RUF001
_REMARKS = ("\n\n请注意", "\n\n**注意", "\n\n注意")
_WHOLE, _NONE = "all", "None"


def read_verdict(answer: str) -> tuple[bool, bool]:
    r"""Returns the verdict of an answer to the evaluation prompt, and whether the answer is clear.

    The published code takes what it cannot read for a no. That stays the verdict, but is told apart.

    >>> read_verdict("分析：很好。\n答案：是"), read_verdict("否"), read_verdict("Yes, it is.")
    ((True, True), (False, True), (False, False))
    """  # noqa: RUF002
    found = _VERDICT.findall(answer)
    if len(found) == 1:
        return _YES in found[0], True
    return _YES in answer and _NO not in answer, (_YES in answer) != (_NO in answer)


def read_parts(answer: str, response: str) -> tuple[list[str], bool]:
    r"""Returns the parts of the response that an answer to an extraction prompt names, and whether it is clear.

    >>> read_parts("【模型回复中评分问题的评测对象】\n评分对象：one || two", "one, two")
    (['one', 'two'], True)
    >>> read_parts("评分对象：all", "the response"), read_parts("评分对象：None", "the response")
    ((['the response'], True), ([], True))
    """  # noqa: RUF002
    *_, text = answer.rsplit(_PARTS + "\n", maxsplit=1)
    for remark in _REMARKS:
        text = text.rsplit(remark, maxsplit=1)[0]
    mark = next((mark for mark in (*_BEFORE_PARTS, "：") if mark in text), None)  # noqa: RUF001
    named = text if mark is None else text.rsplit(mark, maxsplit=1)[1]
    is_clear = mark in _BEFORE_PARTS or _PARTS in answer or named.strip() in (_WHOLE, _NONE)
    if named.startswith(_WHOLE):
        return [response], is_clear
    if _NONE in named:
        return [], is_clear
    return [part.strip() for part in named.split("||")], is_clear
