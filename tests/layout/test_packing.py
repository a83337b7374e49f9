"""Packing: each sample once, within the capacity, with little room left over."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.layout import pack, spread

lengths = st.lists(st.integers(1, 100), max_size=60)


@given(lengths, st.integers(1, 120))
def test_packed_rows_hold_each_sample_once_within_the_capacity(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= capacity for row in rows)
    # No two rows could be one, so at most every second half is empty.
    sums = sorted(min(sum(lengths[i] for i in row), capacity) for row in rows)
    assert all(one + other > capacity for one, other in pairwise(sums))


@given(lengths, st.integers(1, 12))
def test_spread_rows_hold_each_sample_once_and_are_even(lengths, num_rows):
    rows = spread(lengths, num_rows)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert len(rows) == min(num_rows, len(lengths))
    if rows:
        sums = [sum(lengths[i] for i in row) for row in rows]
        # Graham's bound, against a lower bound of the best arrangement.
        assert max(sums) <= sum(lengths) / len(rows) + max(lengths)
        assert max(sums) - min(sums) <= max(lengths)


def real_lengths(folder):
    """Characters of real conversations (ShareGPT, Alpaca), four to a token: of every length, with a long tail."""
    import gzip

    with gzip.open(folder / "chat/sharegpt_sample.jsonl.gz", "rt", encoding="utf-8") as file:
        chats = [sum(len(turn["value"]) for turn in json.loads(line)["conversations"]) for line in file]
    with gzip.open(folder / "chat/alpaca_en_demo.json.gz", "rt", encoding="utf-8") as file:
        pairs = [len(row["instruction"] + row["input"] + row["output"]) for row in json.load(file)]
    return [max(1, characters // 4) for characters in chats + pairs]


@pytest.mark.parametrize("capacity", [2048, 4096, 8192])
def test_ten_thousand_rows_of_real_lengths_waste_less_than_one_percent(shared_data, capacity):
    lengths = [length for length in real_lengths(shared_data) if length <= capacity]
    chosen = random.Random(0).choices(lengths, k=10_000)
    rows = pack(chosen, capacity)
    assert 1 - sum(chosen) / (len(rows) * capacity) < 0.01
