"""What a run needs: followed on fake tensors, and compared with what is really held, saved and refused."""

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from misotune.errors import RunError
from misotune.training import disk, memory_estimate
from misotune.training.disk import checkpoint_bytes, disk_needed, final_bytes, folder_bytes
from misotune.training.heap import Heap
from misotune.training.memory_estimate import GRADIENTS, OPTIMIZER, WEIGHTS, Sharing, estimate_memory, host_memory
from misotune.training.memory_trace import Traced
from misotune.training.prepared import Watcher, measure_plan, prepare_run
from misotune.training.resources import out_of_memory, require_disk
from misotune.training.run import train
from misotune.training.speed import emulates_bf16

CPU = torch.device("cpu")
MIB = 2**20


def plan_of(recipe, num_devices=1):
    return prepare_run(recipe, num_devices=num_devices, watcher=Watcher()).plan


def components(recipe, num_devices=1):
    return plan_of(recipe, num_devices)["memory"]["components"]


def test_heap_keeps_gaps_and_uses_them_for_what_fits():
    heap = Heap()
    first, between, last = (heap.allocate(size) for size in (4 * MIB, MIB, 4 * MIB))
    held = heap.held
    assert held >= 9 * MIB
    heap.free(first)
    assert heap.held == held  # a gap before what is in use stays
    small = heap.allocate(3 * MIB)
    assert heap.held == held
    large = heap.allocate(5 * MIB)  # fits no gap
    assert heap.held >= held + 5 * MIB
    held = heap.held
    for handle in (between, last, small, large):
        heap.free(handle)
    heap.allocate(13 * MIB)
    assert heap.held == held  # gaps joined their neighbours


def test_heap_does_not_give_a_gap_to_a_tensor_of_the_same_size():
    """As glibc's aligned_alloc, which looks for some bytes more; joined gaps serve it again."""
    heap = Heap()
    first, second, _last = (heap.allocate(2 * MIB) for _ in range(3))
    held = heap.held
    heap.free(first)
    heap.allocate(2 * MIB)
    assert heap.held > held
    held = heap.held
    heap.free(second)
    heap.allocate(2 * MIB)  # the two gaps are one
    assert heap.held == held


def test_heap_gives_large_tensors_back_at_once():
    heap = Heap()
    handle = heap.allocate(64 * MIB)
    assert heap.held >= 64 * MIB
    heap.free(handle)
    assert heap.held == 0


@pytest.mark.parametrize("is_bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("cross_entropy", ["plain", "chunked"])
def test_a_pass_without_numbers_holds_what_a_true_one_holds(
    make_recipe, monkeypatch, is_bf16, checkpointing, cross_entropy
):
    """Against torch's own allocator, as the profiler sees it: every tensor that comes and goes in a true pass."""
    train = {"precision": "bf16" if is_bf16 else "fp32", "gradient_checkpointing": checkpointing}
    train |= {"tokens_per_micro_batch": 1500, "batch_size": 12, "cross_entropy": cross_entropy}
    recipe = make_recipe(train=train)
    prepared = prepare_run(recipe, num_devices=1, watcher=Watcher())
    memory, number = prepared.plan["memory"], prepared.plan["parameters"]["all"]
    before = 8 * number if prepared.plan["accumulation"] > 1 else 4 * number  # weights, and gradients if kept
    traced = sum(memory["components"][key] for key in ("weights", "gradients", "activations", "logits")) - before
    batch = prepared.micro_batches[memory["row"]["index"]]
    if emulates_bf16(recipe.train.precision):  # oneDNN's work space is then 8 % of this tiny model's memory
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    true = true_peak(recipe, batch, prepared.cross_entropy, keeps_gradients=prepared.plan["accumulation"] > 1)
    # Operators' work space, and the row itself, are the rest.
    assert traced == pytest.approx(true, rel=0.05)


def true_peak(recipe, batch, cross_entropy, *, keeps_gradients):
    from misotune.training.batches import NOT_FOR_THE_MODEL
    from misotune.training.cross_entropy import Comparison, CrossEntropy
    from misotune.training.model import ModelSource, checkpoint_activations, load_model

    model = load_model(ModelSource(recipe.model.name), torch.float32)
    if recipe.train.gradient_checkpointing:
        checkpoint_activations(model)
    model.train()
    losses_of = CrossEntropy(model, cross_entropy)
    losses_of.comparison = Comparison(0.0, 0.0, True, 0.0)
    arguments = {key: value for key, value in batch.items() if key not in NOT_FOR_THE_MODEL}

    def call(**arguments):
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            outputs = model(**arguments)
        outputs.logits = outputs.logits.float()
        return outputs

    def run():
        losses_of(call, arguments, batch["targets"]).sum().backward()

    run()  # what is made once
    if not keeps_gradients:
        model.zero_grad()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    profiler: Any = profile.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def test_components_follow_the_recipe(make_recipe):
    plain = components(make_recipe())
    lora = components(make_recipe(lora={"rank": 2}))
    saving = components(make_recipe(train={"gradient_checkpointing": True}))
    zero = components(make_recipe(deepspeed={"stage": 2}), num_devices=2)
    number = plan_of(make_recipe())["parameters"]["all"]
    assert plain[WEIGHTS] == 4 * number
    assert plain[OPTIMIZER] == 8 * number
    assert lora[OPTIMIZER] < plain[OPTIMIZER] / 4
    assert lora[GRADIENTS] < plain[OPTIMIZER] / 4
    assert saving["activations"] < plain["activations"]
    assert zero[OPTIMIZER] == 12 * number // 2


def test_following_a_pass_changes_nothing_of_the_run(make_recipe):
    state = torch.get_rng_state()
    prepare_run(make_recipe(lora={"rank": 2, "dropout": 0.1}), num_devices=1, watcher=Watcher())
    assert torch.equal(torch.get_rng_state(), state)


TRACED = Traced(
    num_parameters=1000,
    num_trained=1000,
    weights=4000,
    peak={"weights": 4000, "gradients": 4000, "activations": 500, "logits": 100},
    gaps=0,
    most_activations=600,
    logits_then=100,
)


def shared(**changes):
    return estimate_memory(TRACED, Sharing(**changes), device=CPU, local_ranks=1, row={}).components


def test_zero_divides_the_right_components():
    settings = {"num_devices": 4, "is_bf16": True, "zero": {"reduce_bucket_size": 10}}
    one, two, three = (shared(zero_stage=stage, **settings) for stage in (1, 2, 3))
    assert [stage[OPTIMIZER] for stage in (one, two, three)] == [3000] * 3
    assert [one[GRADIENTS], two[GRADIENTS]] == [2020, 1020]
    assert [one[WEIGHTS], two[WEIGHTS], three[WEIGHTS]] == [2000, 2000, 500 + 2000]
    # Gradients on several devices without DeepSpeed are copied once more.
    assert shared(num_devices=2)[GRADIENTS] == 8000
    assert shared()[GRADIENTS] == 4000


def test_offload_moves_components_to_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    properties = namedtuple("Properties", "total_memory")(2**40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    sharing = Sharing(2, 3, "parameters", is_bf16=True, zero={"stage3_max_live_parameters": 100})
    found = estimate_memory(TRACED, sharing, device=torch.device("cuda"), local_ranks=2, row={})
    assert found.components[OPTIMIZER] == 0
    assert found.components[WEIGHTS] == 200
    assert found.host == {OPTIMIZER: 6000, WEIGHTS: 1000}
    assert found.fits


def test_a_container_s_limit_counts(tmp_path):
    assert host_memory(tmp_path) == memory_estimate.os.sysconf("SC_PAGE_SIZE") * memory_estimate.os.sysconf(
        "SC_PHYS_PAGES"
    )
    (tmp_path / "memory.max").write_text("max\n")
    whole = host_memory(tmp_path)
    (tmp_path / "memory.max").write_text("1048576\n")
    assert host_memory(tmp_path) == MIB < whole


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_a_checkpoint_is_as_large_as_planned(make_recipe, lora):
    recipe = make_recipe(train={"save_every_steps": 4}, lora=lora)
    run = train(recipe, "name: test\n")
    plan = run.read_plan()
    real = folder_bytes(run.checkpoints / "step-4")
    numbers = plan["parameters"]
    planned = checkpoint_bytes(
        numbers["all"], numbers["trained"], is_bf16=False, uses_deepspeed=False, is_adapter=lora is not None
    )
    assert plan["disk"]["checkpoint"] == planned
    # What is not tensors: the tokenizer and small states.
    assert 0 <= planned - real < 16 * MIB
    weights = (numbers["trained"] if lora else numbers["all"]) * 4 + numbers["trained"] * 8
    assert real > weights
    assert 0 <= plan["disk"]["final"] - folder_bytes(run.final) < 16 * MIB


def test_disk_counts_the_kept_the_one_being_written_and_the_trained_model(tmp_path):
    def most(**changes):
        settings = {"num_steps": 10, "save_every_steps": 1, "keep_checkpoints": 2, "has_trial_save": False} | changes
        return round(disk_needed(1000, 300, tmp_path, **settings).most / 1.02)

    assert most() == 3000
    assert most(save_every_steps=10) == 1300  # one checkpoint, beside it the trained model
    assert most(save_every_steps=None) == 1000  # the one that a signal asks for
    assert most(save_every_steps=None, has_trial_save=True) == 1300
    assert final_bytes(10, 10, is_bf16=True, is_adapter=False) < final_bytes(10, 10, is_bf16=False, is_adapter=False)


def test_too_little_disk_refuses_the_start_with_figures(make_recipe, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 5 * MIB)
    recipe = make_recipe(train={"save_every_steps": 1})
    with pytest.raises(RunError, match=r"the disk has 5 MiB free and the run needs \d+ MiB: 2 checkpoints of \d+ MiB"):
        train(recipe, "name: test\n")
    assert not Path(recipe.output.runs_dir, "run", "final").exists()
    require_disk({"memory": {}})  # where it is not known, nothing is refused


def test_out_of_memory_names_the_largest_component_and_its_cure():
    sizes = {"weights": 1 * MIB, "optimizer": 2 * MIB, "activations": 9 * MIB}
    plan = {"memory": {"components": sizes, "total": 12 * MIB, "limit": 10 * MIB}}
    said = str(out_of_memory(torch.OutOfMemoryError("CUDA out of memory.\nmore"), plan))
    assert "planned were 12 MiB, of 10 MiB, the most of it activations (9 MiB)" in said
    assert "train.gradient_checkpointing=true: CUDA out of memory." in said
    assert "deepspeed.offload=optimizer" in str(
        out_of_memory(
            RuntimeError(), plan | {"memory": plan["memory"] | {"components": sizes | {"optimizer": 99 * MIB}}}
        )
    )


def test_a_model_that_cannot_be_followed_says_why(make_recipe, monkeypatch):
    from misotune.training.resources import ModelPlan

    def build(self):
        raise ValueError("its shapes depend on its numbers")

    monkeypatch.setattr(ModelPlan, "build", build)
    memory = plan_of(make_recipe())["memory"]
    assert "ValueError: its shapes depend on its numbers" in memory["unknown"]


def test_time_is_measured_or_taken_from_an_earlier_run(make_recipe):
    recipe = make_recipe("first", train={"max_steps": 3})
    prepared = prepare_run(recipe, num_devices=1, watcher=Watcher())
    assert prepared.plan["time"] is None
    plan = measure_plan(recipe, prepared)
    measured = plan["measured"]
    assert measured["tokens"] == plan["memory"]["row"]["tokens"] == plan["first_row"]
    assert plan["time"]["hours"] == pytest.approx(plan["tokens"] / measured["tokens_per_s"] / 3600, abs=1e-3)
    run = train(recipe, "name: test\n")
    speeds = [json.loads(line)["total_tokens_per_s"] for line in run.metrics.read_text().splitlines()]
    later = plan_of(make_recipe("second", train={"max_steps": 9}))["time"]
    assert later["from"] == "the run first"
    assert later["tokens_per_s"] == pytest.approx(sum(speeds[1:]) / 2, abs=0.1)
    # Other work says nothing.
    assert plan_of(make_recipe("third", train={"precision": "bf16"}))["time"] is None
