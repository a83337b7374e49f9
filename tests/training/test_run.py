"""Whole runs on the tiny model: what is trained, what is written, what stops a run."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.attention.tiny_models import Literal, register_literal
from transformers import AutoModelForCausalLM

from misotune.cli.train_plan import plan_table
from misotune.errors import RunError, UsageError
from misotune.runs import RunFolder
from misotune.training import speed
from misotune.training.loss import step_loss, token_losses
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train
from misotune.training.saving.checkpoints import list_checkpoints


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def run_losses(recipe):
    return losses(train(recipe, "name: test\n"))


def test_loss_falls_and_the_run_folder_is_whole(make_recipe):
    run = train(make_recipe(train={"max_steps": 30}), "name: test\n")
    got = losses(run)
    assert len(got) == 30
    assert sum(got[-5:]) < 0.7 * sum(got[:5])
    line = json.loads(run.metrics.read_text().splitlines()[-1])
    assert line["total_tokens_per_s"] > line["trained_tokens_per_s"] > 0
    assert line["peak_memory_gib"] > 0
    assert line["learning_rate"] < 1e-4
    assert math.isfinite(line["grad_norm"])
    assert run.is_finished()
    assert (run.final / "chat_template.jinja").is_file()
    assert json.loads(run.plan.read_text())["data"] == {"rows": 12, "samples": 12, "cut": 0, "dropped": {}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_final_model_has_the_recorded_logits_in_stock_transformers(make_recipe, precision):
    run = train(make_recipe(train={"precision": precision}), "name: test\n")
    probe = load_file(run.probe)
    model = AutoModelForCausalLM.from_pretrained(run.final, dtype=torch.float32)
    with torch.no_grad():
        logits = model(probe["input_ids"][None]).logits[0, -len(probe["logits"]) :]
    torch.testing.assert_close(logits, probe["logits"], rtol=1e-5, atol=1e-5)


def test_generation_stops_where_training_ended_turns(make_recipe, tokenizer):
    run = train(make_recipe(), "name: test\n")
    ends = json.loads((run.final / "generation_config.json").read_text())["eos_token_id"]
    assert ends in (tokenizer.eos_token_id, [tokenizer.eos_token_id])  # older transformers writes a list


def test_para_with_the_full_input_alone_is_sft_step_by_step(make_recipe):
    para = run_losses(make_recipe("para", miso={"mode": "para", "inputs": ["full"]}))
    sft = run_losses(make_recipe("sft", miso={"mode": "sft"}))
    assert para == sft


def load_stock(source, dtype, quantization):
    model = AutoModelForCausalLM.from_pretrained(source.name, dtype=dtype, attn_implementation="eager")
    forward = model.forward
    model.forward = lambda miso=None, position_ids=None, **rest: forward(**rest)
    return model


def test_sft_equals_stock_attention_step_by_step(make_recipe, monkeypatch):
    """The same rows through transformers' own eager attention, one sample a row."""
    from misotune.training import building as module

    recipe = make_recipe("miso", miso={"mode": "sft"}, train={"pack": False})
    ours = run_losses(recipe)
    monkeypatch.setattr(module, "load_model", load_stock)
    stock = run_losses(recipe.model_copy(update={"name": "stock"}))
    assert ours == pytest.approx(stock, rel=1e-5)


def test_shares_of_roles_give_the_loss_and_gradient_of_the_literal_equation(make_recipe):
    """The first micro-batch of a run, packed; its roles are full, one to three constraints, base."""
    register_literal()
    recipe = make_recipe(miso={"weighting": "fixed", "weights": {"full": 0.5}}, train={"tokens_per_micro_batch": 1500})
    batch = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches[0]
    layout = batch["miso"].layout
    numbers = [len(sample.inputs) for sample in layout.samples]
    assert len(set(numbers)) > 1
    samples = [([range(*x) for x in sample.inputs], range(*sample.output)) for sample in layout.samples]
    weights = [[0.5] + [0.5 / (n - 1)] * (n - 1) for n in numbers]
    literal = {"literal": Literal(samples, weights=weights)}
    ours = loss_and_gradient(recipe, "miso", batch, {"miso": batch["miso"]})
    torch.testing.assert_close(ours, loss_and_gradient(recipe, "literal", batch, literal), rtol=1e-6, atol=1e-7)
    uniform = loss_and_gradient(recipe, "literal", batch, {"literal": Literal(samples)})
    assert (ours[1] - uniform[1]).abs().max() > 1e-3


def loss_and_gradient(recipe, attention, batch, arguments):
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name, dtype=torch.float64, attn_implementation=attention)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids", "logits_to_keep")}
    logits = model(**inputs, **arguments, use_cache=False).logits
    loss = step_loss(token_losses(logits, batch["targets"]), batch["num_trained_in_step"], num_devices=1)
    loss.backward()
    return loss.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_shares_of_roles_leave_one_input_as_it_is(make_recipe):
    miso = {"mode": "para", "inputs": ["full"], "weighting": "fixed", "weights": {"full": 1.0}}
    assert run_losses(make_recipe("fixed", miso=miso)) == run_losses(make_recipe("sft", miso={"mode": "sft"}))


MODES = {
    "para": {"mode": "para"},
    "fixed": {"mode": "para", "weighting": "fixed", "weights": {"full": 0.5, "base": 0.1}},
    "fid": {"mode": "para", "weighting": "fid"},
    "vanilla-start": {"mode": "para", "weighting": "vanilla", "positions": "start"},
    "succ": {"mode": "succ"},
    "succ-system": {"mode": "succ", "chunk_prefix": "system"},
    "flat": {"mode": "flat"},
}


@pytest.mark.parametrize("miso", MODES.values(), ids=MODES)
def test_packing_does_not_change_the_losses(make_recipe, miso):
    packed = run_losses(make_recipe("packed", miso=miso, train={"tokens_per_micro_batch": 600}))
    one_by_one = run_losses(make_recipe("single", miso=miso, train={"pack": False}))
    assert packed == pytest.approx(one_by_one, rel=1e-5)


def test_gradient_checkpointing_does_not_change_the_losses(make_recipe):
    kept = run_losses(make_recipe("kept"))
    computed_again = run_losses(make_recipe("again", train={"gradient_checkpointing": True}))
    assert computed_again == pytest.approx(kept, rel=1e-6)


def test_reference_kernel_gives_the_same_losses(make_recipe):
    assert run_losses(make_recipe("a", miso={"kernel": "reference"})) == pytest.approx(
        run_losses(make_recipe("b", miso={"kernel": "flash"})), rel=1e-5
    )


def planned_kernel(recipe):
    return prepare_run(recipe, num_devices=1, watcher=Watcher()).plan["kernel"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the plan names the accelerator's kernel")
def test_plan_names_the_kernel_and_why_it_is_not_flash(make_recipe, capped_model_dir):
    assert planned_kernel(make_recipe()) == "flash (CPU)"
    assert planned_kernel(make_recipe(miso={"kernel": "reference"})) == "reference"
    assert planned_kernel(make_recipe(miso={"kernel": "eager"})) == "eager"
    capped = make_recipe(model={"name": str(capped_model_dir)})
    assert planned_kernel(capped) == "eager, since 'flash' cannot be used: it does not cap scores (softcap 50)"


@pytest.mark.parametrize("is_emulated", [True, False])
def test_a_gpu_before_ampere_emulates_bf16(monkeypatch, is_emulated):
    def is_supported(*, including_emulation):
        return including_emulation or not is_emulated

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert speed.emulates_bf16("bf16") is is_emulated
    assert not speed.emulates_bf16("fp32")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the accelerator trains")
@pytest.mark.parametrize(
    ("precision", "instructions", "is_told"),
    [("bf16", "", True), ("bf16", "amx_bf16", False), ("bf16", None, False), ("fp32", "", False)],
)
def test_plan_tells_where_the_processor_emulates_bf16(make_recipe, monkeypatch, precision, instructions, is_told):
    monkeypatch.setattr(speed, "bf16_instructions", lambda: instructions)
    recipe = make_recipe(train={"precision": precision})
    plan = prepare_run(recipe, num_devices=1, watcher=Watcher()).plan
    assert plan["emulates_bf16"] is is_told
    with io.StringIO() as shown:
        Console(file=shown, width=200).print(plan_table(plan | {"engine": "transformers"}))
        assert ("bf16 is emulated here: train.precision=fp32 is faster" in shown.getvalue()) is is_told


def test_forced_kernel_that_cannot_do_it_is_refused_before_training(make_recipe, capped_model_dir):
    recipe = make_recipe(model={"name": str(capped_model_dir)}, miso={"kernel": "flash"})
    message = r"miso.kernel: gemma2: kernel 'flash' cannot be used: it does not cap scores .* use 'auto' or 'eager'"
    with pytest.raises(UsageError, match=message):
        train(recipe, "name: test\n")
    assert not Path(recipe.output.runs_dir, "run").exists()


def test_capped_scores_train_as_in_stock_transformers(make_recipe, capped_model_dir, monkeypatch):
    from misotune.training import building as module

    recipe = make_recipe("ours", model={"name": str(capped_model_dir)}, miso={"mode": "sft"}, train={"pack": False})
    ours = run_losses(recipe)
    monkeypatch.setattr(module, "load_model", load_stock)
    assert ours == pytest.approx(run_losses(recipe.model_copy(update={"name": "stock"})), rel=1e-5)


def test_bfloat16_follows_float32(make_recipe):
    rounded = run_losses(make_recipe("bf16", train={"precision": "bf16"}))
    assert rounded == pytest.approx(run_losses(make_recipe("fp32")), rel=2e-2)


def test_lora_trains_the_adapter_alone(make_recipe):
    run = train(make_recipe(lora={"rank": 4}, train={"max_steps": 20, "learning_rate": 3e-2}), "name: test\n")
    assert losses(run)[-1] < losses(run)[0]
    weights = load_file(run.final / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(make_recipe):
    settings = {"max_steps": 8, "save_every_steps": 4, "epochs": 3}
    whole = train(make_recipe("whole", train=settings), "name: test\n")

    class PowerCut(Exception):
        pass

    def cut_power(metrics):
        if metrics.step == 6:
            raise PowerCut

    recipe = make_recipe("cut", train=settings)
    with pytest.raises(PowerCut):
        train(recipe, "name: test\n", watcher=Watcher(on_metrics=cut_power))
    said = []
    resumed = train(recipe, "name: test\n", resume=True, watcher=Watcher(on_message=said.append))
    assert said == [f"resuming from {resumed.checkpoints / 'step-4'}"]
    assert losses(resumed) == losses(whole)
    ours, theirs = (
        load_file(resumed.final / "model.safetensors"),
        load_file(whole.final / "model.safetensors"),
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resuming_with_another_schedule_is_refused(make_recipe):
    settings = {"max_steps": 4, "save_every_steps": 2}
    run = train(make_recipe(train=settings), "name: test\n")
    (run.final / "config.json").unlink()  # as if the run had died before its end
    with pytest.raises(UsageError, match="cannot go on: its plan had steps 4, now it is 5; resume with the run's own"):
        train(make_recipe(train=settings | {"max_steps": 5}), "name: test\n", resume=True)


def test_resuming_with_other_shares_is_refused(make_recipe):
    settings = {"max_steps": 2, "save_every_steps": 1}
    miso = {"weighting": "fixed", "weights": {"full": 0.5}}
    run = train(make_recipe(train=settings, miso=miso), "name: test\n")
    (run.final / "config.json").unlink()  # as if the run had died before its end
    with pytest.raises(UsageError, match=r"its plan had weights \{'full': 0.5\}, now it is \{'full': 0.6\}"):
        train(make_recipe(train=settings, miso=miso | {"weights": {"full": 0.6}}), "name: test\n", resume=True)


def test_failed_start_leaves_the_earlier_run_alone(make_recipe):
    run = train(make_recipe(), "name: test\n")
    with pytest.raises(UsageError, match=r"data.path: nowhere is not there"):
        train(make_recipe(data={"path": "nowhere"}), "name: test\n", overwrite=True)
    assert run.is_finished()


def test_broken_checkpoint_is_skipped_and_named(make_recipe):
    recipe = make_recipe(train={"max_steps": 6, "save_every_steps": 2, "keep_checkpoints": 3})
    run = train(recipe, "name: test\n")
    assert [folder.name for folder in list_checkpoints(run.checkpoints)] == ["step-2", "step-4", "step-6"]
    with (run.checkpoints / "step-6" / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    (run.final / "config.json").unlink()  # as if the run had died before its end
    said = []
    train(recipe, "name: test\n", resume=True, watcher=Watcher(on_message=said.append))
    assert said == [
        f"{run.checkpoints / 'step-6'} is skipped: model.safetensors is missing or of the wrong size",
        f"resuming from {run.checkpoints / 'step-4'}",
    ]


def test_old_checkpoints_are_deleted(make_recipe):
    run = train(make_recipe(train={"save_every_steps": 1, "keep_checkpoints": 2}), "name: test\n")
    assert [folder.name for folder in list_checkpoints(run.checkpoints)] == ["step-3", "step-4"]


def test_run_folder_in_the_way_is_refused_with_the_cure(make_recipe):
    recipe = make_recipe()
    train(recipe, "name: test\n")
    with pytest.raises(UsageError, match=r"is there already; --resume goes on with it, --overwrite deletes it"):
        train(recipe, "name: test\n")
    with pytest.raises(UsageError, match="is finished; there is nothing to resume"):
        train(recipe, "name: test\n", resume=True)
    assert train(recipe, "name: test\n", overwrite=True).is_finished()


def test_overwrite_deletes_nothing_but_runs(make_recipe):
    recipe = make_recipe()
    other = Path(recipe.output.runs_dir, recipe.name, "thesis.txt")
    other.parent.mkdir(parents=True)
    other.write_text("years of work")
    with pytest.raises(UsageError, match="holds something that is no run; choose another name"):
        train(recipe, "name: test\n", overwrite=True)
    assert other.is_file()


def test_resuming_before_the_first_checkpoint_starts_at_step_0(make_recipe):
    """A job that is stopped while its model loads is started again with --resume, by Slurm for one."""
    recipe = make_recipe(train={"save_every_steps": 2})
    whole = train(make_recipe("whole", train={"save_every_steps": 2}), "name: test\n")
    run = RunFolder(Path(recipe.output.runs_dir, recipe.name))
    run.path.mkdir()
    run.recipe.write_text("name: test\n")
    said = []
    train(recipe, "name: test\n", resume=True, watcher=Watcher(on_message=said.append))
    assert f"{run.path} has no checkpoint yet: it starts at step 0" in said
    assert losses(run) == losses(whole)


def test_resuming_nothing_is_refused(make_recipe):
    with pytest.raises(UsageError, match="has no whole checkpoint to resume from"):
        train(make_recipe(), "name: test\n", resume=True)


def test_non_finite_loss_stops_the_run_and_names_the_rows(make_recipe):
    # At this rate the first update throws the weights out of float32.
    recipe = make_recipe(train={"learning_rate": 1e38, "warmup_ratio": 0.0, "max_grad_norm": 0.0})
    with pytest.raises(RunError, match=r"step \d: loss (nan|inf).*its rows: row-"):
        train(recipe, "name: test\n")


def test_too_many_long_rows_stop_the_run_before_it_starts(make_recipe):
    recipe = make_recipe(data={"max_length": 100})
    message = r"samples would be dropped.*longer than data.max_length \(100 tokens\) \(first: row row-"
    with pytest.raises(RunError, match=message):
        train(recipe, "name: test\n")
    assert not Path(recipe.output.runs_dir, "run", "final").exists()


def test_dropped_and_cut_rows_are_counted(make_recipe):
    dropped = prepare_run(make_recipe(data={"max_length": 110, "max_dropped": 0.9}), num_devices=1, watcher=Watcher())
    (reason,) = dropped.plan["data"]["dropped"]
    assert reason == "a pair of input and output is longer than data.max_length (110 tokens)"
    number = dropped.plan["data"]["dropped"][reason]["samples"]
    assert number + dropped.plan["data"]["samples"] == 12
    cut = prepare_run(
        make_recipe(data={"max_length": 110, "too_long": "cut", "max_dropped": 0.9}),
        num_devices=1,
        watcher=Watcher(),
    )
    assert cut.plan["data"]["cut"] == number
    assert all(sample.longest_pair <= 110 for sample in cut.corpus.samples)


def test_unknown_model_is_named_with_the_cure(make_recipe):
    with pytest.raises(UsageError, match=r"model nobody/nothing: no such folder here.*\(a recipe: model.name=PATH\)"):
        train(make_recipe(model={"name": "nobody/nothing"}), "name: test\n")


def test_missing_dataset_is_named_before_the_model_is_asked_for(make_recipe):
    with pytest.raises(UsageError, match=r"data.path: nowhere is not there; make it with misotune prepare"):
        train(make_recipe(data={"path": "nowhere"}, model={"name": "nobody/nothing"}), "name: test\n")
