"""What ends a run early, with real signals to this very process and real numbers that are not finite."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import make_tokenizer

from misotune.errors import RunError, StoppedError
from misotune.runs import RunFolder
from misotune.training import building
from misotune.training import run as run_module
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train
from misotune.training.saving import keeper
from misotune.training.saving.checkpoints import list_checkpoints
from misotune.training.signals import WATCHED


def folder_of(recipe):
    return RunFolder(Path(recipe.output.runs_dir, recipe.name))


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def steps_saved(run):
    return [folder.name for folder in list_checkpoints(run.checkpoints)]


def send(number):
    os.kill(os.getpid(), number)


def signal_at_step(step, number):
    def on_metrics(metrics):
        if metrics.step == step:
            send(number)

    return on_metrics


def train_until_stopped(recipe, *, resume=False, **watching):
    """Returns the error, after a look at whether the signals' handlers were put back."""
    before = [signal.getsignal(number) for number in WATCHED]
    with pytest.raises(StoppedError) as raised:
        train(recipe, "name: test\n", resume=resume, watcher=Watcher(**watching))
    assert [signal.getsignal(number) for number in WATCHED] == before
    return raised.value


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_signal_finishes_the_step_saves_and_the_resumed_run_equals_an_uninterrupted_one(make_recipe, number, code):
    # Half of the steps are warm-up; the recipe itself never saves.
    settings = {"max_steps": 8, "warmup_ratio": 0.5}
    recipe = make_recipe("stopped", train=settings)
    said = []
    error = train_until_stopped(recipe, on_metrics=signal_at_step(2, number), on_message=said.append)
    run = folder_of(recipe)
    assert error.exit_code == code
    assert str(error) == (
        f"stopped by {number.name} after step 3 of 8; saved in {run.checkpoints / 'step-3'}; "
        f"go on: misotune train {run.recipe} --resume"
    )
    assert f"{number.name}: the step is finished and saved, then the run stops; a second signal stops at once" in said
    assert steps_saved(run) == ["step-3"]
    assert not run.is_finished()
    assert json.loads(run.events.read_text().splitlines()[-1])["text"] == str(error)

    train(recipe, "name: test\n", resume=True)
    whole = train(make_recipe("whole", train=settings), "name: test\n")
    assert losses(run) == losses(whole)
    ours, theirs = (load_file(r.final / "model.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_signal_before_the_first_step_says_that_nothing_was_trained(make_recipe, monkeypatch):
    load = building.load_model

    def load_and_be_stopped(*arguments):
        model = load(*arguments)
        send(signal.SIGTERM)
        return model

    recipe = make_recipe(train={"save_every_steps": 2})
    run = folder_of(recipe)
    with monkeypatch.context() as patch:
        patch.setattr(building, "load_model", load_and_be_stopped)
        error = train_until_stopped(recipe)
    assert error.exit_code == 143
    assert str(error) == (
        f"stopped by SIGTERM before the first step: nothing was trained; go on: misotune train {run.recipe} --resume"
    )
    stops = [json.loads(line)["text"] for line in run.events.read_text().splitlines() if '"stop"' in line]
    assert stops == [str(error)]
    train_until_stopped(recipe.model_copy(update={"name": "later"}), on_metrics=signal_at_step(2, signal.SIGTERM))
    later = recipe.model_copy(update={"name": "later"})
    with monkeypatch.context() as patch:
        patch.setattr(building, "load_model", load_and_be_stopped)
        error = train_until_stopped(later, resume=True)
    assert str(error) == (
        "stopped by SIGTERM before the first step: nothing was trained since the last checkpoint; "
        f"go on: misotune train {folder_of(later).recipe} --resume"
    )


def test_signal_during_a_save_does_not_wait_for_another_step(make_recipe, monkeypatch):
    finish = keeper.finish_checkpoint

    def finish_and_be_stopped(*arguments, **options):
        send(signal.SIGTERM)
        return finish(*arguments, **options)

    monkeypatch.setattr(keeper, "finish_checkpoint", finish_and_be_stopped)
    recipe = make_recipe(train={"save_every_steps": 2, "trial_save": False})
    error = train_until_stopped(recipe)
    assert str(error).startswith("stopped by SIGTERM after step 2 of 4; saved in ")
    assert steps_saved(folder_of(recipe)) == ["step-2"]


def test_signal_after_the_last_step_lets_the_run_finish(make_recipe, monkeypatch):
    save = run_module.save_final

    def be_stopped_and_save(*arguments, **options):
        send(signal.SIGTERM)
        save(*arguments, **options)

    monkeypatch.setattr(run_module, "save_final", be_stopped_and_save)
    said = []
    run = train(make_recipe(), "name: test\n", watcher=Watcher(on_message=said.append))
    assert run.is_finished()
    text = "SIGTERM: the last step is done, and the final model is still written; a second signal stops at once"
    assert text in said
    last = train(make_recipe("last"), "name: test\n", watcher=Watcher(on_metrics=signal_at_step(4, signal.SIGTERM)))
    assert last.is_finished()


def test_signal_that_was_ignored_before_stays_ignored(make_recipe):
    """As SIGINT is in a process that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = train(make_recipe(), "name: test\n", watcher=Watcher(on_metrics=signal_at_step(2, signal.SIGINT)))
        assert run.is_finished()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_error_after_a_signal_is_told_with_the_signal(make_recipe, monkeypatch):
    """A rank that waits for one which has ended already gets an error of the collective."""

    def break_down(metrics):
        send(signal.SIGTERM)
        raise ConnectionError("closed by peer\nand a long story")

    error = train_until_stopped(make_recipe(train={"save_every_steps": 1}), on_metrics=break_down)
    assert error.exit_code == 143
    assert str(error).startswith(
        "stopped by SIGTERM while steps were trained, with ConnectionError: closed by peer; go on: misotune train "
    )


def test_loss_that_is_not_finite_stops_the_run_at_its_step_and_keeps_the_micro_batch(make_recipe, nan_loss_at_z):
    """Only row-9 writes about jazz. Metrics are logged late, which must not delay it."""
    settings = {"pack": False, "max_steps": 6, "batch_size": 2, "log_every_steps": 50, "save_every_steps": 1}
    for seed in range(20):
        recipe = make_recipe(model={"name": str(nan_loss_at_z)}, train=settings, seed=seed)
        micro_batches = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches
        if "row-9" in (*micro_batches.sample_ids(3), *micro_batches.sample_ids(4)):
            break
    with pytest.raises(RunError, match=r"its rows: row-9; kept in ") as raised:
        train(recipe, "name: test\n")
    run = folder_of(recipe)
    (folder,) = run.non_finite.iterdir()
    step = int(folder.name.removeprefix("step-"))
    assert step in (4, 5)
    message = str(raised.value)
    assert message.startswith(f"step {step}: loss nan in micro-batch ")
    last = run.checkpoints / f"step-{step - 1}"
    assert f"kept in {folder}. The last checkpoint, {last}, is from before; lower train.learning_rate" in message
    assert steps_saved(run)[-1] == f"step-{step - 1}"
    assert json.loads(run.events.read_text().splitlines()[-1])["kind"] == "stop"

    (described,) = folder.glob("micro-batch-*.json")
    (row,) = json.loads(described.read_text())["rows"]
    assert row["id"] == "row-9"
    assert "jazz" in row["inputs"][0]["text"]
    assert row["output"].startswith("<|im_start|>assistant\nAll about jazz")
    assert "".join(token for token, _ in row["losses"]).startswith("All about jazz")
    assert {loss for _, loss in row["losses"]} == {"nan"}
    tensors = load_file(described.with_suffix(".safetensors"))
    assert len(tensors["losses"]) == len(row["losses"]) == len(tensors["targets"])
    assert tensors["losses"].isnan().all()
    assert make_tokenizer().decode(tensors["input_ids"][0]).startswith(row["inputs"][0]["text"])


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0], ids=["clipped", "not-clipped"])
def test_gradient_that_is_not_finite_stops_the_run_before_the_optimizer_steps(make_recipe, monkeypatch, max_grad_norm):
    load = building.load_model
    models = []

    def load_and_break(*arguments):
        model = load(*arguments)
        models.append(model)
        calls = []

        def broken_in_step_2(gradient):
            calls.append(gradient)
            return gradient * float("inf") if len(calls) == 2 else gradient

        model.model.norm.weight.register_hook(broken_in_step_2)
        return model

    monkeypatch.setattr(building, "load_model", load_and_break)
    recipe = make_recipe(train={"save_every_steps": 1, "max_grad_norm": max_grad_norm, "tokens_per_micro_batch": 4096})
    with pytest.raises(RunError, match=r"^step 2: gradient norm (inf|nan); its rows: (row-\d+, ){3}row-\d+; kept in "):
        train(recipe, "name: test\n")
    run = folder_of(recipe)
    assert steps_saved(run) == ["step-1"]
    saved = load_file(run.checkpoints / "step-1" / "model.safetensors")
    assert torch.equal(models[0].model.norm.weight, saved["model.norm.weight"])
    (described,) = (run.non_finite / "step-2").glob("*.json")
    rows = json.loads(described.read_text())["rows"]
    assert len(rows) == 4
    assert all(isinstance(loss, float) for row in rows for _, loss in row["losses"])


def test_rows_that_cannot_be_kept_do_not_hide_what_happened(make_recipe, nan_loss_at_z, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("misotune.training.non_finite.write_whole", full)
    recipe = make_recipe(model={"name": str(nan_loss_at_z)}, train={"max_steps": 12})
    with pytest.raises(RunError, match=r"row-9.*; could not be kept \(No space left on device\)\. There is no checkpo"):
        train(recipe, "name: test\n")
