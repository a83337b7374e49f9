"""LoRA adapters: their random start is the recipe's seed's, and rank-stabilised ones are exported with their scale."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_quantized import LORA, read_losses, recipe_text

from misotune.errors import RunError
from misotune.export.export import export_run
from misotune.training.liger import patch_and_compare
from misotune.training.model import ModelSource, load_model
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train


def test_an_adapter_starts_from_the_recipe_s_seed_whatever_was_drawn_before(make_recipe):
    runs = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        torch.rand(len(runs) + 1)
        runs.append(train(make_recipe(name, seed=seed, lora=LORA, train={"max_steps": 2}), "name: t\n"))
    one, two, other = (load_file(run.final / "adapter_model.safetensors") for run in runs)
    assert read_losses(runs[0]) == read_losses(runs[1])
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


def test_the_merged_weights_have_the_scale_of_rank_stabilised_adapters(make_recipe, tmp_path):
    recipe = make_recipe(lora=LORA | {"use_rslora": True}, train={"max_steps": 6, "learning_rate": 3e-2})
    run = train(recipe, recipe_text(recipe))
    report = export_run(run, tmp_path / "merged")
    assert report.proof.difference < 1e-4
    assert report.merge.share == pytest.approx(1.0, abs=1e-3)
    name = "model.layers.0.mlp.up_proj"
    adapter = load_file(run.final / "adapter_model.safetensors")
    down, up = (adapter[f"base_model.model.{name}.lora_{matrix}.weight"] for matrix in "AB")
    base = load_file(f"{recipe.model.name}/model.safetensors")[f"{name}.weight"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    alpha, rank = LORA["alpha"], LORA["rank"]
    torch.testing.assert_close(merged, base + alpha / math.sqrt(rank) * up @ down, rtol=1e-5, atol=1e-6)


def halve_norms(model):
    """What a kernel with a fault would do: every norm returns half."""
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = lambda x, own=module.forward: own(x) / 2


def test_other_kernels_are_compared_with_transformers_own_before_they_train(make_recipe):
    recipe = make_recipe()
    batch = prepare_run(recipe, num_devices=1, watcher=Watcher()).micro_batches[0]
    arguments = {key: batch[key] for key in ("input_ids", "position_ids", "miso", "logits_to_keep")}

    def compare(patch, *, is_bf16=False):
        model = load_model(ModelSource(recipe.model.name), torch.float32)
        return patch_and_compare(model, arguments, torch.device("cpu"), is_bf16=is_bf16, patch=patch), model.training

    text, is_training = compare(lambda model: None)
    assert text == (
        "Liger kernels: logits of the first row differ from those of transformers' own by 0.0e+00 "
        "(relative; 1e-03 passes)"
    )
    assert is_training
    for is_bf16 in (False, True):
        with pytest.raises(RunError, match=r"train.liger_kernels: logits .* more than .*; set it to false"):
            compare(halve_norms, is_bf16=is_bf16)
