"""Two gloo ranks, for real: every engine ends at the weights that one process without DeepSpeed trains."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.training.rank_driver import train_on_two_ranks
from tests.training.test_engine import EVERYTHING_AUTO
from transformers import AutoModelForCausalLM

from misotune.training.run import train
from misotune.training.saving.checkpoints import list_checkpoints

SETTINGS = {
    "max_steps": 3,
    "batch_size": 5,
    "learning_rate": 1e-3,
    # Where a gradient is zero but for rounding, AdamW would make a whole step of the rounding.
    "adam_epsilon": 1e-6,
    "weight_decay": 0.1,
    "trial_save": False,
}
# Of the way that the weights went. fp32 sums in another order; ZeRO divides its flat buffers in yet another.
TOLERANCE = 1e-4
# The plain run keeps float32 weights under autocast, DeepSpeed computes with bfloat16 weights.
BF16_TOLERANCE = 0.1
ENGINES = {
    "ddp": None,
    "zero-0": {"stage": 0},
    "zero-1": {"stage": 1},
    "zero-2": {"stage": 2},
    "zero-2-optimizer": {"stage": 2, "offload": "optimizer"},
    "zero-3": {"stage": 3},
    "zero-3-optimizer": {"stage": 3, "offload": "optimizer"},
    "zero-3-parameters": {"stage": 3, "offload": "parameters"},
}


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def final_weights(run):
    path = run.final / "model.safetensors"
    weights = load_file(path if path.exists() else run.final / "adapter_model.safetensors")
    return {name: weight.float() for name, weight in weights.items()}


def way_between(weights, others):
    assert weights.keys() == others.keys()
    return sum((weights[name] - others[name]).pow(2).sum().item() for name in weights) ** 0.5


def check_against(plain, runs, start, tolerance):
    """Compares the runs' final weights with the plain run's, relative to its way from the start."""
    way = way_between(final_weights(plain), start)
    errors = {run.name: way_between(final_weights(run), final_weights(plain)) / way for run in runs}
    assert way > 0
    assert all(error <= tolerance for error in errors.values()), errors


def check_probe(run):
    """The saved model gives in stock transformers the logits that were recorded at the end of training."""
    probe = load_file(run.probe)
    model = AutoModelForCausalLM.from_pretrained(run.final, dtype=torch.float32)
    with torch.no_grad():
        logits = model(probe["input_ids"][None]).logits[0, -len(probe["logits"]) :]
    torch.testing.assert_close(logits, probe["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.distributed
@pytest.mark.slow
def test_every_engine_ends_at_the_weights_of_one_process(make_recipe, tiny_model_dir, tmp_path):
    settings = SETTINGS | {"precision": "fp32"}
    plain = train(make_recipe("plain", train=settings), "name: test\n")
    (tmp_path / "zero.json").write_text(json.dumps(EVERYTHING_AUTO))
    recipes = [make_recipe(name, train=settings, deepspeed=section) for name, section in ENGINES.items()]
    recipes += [
        make_recipe("zero-3-checkpointing", train=settings | {"gradient_checkpointing": True}, deepspeed={"stage": 3}),
        make_recipe("own-file", train=settings, deepspeed={"config": str(tmp_path / "zero.json")}),
    ]
    runs = train_on_two_ranks(recipes, tmp_path)
    check_against(plain, runs, load_file(tiny_model_dir / "model.safetensors"), TOLERANCE)
    for run in runs:
        assert losses(run) == pytest.approx(losses(plain), rel=1e-5), run.name
        check_probe(run)
    assert runs[-1].read_plan()["engine"] == "DeepSpeed ZeRO-3, parameters offloaded"


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.slow
def test_bfloat16_stays_near_the_weights_of_one_process(make_recipe, tiny_model_dir, tmp_path):
    settings = SETTINGS | {"precision": "bf16"}
    plain = train(make_recipe("plain", train=settings), "name: test\n")
    names = ("zero-0", "zero-1", "zero-2-optimizer", "zero-3", "zero-3-parameters")
    recipes = [make_recipe(name, train=settings, deepspeed=ENGINES[name]) for name in names]
    runs = train_on_two_ranks(recipes, tmp_path)
    check_against(plain, runs, load_file(tiny_model_dir / "model.safetensors"), BF16_TOLERANCE)
    for run in runs:
        assert load_file(run.final / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
        assert losses(run) == pytest.approx(losses(plain), rel=1e-3), run.name
    # ZeRO-0 computes as training without DeepSpeed does.
    assert losses(runs[0]) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
def test_adapters_end_at_the_weights_of_one_process(make_recipe, tmp_path):
    settings = SETTINGS | {"precision": "fp32", "save_every_steps": 2}
    kinds = {"lora": {"rank": 4}, "rslora": {"rank": 4, "use_rslora": True}}
    recipes = [
        make_recipe(f"{kind}-{name}", train=settings, lora=lora, deepspeed=ENGINES[name])
        for kind, lora in kinds.items()
        for name in ("ddp", "zero-2", "zero-3")
    ]
    runs = train_on_two_ranks(recipes, tmp_path)
    for kind, lora in kinds.items():
        plain = train(make_recipe(kind, train=settings, lora=lora), "name: test\n")
        ours = [run for run in runs if run.name.startswith(f"{kind}-")]
        # From zeros, where the B matrices start: the A matrices are drawn from the seed, and must be the same too.
        zeros = {name: torch.zeros_like(weight) for name, weight in final_weights(plain).items()}
        check_against(plain, ours, zeros, TOLERANCE)
        for run in ours:
            assert losses(run) == pytest.approx(losses(plain), rel=1e-5), run.name
            assert [folder.name for folder in list_checkpoints(run.checkpoints)] == ["step-2", "step-3"]
            assert json.loads((run.final / "adapter_config.json").read_text())["use_rslora"] is ("use_rslora" in lora)
