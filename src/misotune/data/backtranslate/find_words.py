"""Constraints of words that a response meets: keywords, forbidden words, first and last words, case."""

import re
from random import Random

from misotune import verifiers
from misotune.data.backtranslate import vocabulary as vocab
from misotune.data.backtranslate.checks import first_word
from misotune.data.backtranslate.found import Finder, Found, Pair, at_least, fewer_than
from misotune.data.backtranslate.text import Text
from misotune.data.backtranslate.word_lists import FUNCTION_WORDS, LETTER_RATES, OVERUSED_WORDS

_NUM_CANDIDATES = 10
_LETTERS = re.compile(r"[a-z]")
_LAST_LINE_PREFIXES = ("####", "The answer is", "Answer:", "Final answer:", "In conclusion,", "In summary,", "Overall,")
_WHOLE_PHRASE = re.compile(r"[A-Z\"“']?[A-Za-z][A-Za-z ,'\u2019-]*[.!?:,]$")


def keywords(pair: Pair, draw: Random) -> Found | None:
    """One to three content words of the response that the instruction does not have."""
    words = pair.keywords
    if len(words) < 3:
        return None
    count = draw.choice((1, 1, 2, 2, 3)) if len(words) >= 6 else 1
    chosen = _different(draw.sample(words, min(len(words), count)))
    return Found(
        "one" if len(chosen) == 1 else "several",
        {"keywords": chosen},
        {"word": _written(chosen[0], pair.response), "words": [_written(word, pair.response) for word in chosen]},
        chosen,
    )


def keyword_frequency(pair: Pair, draw: Random) -> Found | None:
    """A content word that occurs several times; it counts as a whole word and as IFEval counts it."""
    counts = pair.response.vocabulary
    words = [word for word in pair.content if 2 <= counts[word] <= 12]
    words += [word for word in vocab.content_words(pair.response) if 3 <= counts[word] <= 12]
    if not words:
        return None
    word = draw.choice(sorted(set(words), key=lambda w: (-counts[w] * pair.vocabulary.rarity(w), w))[:4])
    whole, anywhere = counts[word], pair.response.lower.count(word)
    written = _written(word, pair.response)
    if draw.random() < 0.3 and anywhere <= 6:
        limit = anywhere + draw.choice((0, 1))
        return Found(
            "at_most",
            {"keyword": word, **fewer_than(limit, "frequency", "relation")},
            {"word": written, "n": limit},
            (word,),
        )
    limit = whole if whole <= 3 else whole - draw.choice((0, 1))
    return Found(
        "at_least",
        {"keyword": word, **at_least(limit, "frequency", "relation")},
        {"word": written, "n": limit},
        (word,),
    )


def forbidden_words(pair: Pair, draw: Random) -> Found | None:
    """Words one could expect and that do not occur: neighbours of the topic's words, or overused ones."""
    if len(pair.response.spoken) < 15:
        return None
    if draw.random() < 0.6:
        chosen = _missing_neighbours(pair, draw)
        if chosen:
            return _forbidden(chosen)
    # Only words that responses like these do use: the absence of others says nothing.
    missing = [word for word in OVERUSED_WORDS if word not in pair.response.all_words and not pair.is_asked(word)]
    weights = [pair.vocabulary.share(word) * (0.5 if word in FUNCTION_WORDS else 1) for word in missing]
    if not any(weight >= 0.01 for weight in weights):
        return None
    chosen = _different(draw.choices(missing, weights, k=draw.choice((1, 2, 2))))
    return _forbidden(chosen)


def letter_frequency(pair: Pair, draw: Random) -> Found | None:
    """A letter that occurs far less often than English has it."""
    num_letters = len(_LETTERS.findall(pair.response.lower))
    rare = []
    for letter, rate in LETTER_RATES.items():
        count, expected = pair.response.lower.count(letter), rate * num_letters / 1000
        if expected >= 3 and count <= 0.4 * expected and count <= 8:
            rare.append((letter, count))
    if not rare:
        return None
    letter, count = draw.choice(rare)
    limit = count + draw.choice((0, 1)) if count else 0
    kwargs = {"letter": letter, **fewer_than(limit, "let_frequency", "let_relation")}
    return Found("at_most" if limit else "none", kwargs, {"letter": letter, "n": limit})


def in_order(pair: Pair, draw: Random) -> Found | None:
    """Two keywords, one of which comes before the other."""
    words = pair.keywords
    if len(words) < 5:
        return None
    one, two = draw.sample(words, 2)
    if vocab.stem_of(one) == vocab.stem_of(two):
        return None
    lower = pair.response.lower
    first, second = sorted((one, two), key=lambda word: _place(word, lower))
    values = {"first": _written(first, pair.response), "second": _written(second, pair.response)}
    return Found(kwargs={"first": first, "second": second}, values=values, words=(first, second))


def first_sentence(pair: Pair, draw: Random) -> Found | None:
    """A keyword of the first sentence."""
    return _in_sentence(pair, 0, draw)


def last_sentence(pair: Pair, draw: Random) -> Found | None:
    """A keyword of the last sentence."""
    return _in_sentence(pair, -1, draw)


def start_word(pair: Pair, draw: Random) -> Found | None:
    """The first word, when it is a plain one."""
    word = first_word(pair.response.stripped)
    if not word.isascii() or not word.isalpha() or word.lower() in ("the", "a", "an"):
        return None
    if len(pair.response.spoken) < 8 or not pair.response.stripped.startswith(word):
        return None
    return Found(kwargs={"word": word}, values={"word": word}, words=(word.lower(),) if len(word) > 3 else ())


def start_phrase(pair: Pair, draw: Random) -> Found | None:
    """The first line or sentence, when it is short."""
    phrase = pair.response.sentences[0] if pair.response.sentences else ""
    return _phrase("start", phrase, pair) if len(pair.response.sentences) > 2 else None


def end_phrase(pair: Pair, draw: Random) -> Found | None:
    """The last sentence, when it is short."""
    phrase = pair.response.sentences[-1] if pair.response.sentences else ""
    return _phrase("end", phrase, pair) if len(pair.response.sentences) > 2 else None


def last_line(pair: Pair, draw: Random) -> Found | None:
    """How the last line begins, when that is how answers are marked."""
    if len(pair.response.lines) < 2:
        return None
    last = pair.response.lines[-1].strip()
    prefix = next((prefix for prefix in _LAST_LINE_PREFIXES if last.startswith(prefix)), None)
    if prefix is None or prefix.lower() in pair.instruction.lower:
        return None
    return Found("answer" if prefix == "####" else "plain", {"prefix": prefix}, {"prefix": prefix})


def capital_words(pair: Pair, draw: Random) -> Found | None:
    """Words in capitals: abbreviations and shouts of two letters or more."""
    count = len(re.findall(r"\b[A-Z]{2,}\b", pair.response.prose))
    if not 2 <= count <= 30:
        return None
    limit = count if count < 4 else min(count - draw.choice((0, 1, 2)), 8)
    return Found(kwargs=at_least(limit, "capital_frequency", "capital_relation"), values={"n": limit})


def lowercase(pair: Pair, draw: Random) -> Found | None:
    """English in small letters only."""
    return Found() if pair.response.text.islower() and _is_surely_english(pair.response) else None


def uppercase(pair: Pair, draw: Random) -> Found | None:
    """English in capital letters only."""
    return Found() if pair.response.text.isupper() and _is_surely_english(pair.response) else None


def _is_surely_english(response: Text) -> bool:
    return len(response.spoken) >= 6 and verifiers.language_of(response.text) == ("en", "English")


def _different(words: list[str]) -> list[str]:
    """Leaves out words that are forms of an earlier one."""
    chosen: list[str] = []
    for word in words:
        if vocab.stem_of(word) not in map(vocab.stem_of, chosen):
            chosen.append(word)
    return chosen


def _missing_neighbours(pair: Pair, draw: Random) -> list[str]:
    near: dict[str, int] = {}
    topic = [*vocab.content_words(pair.instruction)[:6], *pair.keywords]
    for word in topic:
        for other in pair.vocabulary.neighbours.get(word, ()):
            near[other] = near.get(other, 0) + 1
    missing = [
        word
        for word in sorted(near, key=lambda w: (-near[w], w))[:_NUM_CANDIDATES]
        # One link may be chance; a word that two words of the topic call for belongs to it.
        if near[word] > 1 and not pair.is_used(word) and not pair.is_asked(word)
    ]
    return _different(draw.sample(missing, min(len(missing), draw.choice((1, 2, 2)))))


def _forbidden(words: list[str]) -> Found:
    words = sorted(words)
    return Found(
        "one" if len(words) == 1 else "several", {"forbidden_words": words}, {"word": words[0], "words": words}, words
    )


def _in_sentence(pair: Pair, index: int, draw: Random) -> Found | None:
    if len(pair.response.sentences) < 3:
        return None
    sentence = Text(pair.response.sentences[index])
    if not 5 <= len(sentence.spoken) <= 40:
        return None
    words = [word for word in vocab.content_words(sentence) if not pair.is_asked(word)]
    words = [word for word in words if word in pair.vocabulary.num_with or pair.response.vocabulary.get(word, 0) > 1]
    if not words:
        return None
    word = draw.choice(words)
    return Found(kwargs={"word": word}, values={"word": _written(word, pair.response)}, words=(word,))


def _phrase(where: str, phrase: str, pair: Pair) -> Found | None:
    """A whole phrase of two to ten plain words, without figures: they would give an answer away."""
    phrase = phrase.strip().strip('"')
    if (
        not 2 <= len(phrase.split()) <= 10
        or not _WHOLE_PHRASE.match(phrase)
        or phrase.lower() in pair.instruction.lower
    ):
        return None
    if where == "end" and (phrase[-1] in ",:" or not pair.response.stripped.endswith(phrase)):
        return None
    kwargs = {"phrase": phrase} if where == "start" else {"end_phrase": phrase}
    words = [word for word in Text(phrase).vocabulary if vocab.is_content_word(word)]
    return Found(kwargs=kwargs, values={"phrase": phrase}, words=words)


def _place(word: str, lower: str) -> int:
    match = re.search(rf"\b{word}\b", lower)
    return match.start() if match else len(lower)


def _written(word: str, response: Text) -> str:
    """The word as the response always writes it, so that names keep their capitals."""
    return response.names.get(word, word)


FINDERS: dict[str, Finder] = {
    "keywords:existence": keywords,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "keyword:in_order": in_order,
    "keyword:first_sentence": first_sentence,
    "keyword:last_sentence": last_sentence,
    "start:word": start_word,
    "start:phrase": start_phrase,
    "startend:end_checker": end_phrase,
    "end:last_line": last_line,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_lowercase": lowercase,
    "change_case:english_capital": uppercase,
}
