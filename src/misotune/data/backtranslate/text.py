"""What a text is made of, counted once: words, sentences, paragraphs, lists, code.

The definitions here are the ones that our own verifiers (`checks.py`) are written in.
"""

import re
from functools import cached_property

from misotune.data.backtranslate.word_lists import FUNCTION_WORDS

# A mark of a list item at the start of a line, as Markdown has it.
BULLET = re.compile(r"^[ \t]*[*\-•+][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*(\d{1,3})[.)][ \t]+\S", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+\S.*$", re.MULTILINE)
TABLE_RULE = re.compile(r"^[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$", re.MULTILINE)
FENCED = re.compile(r"^[ \t]*```[^\n`]*\n.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
FENCE_LABEL = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)", re.MULTILINE)
EMPHASIS = re.compile(r"\*\*[^\s*][^*\n]*\*\*")
_UNSPOKEN = re.compile(r"```.*?```|`[^`\n]*`|https?://\S+|<<[^>\n]*>>|\S+@\S+\.\w+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_COUNTED_WORD = re.compile(r"\w+")
# Scripts that put no spaces between words: Thai to Khmer, Chinese, Japanese.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_SENTENCE_END = re.compile(r"(?<=[.!?。\uff01\uff1f])[\"'”\u2019)\]*_]*(?:\s+|$)|\n+")
# A full stop after these ends no sentence; reading on makes sentences longer, never shorter.
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No|approx|[A-Za-z])|^\s*\d+)\.$")
_CODE_LINE = re.compile(
    r"^\s*(?:(?:def|class|import|from|return|public|private|static|var|let|const|function|elif|else:|try:|"
    r"print|System\.|using|package|#include|SELECT|FROM|WHERE|INSERT|UPDATE|CREATE)\b.*|"
    r"(?:for|while|if|with)\b.*[:{(]\s*|</?[a-zA-Z!][^>]*>.*|[{}()\[\]]+[;,]?|.*[;{}]|[\w.\[\]]+\s*[-+*/]?=\s*\S.*|"
    r"[\w.]+\([^)]*\))\s*$"
)


class Text:
    """A text and its parts; each is found when it is first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.stripped = text.strip()
        self.lower = text.lower()

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Parts between blank lines."""
        return [part for part in re.split(r"\n[ \t]*\n", self.text) if part.strip()]

    @cached_property
    def sentences(self) -> list[str]:
        """Sentences: they end with . ! or ? before white space, or with the line."""
        found: list[str] = []
        start = 0
        for match in _SENTENCE_END.finditer(self.text):
            end = match.end()
            is_inside = "\n" not in match.group() and end < len(self.text)
            if is_inside and _ABBREVIATION.search(self.text[max(start, match.start() - 12) : match.start()]):
                continue
            if self.text[start:end].strip():
                found.append(self.text[start:end].strip())
            start = end
        if self.text[start:].strip():
            found.append(self.text[start:].strip())
        return found

    @cached_property
    def word_counts(self) -> tuple[int, int]:
        """Words as IFEval counts them (runs of letters and digits) and as an editor does (by white space)."""
        return len(_COUNTED_WORD.findall(self.text)), len(self.text.split())

    @cached_property
    def prose(self) -> str:
        """The text without code, links and calculator marks."""
        return _UNSPOKEN.sub(" ", self.text)

    @cached_property
    def spoken(self) -> list[str]:
        """The words of the prose in order, as they are written."""
        return _WORD.findall(self.prose)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """How often each word of the prose occurs, in lower case."""
        counts: dict[str, int] = {}
        for word in self.spoken:
            lower = word.lower()
            counts[lower] = counts.get(lower, 0) + 1
        return counts

    @cached_property
    def names(self) -> dict[str, str]:
        """Words of the prose that occur more than once and are always written alike, with capitals: by lower case."""
        forms: dict[str, set[str]] = {}
        for word in self.spoken:
            if not word.islower():
                forms.setdefault(word.lower(), set()).add(word)
        written = set(self.spoken)
        return {
            lower: next(iter(same))
            for lower, same in forms.items()
            if len(same) == 1 and lower not in written and self.vocabulary[lower] > 1
        }

    @cached_property
    def all_words(self) -> frozenset[str]:
        """Every word of the whole text, code and all, in lower case."""
        return frozenset(_WORD.findall(self.lower))

    @cached_property
    def num_bullets(self) -> int:
        """Lines that begin with a bullet."""
        return len(BULLET.findall(self.text))

    @cached_property
    def item_numbers(self) -> list[int]:
        """The numbers of the lines that begin with `1.` or `1)`, in order."""
        return [int(match.group(1)) for match in NUMBERED.finditer(self.text)]

    @cached_property
    def num_headings(self) -> int:
        """Markdown headings."""
        return len(HEADING.findall(FENCED.sub("", self.text)))

    @cached_property
    def code_blocks(self) -> list[str]:
        """Fenced code blocks, fences and all."""
        return FENCED.findall(self.text)

    @cached_property
    def code(self) -> str:
        """The code: what stands in fences, or the whole text when it is code alone."""
        if self.code_blocks:
            return "\n".join("\n".join(block.strip().split("\n")[1:-1]) for block in self.code_blocks)
        return self.text if self.is_bare_code else ""

    @cached_property
    def is_bare_code(self) -> bool:
        """Whether the text is code without fences."""
        if "```" in self.text:
            return False
        num_code = sum(1 for line in self.lines if _CODE_LINE.match(line))
        return 2 * num_code > len(self.lines)

    @cached_property
    def has_code(self) -> bool:
        """Whether there is code in the text, fenced or not."""
        return "```" in self.text or self.is_bare_code or sum(1 for x in self.lines if _CODE_LINE.match(x)) >= 3

    @cached_property
    def is_list(self) -> bool:
        """Whether some lines are list items."""
        return self.num_bullets + len(self.item_numbers) > 0

    @cached_property
    def is_unspaced(self) -> bool:
        """Whether the script has no spaces between words (one letter in twenty is enough)."""
        return 20 * len(_UNSPACED.findall(self.text)) > len(self.stripped)

    @cached_property
    def english_share(self) -> float:
        """Share of the words that are English function words: about 0.4 in prose, near 0 in other languages."""
        return sum(word.lower() in FUNCTION_WORDS for word in self.spoken) / max(len(self.spoken), 1)
