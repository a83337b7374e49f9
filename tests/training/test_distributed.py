"""Two gloo ranks, for real: devices and ZeRO stages do not change the losses."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves
from misotune.runs import RunFolder
from misotune.training.run import train
from misotune.training.saving.checkpoints import list_checkpoints

ENGINES = {
    "ddp": (None, "token_mean"),
    "ddp-instruction-mean": (None, "instruction_mean"),
    "zero-2": ({"stage": 2}, "token_mean"),
    "zero-3": ({"stage": 3}, "token_mean"),
}
# fp32 sums in another order; ZeRO gathers and scatters its flat buffers in yet another.
RELATIVE_TOLERANCE = 1e-5


def losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def train_on_two_ranks(recipe, tmp_path):
    origins = {".".join(path): DEFAULT for path, _ in leaves(recipe)}
    path = tmp_path / f"{recipe.name}.yaml"
    path.write_text(dump(ResolvedRecipe(recipe, origins)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "misotune", "train", str(path), "--nproc", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return RunFolder(tmp_path / "runs" / recipe.name), done.stderr


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("deepspeed", "loss"), ENGINES.values(), ids=ENGINES)
def test_two_ranks_train_as_one_and_save_the_whole_model(make_recipe, tmp_path, deepspeed, loss):
    settings = {"max_steps": 3, "save_every_steps": 2, "batch_size": 5, "loss": loss}
    one = train(make_recipe("one", train=settings), "name: test\n")
    two, said = train_on_two_ranks(make_recipe("two", train=settings, deepspeed=deepspeed), tmp_path)
    assert "torch.distributed.run" in said  # the exact command is announced
    assert losses(two) == pytest.approx(losses(one), rel=RELATIVE_TOLERANCE)
    assert [folder.name for folder in list_checkpoints(two.checkpoints)] == ["step-2", "step-3"]

    probe = load_file(two.probe)
    model = AutoModelForCausalLM.from_pretrained(two.final, dtype=torch.float32)
    with torch.no_grad():
        logits = model(probe["input_ids"][None]).logits[0, -len(probe["logits"]) :]
    torch.testing.assert_close(logits, probe["logits"], rtol=1e-4, atol=1e-4)
