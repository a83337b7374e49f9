"""What is seen while a run goes on: a view on a terminal, one line per log step elsewhere."""

import io

import pytest
from rich.console import Console

from misotune.cli.train_live import LiveView, metrics_line, training_watcher
from misotune.training.watching.groups import GroupLoss
from misotune.training.watching.metrics import StepMetrics

PLAN = {"name": "crab-[red]", "mode": "para", "trains": "all weights", "precision": "bf16", "steps": 100}


def make_metrics(step, loss=1.5):
    groups = {"source": {"crab": GroupLoss(1.4, 0.7, 70), "[bold]tulu": GroupLoss(1.7, 0.3, 30)}}
    return StepMetrics(step, 100, step / 100, loss, 1e-5, 0.75, 100.0, 400.0, 3.25, 2.0 * step, groups)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def draw(view, width=100, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    console.print(view)
    file.seek(0)
    return file.read()


def begun(clock, steps=0, seconds=3.0):
    view = LiveView(clock=clock)
    view.begin(PLAN)
    for step in range(1, steps + 1):
        clock.now += seconds
        view.add_metrics(make_metrics(step, 3.0 - 0.02 * step))
    return view


def test_view_shows_the_run_before_its_first_step_ends(clock):
    view = begun(clock)
    clock.now = 65
    shown = draw(view)
    assert "crab-[red]: para, all weights, bf16" in shown
    assert "step 0/100" in shown
    assert "1:05" in shown
    assert "the first step" in shown


def test_view_shows_figures_losses_by_group_and_events(clock):
    view = begun(clock, steps=40)
    view.add_event("saved step-40 [1.5 GiB]")
    shown = draw(view)
    for text in ("step 40/100", "40%", "loss 2.2000", "lowest 2.2000", "400 tokens/s", "100/s trained", "0.750"):
        assert text in shown
    for text in ("1.00e-05", "3.25 GiB", "by source", "crab 1.400", "[bold]tulu 1.700", "saved step-40 [1.5 GiB]", "█"):
        assert text in shown


def test_time_left_follows_the_last_steps_and_runs_down(clock):
    view = begun(clock, steps=1)
    assert view.seconds_left() is None
    view = begun(clock, steps=40)
    assert view.seconds_left() == pytest.approx(60 * 3.0)
    clock.now += 30
    assert view.seconds_left() == pytest.approx(60 * 3.0 - 30)
    assert "2:30 left" in draw(view)
    clock.now += 1000
    assert view.seconds_left() == 0


def test_view_of_the_last_step_says_that_the_model_is_saved(clock):
    assert "saving the model" in draw(begun(clock, steps=100))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_view_fits_the_terminal(clock, width):
    view = begun(clock, steps=60)
    view.add_event("a long event " * 20)
    assert max(map(len, draw(view, width).splitlines())) <= min(width, 100)


def test_view_in_ascii_where_the_terminal_has_nothing_else(clock):
    shown = draw(begun(clock, steps=60), encoding="ascii")
    assert "loss 1.8000 @" in shown
    assert shown.isascii()


def test_number_that_is_not_finite_is_seen(clock):
    view = begun(clock, steps=3)
    view.add_metrics(make_metrics(4, float("nan")))
    assert "!" in draw(view)


def test_terminal_shows_the_view_and_messages_in_their_order():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=90, color_system=None)
    with training_watcher(console, shows_plan=False) as watcher:
        watcher.on_message("before [the] plan")
        watcher.on_encode(10, 20)
        watcher.on_encode(20, 20)
        watcher.on_plan(PLAN)
        watcher.on_metrics(make_metrics(1))
        watcher.on_message("a warning")
    shown = file.getvalue()
    assert "before [the] plan" in shown
    assert shown.rindex("step 1/100") < shown.rindex("a warning")
    assert "20/20" not in shown[shown.rindex("step 1/100") :]


def test_elsewhere_there_is_one_plain_line_for_each_step():
    file = io.StringIO()
    with training_watcher(Console(file=file, width=400), shows_plan=False) as watcher:
        watcher.on_plan(PLAN)
        for step in (1, 2):
            watcher.on_metrics(make_metrics(step))
        watcher.on_message("[saved]")
    first, second, message = file.getvalue().splitlines()
    assert first == metrics_line(make_metrics(1))
    assert second.startswith("step 2/100  epoch 0.02  loss 1.5000  lr 1.00e-05  grad 0.750  400 tokens/s")
    assert second.endswith("source crab 1.400, [bold]tulu 1.700")
    assert message == "[saved]"


def test_other_ranks_draw_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    file = io.StringIO()
    with training_watcher(Console(file=file, force_terminal=True)) as watcher:
        assert watcher.on_metrics is None
        assert watcher.on_plan is None
    assert file.getvalue() == ""
