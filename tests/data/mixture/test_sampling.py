"""Which rows a mixture draws: balanced, by weight, without loss and without bias."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misotune.data.mixture.sampling import Pool, draw_rows, pool_totals, row_key

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=5)
epochs = st.sampled_from([1, 1.5, 2, 3])


def single_pools(numbers):
    return [Pool(f"d{i}", (i,), (number,)) for i, number in enumerate(numbers)]


def keys_of(numbers, seed=0):
    return [[row_key(seed, f"{source}/{row}") for row in range(number)] for source, number in enumerate(numbers)]


@given(sizes, epochs, st.integers(1, 7), st.none() | st.integers(1, 100))
def test_chunks_are_full_domains_balanced_and_no_row_is_drawn_too_often(numbers, max_epochs, per_chunk, max_rows):
    pools = single_pools(numbers)
    totals = pool_totals(pools, rows_per_chunk=per_chunk, max_epochs=max_epochs, max_rows=max_rows)
    assert sum(totals) % per_chunk == 0
    assert max(totals) - min(totals) <= 1
    assert max_rows is None or sum(totals) <= max_rows
    draws = list(draw_rows(pools, totals, keys_of(numbers), seed=0))
    assert [draw.source for draw in draws] == [i % len(pools) for i in range(len(draws))]
    for source, number in enumerate(numbers):
        times = Counter(draw.row for draw in draws if draw.source == source)
        assert sum(times.values()) <= max_epochs * number
        # A row comes again only when all others have come as often.
        assert not times or max(times.values()) - min(times.get(row, 0) for row in range(number)) <= 1
        assert [draw.times for draw in draws if draw.source == source] == [
            i // number for i in range(sum(times.values()))
        ]


@given(sizes)
def test_the_scarcest_domain_decides_the_length_where_nothing_repeats(numbers):
    totals = pool_totals(single_pools(numbers), rows_per_chunk=len(numbers), max_epochs=1, max_rows=None)
    assert totals == [min(numbers)] * len(numbers)


def test_repeats_end_at_the_largest_domain():
    pools = single_pools([10, 5, 4])
    for max_epochs, rounds in ((1, 4), (2, 8), (2.5, 10), (100, 10)):
        totals = pool_totals(pools, rows_per_chunk=3, max_epochs=max_epochs, max_rows=None)
        assert totals == [rounds] * 3


def test_without_chunks_and_weights_every_row_comes_once():
    pools = [Pool("", (0, 1, 2), (7, 100, 13))]
    totals = pool_totals(pools, rows_per_chunk=1, max_epochs=3, max_rows=None)
    draws = list(draw_rows(pools, totals, keys_of([7, 100, 13]), seed=0))
    assert sorted((draw.source, draw.row) for draw in draws) == [
        (source, row) for source, number in enumerate((7, 100, 13)) for row in range(number)
    ]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 10)), min_size=1, max_size=5),
    epochs,
    st.none() | st.integers(1, 100),
)
def test_weights_are_shares_of_rows_within_one_row(members, max_epochs, max_rows):
    numbers, weights = zip(*members, strict=True)
    pool = Pool("", tuple(range(len(members))), numbers, weights)
    (total,) = pool_totals([pool], rows_per_chunk=1, max_epochs=max_epochs, max_rows=max_rows)
    counts = pool.divide(total)
    assert sum(counts) == total
    for count, number, weight in zip(counts, numbers, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1
        assert count < max_epochs * number + 1


def test_an_epoch_of_one_and_nine_tenths_is_not_rounded_in_binary():
    assert Pool("", (0,), (10,)).most(1.9) == 19


def test_sources_of_a_domain_are_spread_over_its_rows():
    pool = Pool("chat", (0, 1), (500, 500), (3.0, 1.0))
    draws = list(draw_rows([pool], [400], keys_of([500, 500]), seed=0))
    assert Counter(draw.source for draw in draws) == {0: 300, 1: 100}
    first_half = Counter(draw.source for draw in draws[:200])
    # Hypergeometric: 50 expected, standard deviation 4.3; five of them.
    assert abs(first_half[1] - 50) < 22


def test_the_draw_depends_on_seed_and_ids_and_not_on_the_order_of_rows():
    ids = [f"row-{i}" for i in range(50)]

    def drawn(ids, seed):
        keys = [[row_key(seed, row) for row in ids]]
        return [ids[draw.row] for draw in draw_rows([Pool("", (0,), (50,))], [20], keys, seed)]

    shuffled = random.Random(1).sample(ids, k=50)
    assert drawn(ids, 0) == drawn(shuffled, 0)
    assert drawn(ids, 0) != drawn(ids, 1)


def test_a_second_epoch_has_another_order():
    draws = list(draw_rows([Pool("", (0,), (50,))], [100], keys_of([50]), seed=0))
    first, second = [draw.row for draw in draws[:50]], [draw.row for draw in draws[50:]]
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("per_chunk", [2, 3, 8])
def test_other_chunk_sizes_go_round_the_domains(per_chunk):
    pools = single_pools([30, 30, 30, 30])
    totals = pool_totals(pools, rows_per_chunk=per_chunk, max_epochs=1, max_rows=None)
    assert sum(totals) == 120 // per_chunk * per_chunk
