"""The order of samples: the same for any number of devices, with and without packing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from misotune.training.schedule import make_schedule

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def schedule_of(lengths, **changes):
    settings = {
        "batch_size": 6,
        "epochs": 2.0,
        "max_steps": None,
        "num_devices": 1,
        "capacity": 64,
        "seed": 3,
    } | changes
    return make_schedule(lengths, **settings)


@given(lengths, st.integers(1, 3), st.sampled_from([None, 60, 200]))
def test_rows_hold_each_sample_of_a_step_once_on_any_layout(lengths, num_devices, capacity):
    schedule = schedule_of(lengths, num_devices=num_devices, capacity=capacity)
    for step in range(schedule.num_steps):
        rows = schedule.step_rows(step)
        assert len(rows) == schedule.accumulation * num_devices
        assert sorted(entry for row in rows for entry in row) == sorted(schedule.step_samples(step))
        if capacity is not None:
            assert all(sum(lengths[i] for _, i in row) <= capacity for row in rows)


@given(lengths)
def test_every_epoch_holds_every_sample_once(lengths):
    schedule = schedule_of(lengths)
    stream = [entry for step in schedule.steps() for entry in step]
    assert sorted(stream) == [(epoch, i) for epoch in range(2) for i in range(len(lengths))]


def test_order_is_a_pure_function_of_seed_epoch_and_lengths():
    first = list(schedule_of([5] * 30).steps())
    assert list(schedule_of([5] * 30, num_devices=3, capacity=None).steps()) == first
    assert list(schedule_of([9] * 30).steps()) == first
    assert list(schedule_of([5] * 30, seed=4).steps()) != first
    # Epochs differ from one another, and looking back gives the same again.
    schedule = schedule_of([5] * 30, epochs=5.0)
    late = schedule.step_samples(24)
    assert schedule.step_samples(0) == first[0]
    assert schedule.step_samples(24) == late


@given(lengths, st.integers(1, 3), st.sampled_from([None, 60, 200]))
def test_which_samples_a_step_has_depends_on_no_device_and_no_packing(lengths, num_devices, capacity):
    steps = list(schedule_of(lengths).steps())
    assert list(schedule_of(lengths, num_devices=num_devices, capacity=capacity).steps()) == steps


@given(lengths, st.integers(1, 9), st.floats(0.2, 3.0))
def test_the_two_longest_samples_come_first(lengths, batch_size, epochs):
    schedule = schedule_of(lengths, batch_size=batch_size, epochs=epochs)
    stream = [i for step in schedule.steps() for epoch, i in step if epoch == 0]
    in_order = sorted((lengths[i] for i in stream), reverse=True)
    first = [lengths[i] for epoch, i in schedule.step_samples(0) if epoch == 0]
    assert max(first) == in_order[0]
    second = [lengths[i] for epoch, i in schedule.step_samples(1) if epoch == 0] if schedule.num_steps > 1 else []
    if second:
        assert max(second) in in_order[:2]
        # Of whole steps, no later one holds more, unless a longest sample left it.
        sums = [sum(lengths[i] for _, i in step) for step in schedule.steps() if {e for e, _ in step} == {0}]
        whole = [total for total, step in zip(sums, schedule.steps(), strict=False) if len(step) == batch_size]
        assert not whole or whole[0] == max(whole)


@given(lengths, st.integers(1, 9), st.floats(0.2, 3.0))
def test_the_same_samples_are_trained_on_whichever_come_first(lengths, batch_size, epochs):
    """The plain order of the seed, cut where the run ends, has the same samples."""
    schedule = schedule_of(lengths, batch_size=batch_size, epochs=epochs)
    number = min(schedule.num_stream_samples, len(lengths))
    plain = np.random.default_rng([schedule.seed, 0]).permutation(len(lengths))[:number]
    stream = [i for step in schedule.steps() for epoch, i in step if epoch == 0]
    assert sorted(stream) == sorted(plain.tolist())


def test_only_the_first_steps_and_where_their_samples_come_from_differ_from_the_plain_order():
    lengths = np.random.default_rng(0).integers(10, 60, 600).tolist()
    schedule = schedule_of(lengths, epochs=1.0)
    plain = np.random.default_rng([schedule.seed, 0]).permutation(600).reshape(100, 6)
    ours = np.array([[i for _, i in step] for step in schedule.steps()])
    # Two steps exchanged, and two samples: at most two steps at the front and four where they came from.
    assert 0 < (plain != ours).any(axis=1).sum() <= 6


def test_the_fullest_row_of_a_step_runs_first_on_every_device():
    schedule = schedule_of([5, 60, 10, 20, 30, 40] * 4, capacity=64, num_devices=2)
    for step in range(schedule.num_steps):
        tokens = [sum(schedule.lengths[i] for _, i in row) for row in schedule.step_rows(step)]
        assert tokens == sorted(tokens, reverse=True)


def test_steps_and_epochs_whichever_comes_first():
    assert schedule_of([1] * 10).num_steps == 4  # 20 samples in steps of 6, the last of 2
    assert len(schedule_of([1] * 10).step_samples(3)) == 2
    assert schedule_of([1] * 10, max_steps=2).num_steps == 2
    assert schedule_of([1] * 10, max_steps=9, epochs=None).num_steps == 9
    assert schedule_of([1] * 10, epochs=0.5).num_stream_samples == 5
