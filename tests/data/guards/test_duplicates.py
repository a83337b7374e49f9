import pickle
import random
from dataclasses import replace

import pytest

from misotune.data.guards.duplicates import EXACT, NEAR, Deduplication
from misotune.data.guards.text import shingles_of, visible_turns
from misotune.data.records import Record, Template
from misotune.errors import UsageError

POEM = Record("1", "s", "d", (), "Write a poem about rain.", ("Use no commas.", "Two lines."), "Rain falls.\nIt stops.")
VOCABULARY = [f"word{i}" for i in range(500)]


def verdicts(guard, records):
    return [guard.accept(record, guard.fingerprint(record)) for record in records]


def record_of(words, i=0):
    middle = len(words) // 4
    return Record(f"r{i}", "s", "d", (), " ".join(words[:middle]), (), " ".join(words[middle:]))


def jaccard(one, other):
    """By definition, on the sets themselves."""
    sets = [set(shingles_of("\n".join(text for _, text in visible_turns(record)), 5)) for record in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("how", ["exact", "near"])
@pytest.mark.parametrize(
    "same",
    [
        POEM,
        replace(POEM, id="2", source="other", domain="other"),
        replace(POEM, output=" Rain  falls.\r\n\tIt stops.\n"),
        replace(POEM, template=Template("{instruction} Mind this: {constraints}")),
        replace(POEM, instruction="Write a poem about rain. "),
    ],
    ids=["itself", "other-source", "other-white-space", "other-template", "space-at-the-end"],
)
def test_the_same_text_is_a_duplicate(how, same):
    assert verdicts(Deduplication(how), [POEM, same]) == [None, EXACT]


@pytest.mark.parametrize(
    "other",
    [
        replace(POEM, constraints=("Use no commas.",)),
        replace(POEM, constraints=("Two lines.", "Use no commas.")),
        replace(POEM, output="Rain falls.\nIt stops!"),
        replace(POEM, output="RAIN FALLS.\nIT STOPS."),
        replace(POEM, history=({"role": "system", "content": "Be kind."},)),
        replace(POEM, instruction="Write a poem about rain. Use", constraints=("no commas.", "Two lines.")),
    ],
    ids=["a-constraint-less", "other-order", "punctuation", "case", "history", "text-moved-between-fields"],
)
def test_any_other_text_is_kept_by_exact(other):
    words_moved = other.instruction != POEM.instruction
    assert verdicts(Deduplication("exact"), [POEM, other]) == [None, None] or words_moved


def test_turns_with_the_same_words_under_other_roles_differ():
    as_user = replace(POEM, history=({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}))
    as_system = replace(POEM, history=({"role": "system", "content": "Hi"}, {"role": "assistant", "content": "Yes"}))
    assert verdicts(Deduplication("exact"), [as_user, as_system]) == [None, None]


def test_the_first_row_stays():
    rows = [POEM, replace(POEM, id="2"), replace(POEM, id="3", output="No.")]
    assert verdicts(Deduplication("exact"), rows) == [None, EXACT, None]


def test_near_agrees_with_exact_jaccard_on_edited_rows():
    rng = random.Random(0)
    flags = {"well above": [], "well below": []}
    for _ in range(500):
        words = rng.choices(VOCABULARY, k=rng.randrange(60, 500))
        edited = list(words)
        for _ in range(rng.randrange(1, 20)):
            edited[rng.randrange(len(edited))] = "edited"
        one, other = record_of(words), record_of(edited, 1)
        similarity = jaccard(one, other)
        # Five standard errors of an estimate from 128 hashes at 0.8, and the bands' own loss is above four of them.
        where = "well above" if similarity > 0.93 else "well below" if similarity < 0.63 else None
        if where is not None:
            flags[where].append(verdicts(Deduplication("near"), [one, other])[1] == NEAR)
    assert len(flags["well above"]) > 30
    assert len(flags["well below"]) > 30
    assert all(flags["well above"])
    assert not any(flags["well below"])


def test_near_estimates_around_the_threshold_without_bias():
    rng = random.Random(1)
    share = []
    for _ in range(200):
        words = rng.sample(VOCABULARY, 280)
        # 276 shingles of which 30 change: 246 of 306 are shared, a Jaccard similarity of 0.804.
        edited = [*words]
        for at in range(20, 260, 40):
            edited[at] = f"edited{at}"
        one, other = record_of(words), record_of(edited, 1)
        assert jaccard(one, other) == pytest.approx(0.80, abs=0.01)
        share.append(verdicts(Deduplication("near"), [one, other])[1] == NEAR)
    assert 0.3 < sum(share) / len(share) < 0.75


@pytest.mark.parametrize(("threshold", "is_near"), [(0.5, True), (0.95, False)])
def test_the_threshold_decides(threshold, is_near):
    words = random.Random(2).sample(VOCABULARY, 200)
    edited = [*words]
    edited[50] = edited[120] = edited[160] = "edited"
    flagged = verdicts(Deduplication("near", threshold), [record_of(words), record_of(edited)])[1] == NEAR
    assert flagged is is_near


def test_a_candidate_of_the_bands_below_the_threshold_is_kept():
    words = random.Random(3).sample(VOCABULARY, 300)
    kept = 0
    for i in range(60):  # a band of eight hashes agrees in half of these pairs, an estimate of 0.8 has one in 1,000
        edited = [*words]
        for at in range(10, 290, 31):
            edited[at] = f"edited{i}-{at}"
        assert 0.65 < jaccard(record_of(words), record_of(edited)) < 0.69
        kept += verdicts(Deduplication("near"), [record_of(words), record_of(edited)])[1] is None
    assert kept >= 57


def test_short_rows_are_near_duplicates_only_when_nearly_the_same():
    short = Record("1", "s", "d", (), "What is 2 + 2?", (), "4")
    near = Deduplication("near")
    assert verdicts(near, [short, replace(short, output="5"), replace(short, instruction="WHAT IS 2 + 2?")]) == [
        None,
        None,
        NEAR,
    ]


def test_chinese_rows_are_compared_by_character():
    text = "".join(chr(0x4E00 + i) for i in random.Random(4).sample(range(5000), 400))
    changed = text[:200] + "新" + text[201:]
    one = Record("1", "s", "d", (), "请写", (), text)
    assert jaccard(one, replace(one, output=changed)) > 0.95
    assert verdicts(Deduplication("near"), [one, replace(one, output=changed), replace(one, output=text[::-1])]) == [
        None,
        NEAR,
        None,
    ]


def test_a_copy_in_a_worker_takes_the_same_fingerprints_and_carries_no_index():
    near = Deduplication("near", 0.7)
    verdicts(near, [POEM])
    copy = pickle.loads(pickle.dumps(near))
    assert copy.fingerprint(POEM) == near.fingerprint(POEM)
    assert copy.threshold == 0.7
    assert verdicts(copy, [POEM]) == [None]
    assert len(pickle.dumps(near)) < 200


def test_equal_ids_are_no_matter():
    rng = random.Random(5)
    rows = [record_of(rng.sample(VOCABULARY, 60)) for _ in range(20)]
    assert verdicts(Deduplication("near"), rows) == [None] * 20


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(UsageError, match="must be above 0 and at most 1"):
        Deduplication("near", threshold)
