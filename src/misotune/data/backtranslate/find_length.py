"""Constraints of length that a response meets: words, sentences, paragraphs, lines, characters."""

from random import Random

from misotune.data.backtranslate.checks import first_word
from misotune.data.backtranslate.found import (
    Finder,
    Found,
    Pair,
    at_least,
    fewer_than,
    rounded_above,
    rounded_below,
)
from misotune.data.backtranslate.word_lists import ORDINALS


def number_words(pair: Pair, draw: Random) -> Found | None:
    """At least or at most so many words, by IFEval's count and by white space."""
    low, high = min(pair.response.word_counts), max(pair.response.word_counts)
    if low < 8:
        return None
    if low >= 40 and draw.random() < 0.5:
        limit = rounded_below(low, draw)
        return Found("at_least", at_least(limit, "num_words", "relation"), {"n": limit})
    limit = rounded_above(high, draw, 0.3)
    return Found("at_most", fewer_than(limit, "num_words", "relation"), {"n": limit})


def words_between(pair: Pair, draw: Random) -> Found | None:
    """From so many to so many words."""
    low, high = min(pair.response.word_counts), max(pair.response.word_counts)
    if low < 30:
        return None
    low, high = rounded_below(low, draw, 0.2), rounded_above(high, draw, 0.2)
    return Found(kwargs={"low": low, "high": high}, values={"low": low, "high": high})


def max_characters(pair: Pair, draw: Random) -> Found | None:
    """At most so many characters: for texts as long as a message or a post."""
    length = len(pair.response.stripped)
    if not 30 <= length <= 280 or "\n" in pair.response.stripped:
        return None
    limit = next((n for n in (80, 100, 140, 160, 200, 280) if length <= n), 280)
    return Found(kwargs={"num_characters": limit}, values={"n": limit})


def number_sentences(pair: Pair, draw: Random) -> Found | None:
    """At least or at most so many sentences of running text."""
    count = len(pair.response.sentences)
    if pair.response.is_list or pair.response.num_headings or min(pair.response.word_counts) < 8 * count or count > 40:
        return None
    if count == 1:
        return Found("one", fewer_than(1, "num_sentences", "relation"))
    if count >= 4 and draw.random() < 0.5:
        limit = count - draw.choice((0, 1))
        return Found("at_least", at_least(limit, "num_sentences", "relation"), {"n": limit})
    limit = count + draw.choice((0, 0, 1) if count < 8 else (0, 1, 2))
    return Found("at_most", fewer_than(limit, "num_sentences", "relation"), {"n": limit})


def max_sentence_words(pair: Pair, draw: Random) -> Found | None:
    """No sentence longer than so many words: for texts of short sentences."""
    if len(pair.response.sentences) < 3 or pair.response.is_list:
        return None
    longest = max(len(sentence.split()) for sentence in pair.response.sentences)
    if not 8 <= longest <= 30:
        return None
    limit = rounded_above(longest, draw, 0.1)
    return Found(kwargs={"num_words": limit}, values={"n": limit})


def max_word_letters(pair: Pair, draw: Random) -> Found | None:
    """No word of more than so many letters."""
    if len(pair.response.spoken) < 12:
        return None
    longest = max(map(len, pair.response.all_words), default=0)
    if not 4 <= longest <= 10:
        return None
    return Found(kwargs={"num_letters": longest}, values={"n": longest})


def paragraphs(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many paragraphs between blank lines."""
    count = len(pair.response.paragraphs)
    if not _is_essay(pair, 2, 8):
        return None
    return Found(kwargs={"num_paragraphs": count}, values={"n": count})


def single_paragraph(pair: Pair, draw: Random) -> Found | None:
    """One paragraph, without a line break."""
    if len(pair.response.lines) != 1 or len(pair.response.sentences) < 3:
        return None
    return Found()


def lines(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many lines: for verse and other texts of short lines."""
    count = len(pair.response.lines)
    if not 3 <= count <= 20 or pair.response.is_list or pair.response.num_headings:
        return None
    if max(len(line.split()) for line in pair.response.lines) > 12:
        return None
    return Found(kwargs={"num_lines": count}, values={"n": count})


def max_paragraph_words(pair: Pair, draw: Random) -> Found | None:
    """No paragraph longer than so many words."""
    if not _is_essay(pair, 3, 12):
        return None
    longest = max(len(paragraph.split()) for paragraph in pair.response.paragraphs)
    if not 20 <= longest <= 120:
        return None
    limit = rounded_above(longest, draw, 0.2)
    return Found(kwargs={"num_words": limit}, values={"n": limit})


def starred_paragraphs(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many parts divided by ***, as IFEval counts paragraphs."""
    text = pair.response.text
    count = text.count("***") + 1
    if not 2 <= count <= 8 or "****" in text or sum(line.strip() == "***" for line in pair.response.lines) != count - 1:
        return None
    return Found(kwargs={"num_paragraphs": count}, values={"n": count})


def nth_paragraph_first_word(pair: Pair, draw: Random) -> Found | None:
    """Exactly so many paragraphs, and the first word of one of them."""
    parts = pair.response.paragraphs
    if not _is_essay(pair, 2, 8) or len(pair.response.stripped.split("\n\n")) != len(parts):
        return None
    n = draw.randrange(1, min(len(parts), 6) + 1)
    word = first_word(parts[n - 1].strip())
    if not word.isascii() or not word.isalpha() or not parts[n - 1].strip().startswith(word):
        return None
    kwargs = {"num_paragraphs": len(parts), "nth_paragraph": n, "first_word": word.lower()}
    return Found(kwargs=kwargs, values={"n": len(parts), "nth": ORDINALS[n], "nth_digit": n, "word": word})


def _is_essay(pair: Pair, least: int, most: int) -> bool:
    """Whether the response is running text in so many paragraphs of more than a few words."""
    parts = pair.response.paragraphs
    if not least <= len(parts) <= most or pair.response.is_list or pair.response.num_headings:
        return False
    return len(pair.response.spoken) >= 12 * len(parts)


FINDERS: dict[str, Finder] = {
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": starred_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length:words_between": words_between,
    "length:max_characters": max_characters,
    "length:paragraphs": paragraphs,
    "length:lines": lines,
    "length:single_paragraph": single_paragraph,
    "length:max_sentence_words": max_sentence_words,
    "length:max_paragraph_words": max_paragraph_words,
    "length:max_word_letters": max_word_letters,
}
