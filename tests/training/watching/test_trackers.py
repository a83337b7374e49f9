"""Trackers get numbers, the recipe and the plan, never ask, and never end a run; those not installed are skipped."""

import json
import sqlite3
import sys

import pytest

from misotune.errors import RunError, UsageError
from misotune.training.prepared import Watcher
from misotune.training.run import train
from misotune.training.watching import trackers as module
from misotune.training.watching.trackers import check_trackers

TEXTS = ("Write about", "Use no commas", "All about")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def settings_for(*names):
    return {"report_to": list(names), "max_steps": 3, "trial_save": False}


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def events(run, kind):
    found = (json.loads(line) for line in run.events.read_text().splitlines())
    return [event["text"] for event in found if event["kind"] == kind]


def assert_holds_no_text(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(text.encode() in content for text in TEXTS), path


class Recorder:
    """A tracker that keeps what it gets, and fails when told to."""

    made = None
    fails_at = None

    def __init__(self, run, folder, settings, first_step):
        self.settings, self.first_step = settings, first_step
        self.logged, self.exit_code = [], None
        Recorder.made = self

    def log(self, numbers, step):
        if step == Recorder.fails_at:
            raise ConnectionError("the server is gone\nand more")
        self.logged.append((step, dict(numbers)))

    def close(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(module._TRACKERS, "wandb", Recorder)
    monkeypatch.setattr("misotune.training.prepared.check_trackers", lambda names: None)
    monkeypatch.setattr(Recorder, "fails_at", None)


def test_tracker_gets_every_line_the_recipe_and_the_plan(make_recipe, recorder):
    recipe = make_recipe(train=settings_for("wandb"))
    run = train(recipe, "name: test\n")
    got = Recorder.made
    assert [step for step, _ in got.logged] == [1, 2, 3]
    assert [numbers["train/loss"] for _, numbers in got.logged] == losses(run)
    assert {"loss_by_inputs/3", "speed/total_tokens_per_s", "memory/peak_gib"} <= set(got.logged[0][1])
    assert all(isinstance(value, int | float) for _, numbers in got.logged for value in numbers.values())
    assert got.settings["recipe"]["train"]["max_steps"] == 3
    assert got.settings["plan"]["steps"] == 3
    assert not any(text in json.dumps(got.settings) for text in TEXTS)
    assert got.exit_code == 0


def test_tracker_that_fails_is_left_out_and_the_run_goes_on(make_recipe, recorder, monkeypatch):
    monkeypatch.setattr(Recorder, "fails_at", 2)
    said = []
    run = train(make_recipe(train=settings_for("wandb")), "name: test\n", watcher=Watcher(on_message=said.append))
    assert run.is_finished()
    assert [step for step, _ in Recorder.made.logged] == [1]
    (warning,) = events(run, "warning")
    assert warning == (
        "train.report_to: wandb failed and gets nothing more (the server is gone); metrics.jsonl has everything"
    )
    assert warning in said


def test_tracker_that_cannot_start_stops_the_run_before_the_model_is_loaded(make_recipe, recorder, monkeypatch):
    def refuse(*arguments):
        raise ValueError("no key")

    monkeypatch.setitem(module._TRACKERS, "trackio", refuse)
    monkeypatch.setattr("misotune.training.building.load_model", lambda *arguments: pytest.fail("the model was loaded"))
    with pytest.raises(RunError, match=r"train.report_to: trackio cannot be started \(no key\); leave it out to train"):
        train(make_recipe(train=settings_for("wandb", "trackio")), "name: test\n")
    assert Recorder.made.exit_code == 1


def test_tracker_learns_that_the_run_failed(make_recipe, recorder):
    class PowerCut(Exception):
        pass

    def cut_power(metrics):
        raise PowerCut

    with pytest.raises(PowerCut):
        train(make_recipe(train=settings_for("wandb")), "name: test\n", watcher=Watcher(on_metrics=cut_power))
    assert Recorder.made.exit_code == 1


def test_missing_package_is_named_with_the_command(make_recipe, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"train.report_to: wandb is not installed; pip install wandb"):
        check_trackers(["wandb"])
    with pytest.raises(UsageError, match=r"tensorboard is not installed; pip install tensorboard"):
        train(make_recipe(train=settings_for("tensorboard"), model={"name": "nobody/nothing"}), "name: test\n")


def test_tensorboard_reads_what_was_written(make_recipe):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(make_recipe(train=settings_for("tensorboard")), "name: test\n")
    found = reading.EventAccumulator(str(run.trackers / "tensorboard")).Reload()
    scalars = found.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx(losses(run), rel=1e-6)
    assert "recipe/text_summary" in found.Tags()["tensors"]
    assert_holds_no_text(run.trackers)


def test_wandb_works_off_line_and_asks_nothing(make_recipe, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("it asked"))
    monkeypatch.setattr(sys, "stdin", None)
    run = train(make_recipe(train=settings_for("wandb")), "name: test\n")
    (folder,) = (run.trackers / "wandb" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"learning_rate" in content
    assert_holds_no_text(run.trackers)


def test_trackio_keeps_its_numbers_on_this_machine(make_recipe, tmp_path, capsys):
    pytest.importorskip("trackio")
    run = train(make_recipe(train=settings_for("trackio")), "name: test\n")
    assert capsys.readouterr().out == ""
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [1, 2, 3]
    assert [json.loads(metrics)["train/loss"] for _, metrics in rows] == pytest.approx(losses(run))
    assert_holds_no_text(tmp_path / "trackio")
