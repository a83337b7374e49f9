"""Constraints of format that a response meets: lists, Markdown, sections, JSON, language, code."""

import json
import re
from random import Random

from misotune import verifiers
from misotune.data.backtranslate import text as parts
from misotune.data.backtranslate.checks import CHECKS
from misotune.data.backtranslate.found import Finder, Found, Pair, rounded_above

_SECTION = re.compile(r"^[#*\s]*(Section|Step|Part|Chapter|Day|Week|Scene|Question|Tip|Option)\s(\d+)\b", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[A-Za-z][A-Za-z' /-]{1,30}\](?!\()")
_TO_FILL_IN = re.compile(
    r"\b(your|insert|names?|date|company|address|number|title|city|state|e-?mail|phone|amount|position|recipient|"
    r"location|link|time|year|product|country|day|month|topic|organization|department)\b",
    re.IGNORECASE,
)
_POSTSCRIPT = re.compile(r"^P\.\s?S\.", re.MULTILINE)
_CODE_NAME = re.compile(r"\b(?:def|function|func|fn)\s+([A-Za-z]\w{2,40})\s*\(")
_TITLE = re.compile(r"^<<[A-Za-z][^<>=\n]{2,80}>>$", re.MULTILINE)
_LANGUAGE_LABELS = {
    **{
        name.lower(): name
        for name in ("Python", "JavaScript", "TypeScript", "Java", "Go", "Rust", "Ruby", "PHP", "SQL")
    },
    **{name.lower(): name for name in ("HTML", "CSS", "Swift", "Kotlin", "R", "C", "JSON", "YAML", "XML", "Bash")},
    **{"cpp": "C++", "c++": "C++", "csharp": "C#", "js": "JavaScript", "ts": "TypeScript"},
}


def bullets_exactly(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many bullets, where IFEval's count and ours agree."""
    count = pair.response.num_bullets
    if not 2 <= count <= 15 or "•" in pair.response.text or _is_nested(pair):
        return None
    return Found(kwargs={"num_bullets": count}, values={"n": count})


def bullets_at_least(pair: Pair, draw: Random) -> Found | None:
    """At least so many bullets."""
    count = pair.response.num_bullets
    if not 4 <= count <= 40:
        return None
    limit = count - draw.choice((0, 1) if count < 8 else (1, 2, 3))
    return Found(kwargs={"num_items": limit}, values={"n": limit})


def numbered_list(pair: Pair, draw: Random) -> Found | None:
    """One numbered list of exactly so many items, counting from 1."""
    count = len(pair.response.item_numbers)
    if not 2 <= count <= 20 or pair.response.item_numbers != list(range(1, count + 1)):
        return None
    return Found(kwargs={"num_items": count}, values={"n": count})


def no_list(pair: Pair, draw: Random) -> Found | None:
    """Running text, where a list would have been likely: several sentences."""
    if len(pair.response.sentences) < 4 or min(pair.response.word_counts) < 50 or pair.response.num_headings:
        return None
    if pair.response.is_list or max(len(line.split()) for line in pair.response.lines) < 25:
        return None
    return Found()


def headings(pair: Pair, draw: Random) -> Found | None:
    """At least so many Markdown headings."""
    count = pair.response.num_headings
    if count < 2:
        return None
    limit = min(count, 8) - draw.choice((0, 0, 1) if count > 2 else (0,))
    return Found(kwargs={"num_headings": limit}, values={"n": limit})


def plain_text(pair: Pair, draw: Random) -> Found | None:
    """No Markdown, in a response that is long enough for some."""
    is_long = min(pair.response.word_counts) >= 80
    return Found() if is_long and CHECKS["markdown:none"](pair.response) else None


def highlights(pair: Pair, draw: Random) -> Found | None:
    """At least so many parts in bold."""
    count = len(parts.EMPHASIS.findall(pair.response.prose))
    if count < 2:
        return None
    limit = min(count, 10) - draw.choice((0, 1) if count > 2 else (0,))
    return Found(kwargs={"num_highlights": limit}, values={"n": limit})


def sections(pair: Pair, draw: Random) -> Found | None:
    """Parts that are marked Section 1, Step 2, Day 3 and so on, from 1 in order."""
    marks = _SECTION.findall(pair.response.text)
    if len(marks) < 2 or len({name for name, _ in marks}) > 1:
        return None
    if [int(number) for _, number in marks] != list(range(1, len(marks) + 1)):
        return None
    name = marks[0][0]
    kwargs = {"section_spliter": name, "num_sections": len(marks)}
    return Found(kwargs=kwargs, values={"name": name, "n": len(marks)})


def title(pair: Pair, draw: Random) -> Found | None:
    """A title in double angular brackets on a line of its own."""
    return Found() if _TITLE.search(pair.response.text) else None


def json_format(pair: Pair, draw: Random) -> Found | None:
    """The whole response is a JSON object or list."""
    text = pair.response.stripped.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        json.loads(text)
    except ValueError:
        return None
    return Found("fenced" if pair.response.stripped.startswith("```") else "plain")


def placeholders(pair: Pair, draw: Random) -> Found | None:
    """At least so many placeholders such as [your name]."""
    found = _PLACEHOLDER.findall(pair.response.text)
    count = len(found)
    # Other texts stand in brackets too; those with none of the usual names are no forms to fill in.
    if not 2 * sum(1 for name in found if _TO_FILL_IN.search(name)) >= max(
        count, 1
    ) or count < pair.response.text.count("["):
        return None
    return Found("one" if count == 1 else "several", {"num_placeholders": count}, {"n": count})


def postscript(pair: Pair, draw: Random) -> Found | None:
    """A line that begins with P.S."""
    if not _POSTSCRIPT.search(pair.response.text):
        return None
    return Found(kwargs={"postscript_marker": "P.S."})


def two_responses(pair: Pair, draw: Random) -> Found | None:
    """Two answers with six asterisks between them."""
    parts_of = [part for part in pair.response.text.split("******") if part.strip()]
    return Found() if len(parts_of) == 2 else None


def repeat_prompt(pair: Pair, draw: Random) -> Found | None:
    """The response begins with the instruction, word for word, and goes on."""
    prompt = pair.instruction.stripped
    if not 3 <= len(prompt.split()) <= 40 or len(pair.response.stripped) < len(prompt) + 20:
        return None
    if not pair.response.lower.strip().startswith(prompt.lower()):
        return None
    return Found(kwargs={"prompt_to_repeat": prompt})


def language(pair: Pair, draw: Random) -> Found | None:
    """The response's language, where it is not English or the instruction is in another."""
    is_foreign = _is_foreign(pair.response)
    if len(pair.response.stripped) < 60 or not (is_foreign or _is_foreign(pair.instruction)):
        return None
    found = verifiers.language_of(pair.response.text)
    if found is None or (found[0] == "en") == is_foreign:
        return None
    return Found(kwargs={"language": found[0]}, values={"language": found[1]})


def code_blocks(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many fenced code blocks."""
    count = len(pair.response.code_blocks)
    if not 1 <= count <= 5:
        return None
    return Found("one" if count == 1 else "several", {"num_blocks": count}, {"n": count})


def code_language(pair: Pair, draw: Random) -> Found | None:
    """The label of the code blocks, where the words say so too: labels that were guessed are often wrong."""
    labels = {label.lower() for label in parts.FENCE_LABEL.findall(pair.response.text)[::2]}
    label = labels.pop() if len(labels) == 1 else ""
    name = _LANGUAGE_LABELS.get(label)
    if name is None or not {label, name.lower()} & (pair.response.vocabulary.keys() | pair.instruction.all_words):
        return None
    return Found(kwargs={"language": label}, values={"label": label, "language": name})


def bare_code(pair: Pair, draw: Random) -> Found | None:
    """Code alone, of two lines or more."""
    return Found() if len(pair.response.lines) > 1 and CHECKS["code:bare"](pair.response) else None


def function_name(pair: Pair, draw: Random) -> Found | None:
    """The name of a function that the code defines and the instruction does not name."""
    names = [name for name in _CODE_NAME.findall(pair.response.code) if name not in ("main", "__init__")]
    if not names or names[0].lower() in pair.instruction.lower:
        return None
    form = "only" if len(names) == 1 else "one_of_several"
    return Found(form, {"name": names[0]}, {"name": names[0]}, words=(names[0].lower(),))


def no_imports(pair: Pair, draw: Random) -> Found | None:
    """Python functions that import nothing."""
    is_python = re.search(r"^\s*def \w+\(.*\)[^\n]*:", pair.response.code, re.MULTILINE)
    return Found() if is_python and CHECKS["code:no_imports"](pair.response) else None


def max_line_characters(pair: Pair, draw: Random) -> Found | None:
    """No line of code longer than a customary width."""
    lines = pair.response.code.split("\n")
    longest = max(map(len, lines))
    limit = next((n for n in (60, 72, 79, 88, 100) if longest <= n), 0)
    if len(lines) < 4 or not limit or longest < 30:
        return None
    return Found(kwargs={"num_characters": limit}, values={"n": limit})


def max_code_lines(pair: Pair, draw: Random) -> Found | None:
    """At most so many lines of code."""
    count = sum(1 for line in pair.response.code.split("\n") if line.strip())
    if not 2 <= count <= 60:
        return None
    limit = count + draw.choice((0, 1)) if count < 8 else rounded_above(count, draw, 0.2)
    return Found(kwargs={"num_lines": limit}, values={"n": limit})


def _verified_alone(name: str) -> Finder:
    """A finder for a type without arguments: whether its own verifier says so."""

    def find(pair: Pair, draw: Random) -> Found | None:
        return Found() if CHECKS[name](pair.response) else None

    return find


def _is_foreign(text: parts.Text) -> bool:
    """Whether a text is in another language than English, beyond doubt: hardly a word of it is an English one."""
    return len(text.spoken) >= 8 and text.english_share < 0.08


def _is_nested(pair: Pair) -> bool:
    """Whether bullets stand on several levels: how many there are is then anyone's guess."""
    return (
        len({len(match.group()) - len(match.group().lstrip()) for match in parts.BULLET.finditer(pair.response.text)})
        > 1
    )


FINDERS: dict[str, Finder] = {
    "detectable_format:number_bullet_lists": bullets_exactly,
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": sections,
    "detectable_format:title": title,
    "detectable_format:json_format": json_format,
    "detectable_content:number_placeholders": placeholders,
    "detectable_content:postscript": postscript,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "language:response_language": language,
    "list:bullets": bullets_at_least,
    "list:numbered": numbered_list,
    "list:none": no_list,
    "markdown:headings": headings,
    "markdown:table": _verified_alone("markdown:table"),
    "markdown:none": plain_text,
    "code:blocks": code_blocks,
    "code:language": code_language,
    "code:bare": bare_code,
    "code:function_name": function_name,
    "code:no_comments": _verified_alone("code:no_comments"),
    "code:comments": _verified_alone("code:comments"),
    "code:no_imports": no_imports,
    "code:max_line_characters": max_line_characters,
    "code:max_lines": max_code_lines,
}
