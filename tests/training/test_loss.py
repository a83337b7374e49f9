"""The two losses, against their definitions written out, on every layout of a step."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from misotune.attention import ATTENTION_NAME, register
from misotune.training.loss import step_loss, token_losses
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train

LOSSES = ("token_mean", "instruction_mean")


@pytest.fixture
def mixture(tmp_path):
    """Two chunks of three rows, a row of two turns, and a row alone; responses of very different lengths."""
    path = tmp_path / "mixture.jsonl"
    lengths = [1, 7, 30, 2, 18, 4]
    rows = [
        {"id": f"row-{i}", "chunk": f"chunk-{i // 3}", "output": "word " * length + "."}
        for i, length in enumerate(lengths)
    ]
    rows += [{"id": "row-6", "output": "four", "history_loss": True}, {"id": "row-7", "output": "alone " * 9}]
    turns = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "It is two, of course."}]
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            messages = [*(turns if i == 6 else ()), {"role": "user", "content": f"Question {i}?"}]
            file.write(json.dumps(row | {"inputs": [{"role": "full", "messages": messages}]}) + "\n")
    return path


@pytest.fixture
def mixture_recipe(make_recipe, mixture):
    def make(name, loss, **train):
        return make_recipe(
            name,
            data={"path": str(mixture), "max_length": 640},
            miso={"mode": "sft"},
            train={"loss": loss, "batch_size": 4, "max_steps": 3, **train},
        )

    return make


def literal_loss(model, samples, loss):
    """The definition, sample by sample, by stock attention over each sample's whole text."""
    by_instruction = []
    for sample in samples:
        ids = torch.as_tensor([*sample.inputs[0].tolist(), *sample.output.tolist()])
        log_probabilities = model(ids[None]).logits[0].log_softmax(-1)
        offset = len(sample.inputs[0])
        ends = (*sample.starts[1:], len(sample.output))
        for start, end in zip(sample.starts, ends, strict=True):
            trained = [offset + i for i in range(start, end) if sample.is_trained[i]]
            by_instruction.append([-log_probabilities[i - 1, ids[i]] for i in trained])
    if loss == "token_mean":
        tokens = [token for instruction in by_instruction for token in instruction]
        return sum(tokens) / len(tokens)
    return sum(sum(tokens) / len(tokens) for tokens in by_instruction) / len(by_instruction)


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("num_devices", "capacity"), [(1, 2000), (1, 300), (3, 300)])
def test_a_step_s_loss_and_gradient_are_those_of_the_definition(mixture_recipe, loss, num_devices, capacity):
    """Summed over the micro-batches of a step; devices' gradients are averaged."""
    recipe = mixture_recipe("x", loss, tokens_per_micro_batch=capacity)
    batches = prepare_run(recipe, num_devices=num_devices, watcher=Watcher()).micro_batches
    register()
    model, stock = (
        AutoModelForCausalLM.from_pretrained(recipe.model.name, dtype=torch.float32, attn_implementation=name)
        for name in (ATTENTION_NAME, "eager")
    )
    slots = batches.schedule.accumulation * num_devices
    assert slots > 1 or capacity == 2000
    for step in range(2):
        total = torch.zeros(())
        for batch in (batches[step * slots + slot] for slot in range(slots)):
            arguments = {key: batch[key] for key in ("input_ids", "position_ids", "miso", "logits_to_keep")}
            logits = model(**arguments, use_cache=False).logits
            weights = batch["target_weights"]
            part = step_loss(token_losses(logits, batch["targets"]), batch["num_trained_in_step"], num_devices, weights)
            total = total + part / num_devices
        samples = [batches.samples[index] for _, index in batches.schedule.step_samples(step)]
        expected = literal_loss(stock, samples, loss)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(model, total), gradient(stock, expected), rtol=1e-4, atol=1e-6)


def test_chunks_are_counted_by_instruction(mixture_recipe):
    run = prepare_run(mixture_recipe("x", "instruction_mean"), num_devices=1, watcher=Watcher())
    assert len(run.corpus.samples) == 4
    assert run.micro_batches.count(0).instructions == 8
    assert run.plan["loss"] == "instruction_mean"


def test_target_weights_have_the_mean_one_and_are_equal_inside_an_instruction(mixture_recipe):
    batches = prepare_run(
        mixture_recipe("x", "instruction_mean", tokens_per_micro_batch=4000), num_devices=1, watcher=Watcher()
    ).micro_batches
    weights = batches[0]["target_weights"]
    assert weights.mean().item() == pytest.approx(1)
    by_length = sorted({round(1 / w, 6) for w in weights.tolist()})
    trained = [n for _, i in batches.schedule.step_samples(0) for n in batches.samples[i].num_trained_by_instruction]
    scale = by_length[0] / min(trained)
    assert by_length == pytest.approx([n * scale for n in sorted(set(trained))], rel=1e-4)


def losses_of(recipe):
    return [json.loads(line)["loss"] for line in train(recipe, "name: t\n").metrics.read_text().splitlines()]


def test_packing_and_accumulation_do_not_change_instruction_mean(mixture_recipe):
    packed = losses_of(mixture_recipe("packed", "instruction_mean", tokens_per_micro_batch=4000))
    assert packed == pytest.approx(losses_of(mixture_recipe("single", "instruction_mean", pack=False)), rel=1e-5)
    assert packed != pytest.approx(losses_of(mixture_recipe("tokens", "token_mean")), rel=1e-3)


def test_both_losses_agree_where_a_step_is_one_instruction(make_recipe):
    token, instruction = (
        losses_of(make_recipe(loss, train={"batch_size": 1, "loss": loss, "max_steps": 3})) for loss in LOSSES
    )
    assert token == pytest.approx(instruction, rel=1e-6)
