import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from misotune.layout import RowLayout, pack


def test_aligned_output_follows_every_input_at_once():
    layout = RowLayout.from_lengths([([3, 1], 2)], positions="aligned")
    assert layout.position_ids.tolist() == [0, 1, 2, 2, 3, 4]


def test_start_leaves_a_gap_behind_shorter_inputs():
    layout = RowLayout.from_lengths([([3, 1], 2)], positions="start")
    assert layout.position_ids.tolist() == [0, 1, 2, 0, 3, 4]


def test_successive_runs_on():
    layout = RowLayout.from_lengths([([3, 1], 2), ([2], 1)], positions="successive")
    assert layout.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("lengths", [([], 3), ([2, 0], 3), ([2], 0)], ids=["no-input", "empty-input", "no-output"])
def test_sample_without_tokens_is_refused(lengths):
    with pytest.raises(ValueError, match="a sample needs inputs and an output"):
        RowLayout.from_lengths([lengths])


def test_spans_cover_the_row_without_gap():
    layout = RowLayout.from_lengths([([7, 12, 5], 9), ([4], 6)])
    spans = [span for sample in layout.samples for span in (*sample.inputs, sample.output)]
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert layout.num_tokens == 43
    assert layout.position_ids.dtype == torch.long


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120))
def test_packing_loses_no_sample_and_overfills_no_row(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)


def test_packing_puts_each_sample_where_the_least_room_is_left():
    assert pack([6, 5, 4, 3, 2], capacity=10) == [[0, 2], [1, 3, 4]]


def test_sample_longer_than_a_row_gets_a_row_of_its_own():
    assert pack([3, 9, 2], capacity=8) == [[1], [0, 2]]
