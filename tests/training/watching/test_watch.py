"""What a run leaves to be read: events, metrics without broken lines, a report while it goes on and at its end."""

import json
from pathlib import Path

import pytest
from transformers import TrainerState

from misotune.errors import RunError
from misotune.runs import RunFolder
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train
from misotune.training.watching import metrics as metrics_module
from misotune.training.watching import watch as module
from misotune.training.watching.events import has_recorded_stop, record_event
from misotune.training.watching.groups import GroupLosses
from misotune.training.watching.metrics import MetricsWriter, drop_lines_after


def events_of(run):
    return [json.loads(line) for line in run.events.read_text().splitlines()]


class PowerCut(Exception):
    pass


def test_events_are_written_by_the_main_rank_into_a_run_folder_alone(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    record_event(run, "warning", "two\nlines, é")
    record_event(RunFolder(tmp_path / "not-there"), "warning", "lost")
    monkeypatch.setenv("RANK", "1")
    record_event(run, "warning", "of another rank")
    (event,) = events_of(run)
    assert event.keys() == {"time", "kind", "text"}
    assert (event["kind"], event["text"]) == ("warning", "two\nlines, é")
    assert event["time"].endswith("+00:00")
    assert not (tmp_path / "not-there").exists()


def test_run_records_its_start_and_end_and_has_a_finished_report(make_recipe):
    run = train(make_recipe(), "name: test  # recipe.yaml:1\n")
    kinds = [event["kind"] for event in events_of(run)]
    assert (kinds[0], kinds[-1]) == ("start", "stop")
    assert events_of(run)[0]["text"] == "4 steps of 4 samples on 1 device(s)"
    assert events_of(run)[-1]["text"] == f"finished: {run.final}"
    page = run.report.read_text()
    assert 'class="state finished"' in page
    assert "4 of 4" in page
    assert "recipe.yaml:1" in page
    assert "refresh" not in page


def test_report_can_be_read_while_the_run_goes_on(make_recipe, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(module, "_REPORT_PART", 0)
    recipe = make_recipe()
    pages = []

    def read_page(metrics):
        # The page of the line before: the next one is written behind this call.
        pages.append(RunFolder(run_path).report.read_text())

    run_path = Path(recipe.output.runs_dir) / recipe.name
    train(recipe, "name: test\n", watcher=Watcher(on_metrics=read_page))
    assert "No step has ended yet." in pages[0]
    assert ["2 of 4" in page for page in pages] == [False, False, True, False]
    assert all('class="state running"' in page and 'http-equiv="refresh"' in page for page in pages)


def test_interrupted_run_says_why_and_goes_on_in_the_same_files(make_recipe):
    def cut_power(metrics):
        if metrics.step == 3:
            raise PowerCut("the lights went out")

    recipe = make_recipe(train={"save_every_steps": 2})
    with pytest.raises(PowerCut):
        train(recipe, "name: test\n", watcher=Watcher(on_metrics=cut_power))
    run = RunFolder(Path(recipe.output.runs_dir) / recipe.name)
    page = run.report.read_text()
    assert 'class="state stopped"' in page
    assert "the lights went out" in page
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    train(recipe, "name: test\n", resume=True)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3, 4]
    told = [event["text"] for event in events_of(run) if event["kind"] in ("stop", "resume")]
    assert told[0] == "the lights went out"
    assert told[1].startswith("goes on after step 2 of 4 steps")
    assert told[2].startswith("finished")


def test_end_that_is_recorded_is_not_recorded_again(tmp_path):
    run = RunFolder(tmp_path)
    assert not has_recorded_stop(run)
    record_event(run, "start", "x")
    assert not has_recorded_stop(run)
    record_event(run, "stop", "x")
    record_event(run, "warning", "x")
    assert has_recorded_stop(run)
    record_event(run, "resume", "x")
    assert not has_recorded_stop(run)


def test_error_in_the_report_is_a_warning_once_and_ends_no_run(make_recipe, monkeypatch):
    def fail(run, *, is_running):
        raise ZeroDivisionError("no page")

    monkeypatch.setattr(module, "write_report", fail)
    monkeypatch.setattr(module, "REPORT_EVERY_S", 0.0)
    run = train(make_recipe(), "name: test\n")
    assert run.is_finished()
    warnings = [event["text"] for event in events_of(run) if event["kind"] == "warning"]
    assert [text for text in warnings if "report" in text] == [
        f"{run.report} could not be written: ZeroDivisionError: no page"
    ]


def test_run_that_fails_records_one_end(make_recipe):
    recipe = make_recipe(train={"learning_rate": 1e38, "warmup_ratio": 0.0, "max_grad_norm": 0.0})
    with pytest.raises(RunError) as failed:
        train(recipe, "name: test\n")
    run = RunFolder(Path(recipe.output.runs_dir) / recipe.name)
    assert [event["text"] for event in events_of(run) if event["kind"] == "stop"] == [str(failed.value)]


def test_time_of_saves_is_left_out_of_the_speed_and_not_of_the_time(make_recipe, tmp_path, monkeypatch):
    """By a clock of our own: steps of 2 s, a trial save of 50 s, and a save of 30 s behind step 2."""
    now = [100.0]
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: now[0])
    micro_batches = prepare_run(make_recipe(), num_devices=1, watcher=Watcher()).micro_batches
    lines = []
    writer = MetricsWriter(
        tmp_path / "metrics.jsonl", micro_batches, GroupLosses(micro_batches, by_role=True), lines.append
    )
    monkeypatch.setattr(writer.groups, "take", dict)
    state = TrainerState(max_steps=4, is_world_process_zero=True)
    writer.on_train_begin(None, state, None)
    now[0] += 50
    for step in range(1, 5):
        writer.on_step_begin(None, state, None)
        now[0] += 2
        state.global_step = step
        writer.on_step_end(None, state, None)
        writer.on_log(None, state, None, {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0})
        if step == 2:
            now[0] += 10
            writer.on_save(None, state, None)
            now[0] += 20
    tokens = [micro_batches.count(step).tokens for step in range(4)]
    assert [line.total_tokens_per_s for line in lines] == [number / 2 for number in tokens]
    assert [line.elapsed_s for line in lines] == [52, 54, 86, 88]


def test_lines_that_will_be_written_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
