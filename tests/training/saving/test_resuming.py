"""2N steps equal N, a resume and N more, whatever trains, and on whatever number of ranks where that is possible."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.rank_driver import Case, train_on_ranks, train_on_two_ranks
from transformers import Trainer

from misotune.errors import RunError, UsageError
from misotune.runs import RunFolder
from misotune.training.prepared import Watcher
from misotune.training.run import train
from misotune.training.saving.checkpoints import finish_checkpoint, list_checkpoints
from misotune.training.saving.resuming import agreed_checkpoint, check_can_go_on

STEPS = {"max_steps": 4, "save_every_steps": 2, "batch_size": 5}
# What a step costs; never the same twice.
CLOCKS = {"trained_tokens_per_s", "total_tokens_per_s", "peak_memory_gib", "elapsed_s"}


def metrics(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def weights(run):
    (file,) = [*run.final.glob("model.safetensors"), *run.final.glob("adapter_model.safetensors")]
    return load_file(file)


def as_if_killed_after_step_2(run, name):
    """Copies a finished run as it would be, had it been killed after its first checkpoint."""
    cut = RunFolder(run.path.with_name(name))
    shutil.copytree(run.path, cut.path)
    shutil.rmtree(cut.final)
    shutil.rmtree(cut.checkpoints / "step-4")
    return cut


RUNS = {
    "full-para": {"miso": {"mode": "para"}},
    "full-succ": {"miso": {"mode": "succ"}},
    "full-bf16": {"train": {"precision": "bf16"}},
    "lora-dropout-para": {"lora": {"rank": 4, "dropout": 0.1}},
    "lora-dropout-succ-checkpointed": {
        "lora": {"rank": 4, "dropout": 0.1},
        "miso": {"mode": "succ"},
        "train": {"gradient_checkpointing": True, "tokens_per_micro_batch": 300},
    },
}


@pytest.mark.parametrize("sections", RUNS.values(), ids=RUNS)
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(make_recipe, monkeypatch, sections):
    sections = sections | {"train": STEPS | sections.get("train", {})}
    whole = train(make_recipe("whole", **sections), "name: test\n")
    cut = as_if_killed_after_step_2(whole, "cut")
    # What was drawn before does not count, nor the generators' states that transformers saves for one number of ranks.
    monkeypatch.setattr(Trainer, "_load_rng_state", lambda *_: None)
    torch.manual_seed(99)
    resumed = train(make_recipe("cut", **sections), "name: test\n", resume=True)
    assert resumed.path == cut.path
    assert metrics(resumed) == metrics(whole)
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_dropout_is_drawn_anew_in_every_step(make_recipe):
    """Else the test above would pass without any dropout."""
    plain = train(make_recipe("plain", train=STEPS, lora={"rank": 4}), "name: test\n")
    dropped = train(make_recipe("dropped", train=STEPS, lora={"rank": 4, "dropout": 0.5}), "name: test\n")
    assert metrics(dropped)[1]["loss"] != metrics(plain)[1]["loss"]


def cut_run(make_recipe, **sections):
    sections = sections | {"train": STEPS | sections.get("train", {})}
    as_if_killed_after_step_2(train(make_recipe("whole", **sections), "name: test\n"), "run")
    return sections


OTHERS = [
    ({"train": {"learning_rate": 1e-3}}, r"another train.learning_rate: it was 0.01, now it is 0.001"),
    ({"train": {"precision": "bf16"}}, r"another train.precision: it was 'fp32', now it is 'bf16'"),
    ({"lora": {"rank": 4}}, r"another lora: it was None, now it is \{'rank': 4"),
]


def test_settings_that_a_resumed_run_would_ignore_or_break_on_are_refused(make_recipe):
    sections = cut_run(make_recipe)
    for other, message in OTHERS:
        changed = {key: sections.get(key, {}) | value for key, value in other.items()}
        recipe = make_recipe("run", **(sections | changed))
        before = RunFolder(_path(recipe)).recipe.read_text()
        with pytest.raises(UsageError, match=message):
            train(recipe, "name: changed\n", resume=True)
        assert RunFolder(_path(recipe)).recipe.read_text() == before


def _path(recipe):
    return Path(recipe.output.runs_dir) / recipe.name


def test_weights_of_a_refused_checkpoint_can_be_started_from(make_recipe):
    """The message says so."""
    sections = cut_run(make_recipe)
    other = sections | {"train": sections["train"] | {"learning_rate": 1e-3}}
    with pytest.raises(UsageError, match=r"start anew with name=OTHER \(from these weights: model.name=(.*step-2)\)"):
        train(make_recipe("run", **other), "name: test\n", resume=True)
    checkpoint = _path(make_recipe("run")) / "checkpoints" / "step-2"
    assert train(make_recipe("other", model={"name": str(checkpoint)}, **other), "name: test\n").is_finished()


def test_leftovers_are_removed_and_named_and_a_changed_bit_is_noticed(make_recipe):
    sections = {"train": STEPS | {"max_steps": 6, "keep_checkpoints": 3}}
    run = train(make_recipe("run", **sections), "name: test\n")
    shutil.rmtree(run.final)
    (run.checkpoints / "step-6").rename(run.checkpoints / "checkpoint-6")
    weights_file = run.checkpoints / "step-4" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    said = []
    train(make_recipe("run", **sections), "name: test\n", resume=True, watcher=Watcher(on_message=said.append))
    assert said == [
        f"{run.checkpoints / 'checkpoint-6'} is removed: the process that wrote it was stopped before its end",
        f"{run.checkpoints / 'step-4'} is skipped: model.safetensors has changed",
        f"resuming from {run.checkpoints / 'step-2'}",
    ]
    assert [folder.name for folder in list_checkpoints(run.checkpoints)] == ["step-2", "step-4", "step-6"]


LORA = {"rank": 4, "dropout": 0.1}
ENGINES = {
    "ddp": {},
    "ddp-lora": {"lora": LORA},
    **{f"zero-{stage}": {"deepspeed": {"stage": stage}} for stage in (1, 2, 3)},
    "zero-3-lora": {"lora": LORA, "deepspeed": {"stage": 3}},
}
# Made on two ranks, gone on with on so many by that engine.
RESUMES = {
    "ddp-again": ("ddp", "ddp", 2),
    "ddp-lora-again": ("ddp-lora", "ddp-lora", 2),
    "zero-2-again": ("zero-2", "zero-2", 2),
    "zero-3-lora-again": ("zero-3-lora", "zero-3-lora", 2),
    "ddp-on-one": ("ddp", "ddp", 1),
    "zero-2-on-one": ("zero-2", "zero-2", 1),
    "zero-3-on-one": ("zero-3", "zero-3", 1),
    "zero-2-by-zero-1": ("zero-2", "zero-1", 2),
}


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_resume_as_if_never_interrupted_and_on_other_numbers_of_ranks(make_recipe, tmp_path):
    def recipe(name, engine):
        return make_recipe(name, train=STEPS, **ENGINES[engine])

    kinds = sorted({before for before, _, _ in RESUMES.values()})
    wholes = dict(zip(kinds, train_on_two_ranks([recipe(kind, kind) for kind in kinds], tmp_path), strict=True))
    for name, (before, _, _) in RESUMES.items():
        as_if_killed_after_step_2(wholes[before], name)
    cases = [Case(recipe(name, now), ranks, resume=True) for name, (_, now, ranks) in RESUMES.items()]
    for name, outcome in zip(RESUMES, train_on_ranks(cases, tmp_path), strict=True):
        whole = wholes[RESUMES[name][0]]
        assert not any(outcome.codes), f"{name}: {outcome.said[0][-3000:]}"
        for ours, theirs in zip(metrics(outcome.run), metrics(whole), strict=True):
            for key in ("loss", "grad_norm", "learning_rate"):
                # float32 sums in another order where the ranks are others.
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6), (name, ours["step"], key)
        difference = difference_of(weights(outcome.run), weights(whole))
        assert difference < 2e-6, (name, difference)
        assert [folder.name for folder in list_checkpoints(outcome.run.checkpoints)] == ["step-2", "step-4"]
        assert not list(outcome.run.checkpoints.glob(".*")), name  # what was converted is gone


def difference_of(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


ZERO_2 = {"engine": "deepspeed", "stage": 2, "ranks": 2, "settings": {}}
REFUSED = {
    "by ZeRO-3": ({"stage": 3}, r"step-2 was made by DeepSpeed ZeRO-2, and DeepSpeed ZeRO-3 cannot read its optimizer"),
    "by ZeRO-0": ({"stage": 0}, r"ZeRO-2, and DeepSpeed ZeRO-0 cannot"),
    "without": ({"engine": "transformers", "stage": None}, r"ZeRO-2, and a run without DeepSpeed cannot"),
}


@pytest.mark.parametrize(("now", "message"), REFUSED.values(), ids=REFUSED)
def test_engines_that_cannot_read_one_another_are_refused(tmp_path, now, message):
    (tmp_path / "written").mkdir()
    finish_checkpoint(tmp_path / "written", tmp_path / "step-2", ZERO_2)
    with pytest.raises(UsageError, match=message):
        check_can_go_on(tmp_path / "step-2", ZERO_2 | now)


def test_other_numbers_of_ranks_are_said(tmp_path):
    (tmp_path / "written").mkdir()
    finish_checkpoint(tmp_path / "written", tmp_path / "step-2", ZERO_2)
    said = []
    check_can_go_on(tmp_path / "step-2", ZERO_2, said.append)
    check_can_go_on(tmp_path / "step-2", ZERO_2 | {"stage": 1, "ranks": 8}, said.append)
    assert said == ["step-2 was made on 2 rank(s) by DeepSpeed ZeRO-2; now 8 go on by DeepSpeed ZeRO-1"]


def test_checkpoint_that_cannot_be_converted_is_named_and_nothing_of_it_stays(tmp_path):
    (tmp_path / "written" / "global_step2").mkdir(parents=True)
    (tmp_path / "written" / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"no pickle")
    finish_checkpoint(tmp_path / "written", tmp_path / "step-2", ZERO_2)
    with pytest.raises(RunError, match=r"DeepSpeed cannot convert .*step-2: .*; resume on as many ranks as before"):
        agreed_checkpoint(tmp_path / "step-2", ZERO_2 | {"ranks": 4})
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
