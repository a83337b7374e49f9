import json
import pickle
import statistics

import pytest

from misotune.data.guards.statistics import TextStatistics, language_of
from misotune.data.records import Record

SENTENCES = {
    "en": "The committee will meet again on Thursday to decide where the new library should be built.",
    "de": "Der Ausschuss tritt am Donnerstag wieder zusammen, um über den Standort der Bibliothek zu entscheiden.",
    "fr": "La commission se réunira de nouveau jeudi pour décider où construire la nouvelle bibliothèque.",
    "zh": "委员会将于星期四再次开会。会上将决定新图书馆应该建在哪里。",
    "ja": "委員会は木曜日に再び集まり、新しい図書館をどこに建てるかを決めます。",
    "ru": "Комитет снова соберётся в четверг, чтобы решить, где построить новую библиотеку.",
    "hi": "समिति गुरुवार को फिर से मिलेगी और तय करेगी कि नया पुस्तकालय कहाँ बनाया जाए।",
    "ar": "ستجتمع اللجنة مرة أخرى يوم الخميس لتقرر أين ستبنى المكتبة الجديدة.",
}


def record(instruction, output, *constraints, history=()):
    return Record("1", "s", "d", tuple(history), instruction, constraints, output)


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_of_plain_sentences(language):
    assert language_of(SENTENCES[language]) == language


@pytest.mark.parametrize(
    ("text", "fallback", "language"),
    [
        ("42", SENTENCES["de"], "de"),
        ("42", "6 * 7 = ?", "und"),
        ("", "", "und"),
        ("```python\nfor line in file:\n    print(line)\n```\n" + SENTENCES["fr"], "", "fr"),
        ("```python\nfor line in file:\n    print(line)", SENTENCES["fr"], "fr"),
        ("四十二。", SENTENCES["zh"], "zh"),
    ],
    ids=["short-answer", "no-letters", "empty", "code-first", "only-code", "short-chinese"],
)
def test_language_of_short_texts_and_code(text, fallback, language):
    assert language_of(text, fallback) == language


def test_figures_of_one_record():
    history = [{"role": "system", "content": "Ignored."}, {"role": "user", "content": "Hello"}]
    history.append({"role": "assistant", "content": "Ignored too."})
    row = record("Write it.", "One two, three. 四五", "No commas.", "In lower case.", history=history)
    _, figures = TextStatistics.measure(row)
    turn = "Write it.\nNo commas.\nIn lower case."
    assert figures == (len("Hello") + len(turn), 8, len(row.output), 5, 2, 2)


def test_summary_agrees_with_the_standard_library():
    texts = TextStatistics()
    lengths = [(i * 7919) % 1000 + 1 for i in range(1000)]
    for length in lengths:
        texts.add(texts.measure(record("x" * 20, "a" * length)))
    summary = texts.to_dict()["output_characters"]
    ordered = sorted(lengths)
    assert summary == {
        "total": sum(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "min": ordered[0],
        "p5": ordered[49],
        "p25": ordered[249],
        "p50": ordered[499],
        "p75": ordered[749],
        "p95": ordered[949],
        "p99": ordered[989],
        "max": ordered[-1],
    }


def test_shares_by_language_most_frequent_first():
    texts = TextStatistics()
    for language in ("de", "en", "en", "fr"):
        texts.add(texts.measure(record("Go on.", SENTENCES[language])))
    described = texts.to_dict()
    assert described["rows"] == 4
    assert list(described["languages"].items()) == [
        ("en", {"rows": 2, "share": 0.5}),
        ("de", {"rows": 1, "share": 0.25}),
        ("fr", {"rows": 1, "share": 0.25}),
    ]
    assert json.loads(json.dumps(described)) == described


def test_no_rows_have_no_figures():
    assert TextStatistics().to_dict() == {"rows": 0, "languages": {}}


def test_measures_travel_from_worker_processes():
    row = record("Go on.", SENTENCES["en"])
    assert pickle.loads(pickle.dumps(TextStatistics().measure))(row) == TextStatistics.measure(row)
    assert pickle.loads(pickle.dumps(TextStatistics.measure(row))) == TextStatistics.measure(row)


def test_four_bytes_a_figure():
    texts = TextStatistics()
    before = len(pickle.dumps(texts))
    measured = texts.measure(record("Go on.", SENTENCES["en"]))
    for _ in range(10_000):
        texts.add(measured)
    assert len(pickle.dumps(texts)) - before < 10_000 * 6 * 4 + 1000
