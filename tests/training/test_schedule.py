"""The order of samples: the same for any number of devices, with and without packing."""

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


def test_order_is_a_pure_function_of_seed_and_epoch():
    first = list(schedule_of([5] * 30).steps())
    assert list(schedule_of([5] * 30, num_devices=3, capacity=None).steps()) == first
    assert list(schedule_of([9] * 30).steps()) == first
    assert list(schedule_of([5] * 30, seed=4).steps()) != first
    # Epochs differ from one another, and looking back gives the same again.
    schedule = schedule_of([5] * 30, epochs=5.0)
    late = schedule.step_samples(24)
    assert schedule.step_samples(0) == first[0]
    assert schedule.step_samples(24) == late


def test_steps_and_epochs_whichever_comes_first():
    assert schedule_of([1] * 10).num_steps == 4  # 20 samples in steps of 6, the last of 2
    assert len(schedule_of([1] * 10).step_samples(3)) == 2
    assert schedule_of([1] * 10, max_steps=2).num_steps == 2
    assert schedule_of([1] * 10, max_steps=9, epochs=None).num_steps == 9
    assert schedule_of([1] * 10, epochs=0.5).num_stream_samples == 5
