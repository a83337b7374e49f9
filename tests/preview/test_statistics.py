from collections import Counter
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.preview.conftest import make_chat, make_row

from misotune.layout import encode_sample
from misotune.preview.statistics import account_lines, histogram, measure, summarize


def test_statistics_are_those_of_the_encoded_samples(template, make_reading):
    rows = [make_row("a"), make_chat("b"), make_row("c", inputs=(("full", "one"),), output="word " * 9)]
    encoded = [encode_sample(row, template) for row in rows]
    found = measure([(i, [row]) for i, row in enumerate(rows)], 9, make_reading())
    assert (found.num_rows, found.num_measured, found.num_samples) == (9, 3, 3)
    assert found.is_drawn
    assert found.inputs == Counter(len(e.inputs) for e in encoded)
    assert list(found.values["whole"]) == [e.num_tokens for e in encoded]
    assert list(found.values["pair"]) == [e.longest_pair for e in encoded]
    assert found.lengths()["output"].median == median(len(e.output) for e in encoded)
    trained, tokens = sum(e.num_trained_tokens for e in encoded), sum(e.num_tokens for e in encoded)
    assert found.trained_share == pytest.approx(trained / tokens)
    assert found.roles == {"full": 3, "constraint": 1, "base": 1}


def test_rows_left_out_are_counted_by_reason_with_the_first(make_reading):
    rows = [make_row("a", inputs=(("base", "x"),)), make_row("b"), make_row("c", inputs=(("base", "x"),))]
    found = measure([(i, [row]) for i, row in enumerate(rows)], 3, make_reading("sft"))
    assert found.left_out == {"miso.mode=sft needs an input of role 'full', and it has none": 2}
    assert list(found.examples.values()) == [["a", "c"]]
    assert found.num_samples == 1
    found = measure([(0, [make_row("long")])], 1, make_reading(max_length=5))
    assert (found.left_out, found.num_samples, found.lengths()) == ({"too long": 1}, 0, {})
    assert found.to_dict()["left_out"] == [{"reason": "too long", "samples": 1, "first": ["long"]}]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_every_value_is_in_one_bar(values):
    bars = histogram(values)
    assert sum(bar.number for bar in bars) == len(values)
    assert bars[0].low == min(values)
    assert bars[-1].high >= max(values)
    assert summarize(values).max == max(values)


def test_account_lines_keep_every_number_and_leave_out_empty_groups():
    account = {"read": 4, "dropped": {"no output": 3}, "bad": {}, "text": {"length": {"mean": 1.5}}, "first": ["x"]}
    assert account_lines(account) == [
        (0, "read", 4),
        (0, "dropped", 3),
        (1, "no output", 3),
        (0, "text", ""),
        (1, "length", ""),
        (2, "mean", 1.5),
    ]
