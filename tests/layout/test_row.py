import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from misotune.layout import RowLayout, pack
from misotune.layout.row import input_weights


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


def test_weights_go_to_their_samples():
    layout = RowLayout.from_lengths([([3, 1], 2), ([2], 1)], weights=[(0.75, 0.25), (1.0,)])
    assert [sample.weights for sample in layout.samples] == [(0.75, 0.25), (1.0,)]
    assert [sample.weights for sample in RowLayout.from_lengths([([3, 1], 2), ([2], 1)]).samples] == [(), ()]


SHARES = {
    "one-role-named": (["full", "constraint", "base"], {"full": 0.5}, [0.5, 0.25, 0.25]),
    "named-role-twice": (["full", "constraint", "constraint"], {"constraint": 0.5}, [0.5, 0.25, 0.25]),
    "all-named": (["full", "constraint", "base"], {"full": 0.5, "constraint": 0.3, "base": 0.2}, [0.5, 0.3, 0.2]),
    "named-role-lacking": (["constraint", "base"], {"full": 0.5}, [0.5, 0.5]),
    "other-roles-lacking": (["full"], {"full": 0.5}, [1.0]),
    "two-lacking": (["constraint", "base"], {"full": 0.25, "constraint": 0.5}, [2 / 3, 1 / 3]),
}


@pytest.mark.parametrize(("roles", "shares", "weights"), SHARES.values(), ids=SHARES)
def test_shares_of_roles_become_weights_of_inputs(roles, shares, weights):
    assert input_weights(roles, shares) == pytest.approx(weights, abs=1e-12)


def test_inputs_of_no_named_role_count_equally_where_nothing_is_left_for_them():
    """A row without constraint and base keeps its full instruction, whatever the roles that are asked for."""
    assert input_weights(["full"], {"constraint": 0.5, "base": 0.5}) == ()


@given(
    st.lists(st.sampled_from(["full", "constraint", "base"]), min_size=1, max_size=12),
    st.dictionaries(st.sampled_from(["full", "constraint", "base"]), st.floats(0.01, 0.3), min_size=1),
)
def test_weights_are_positive_equal_within_a_role_and_sum_to_one(roles, shares):
    weights = input_weights(roles, shares)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > 0
    for role in roles:
        assert len({weight for weight, other in zip(weights, roles, strict=True) if other == role}) == 1


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120))
def test_packing_loses_no_sample_and_overfills_no_row(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)


def test_packing_puts_each_sample_where_the_least_room_is_left():
    assert pack([6, 5, 4, 3, 2], capacity=10) == [[0, 2], [1, 3, 4]]


def test_sample_longer_than_a_row_gets_a_row_of_its_own():
    assert pack([3, 9, 2], capacity=8) == [[1], [0, 2]]
