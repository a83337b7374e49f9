"""LoRA on a base model in 4 or 8 bits: it trains as on the same weights written out, and is exported as trained."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from tests.training.rank_driver import Case, train_on_two_ranks
from transformers import AutoModelForCausalLM, AutoTokenizer

from misotune import packages
from misotune.errors import UsageError
from misotune.export.export import export_run
from misotune.export.sentences import proof_sentences
from misotune.quantization import check_bitsandbytes, exact_products, keep_layout, quantization_settings
from misotune.recipe.checking import check_recipe
from misotune.training.prepared import Watcher, prepare_run
from misotune.training.run import train

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra qlora: bitsandbytes"
)
# int8 computes in float16 on the way, and says so at every layer.
quiet = pytest.mark.filterwarnings("ignore:MatMul8bitLt")
KINDS = ("nf4", "int8")


def read_losses(run):
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()]


def load_quantized(folder, kind, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization_settings(kind, is_bf16=dtype == torch.bfloat16)
    )
    keep_layout(model)
    return model


@pytest.fixture(params=KINDS)
def written_out(request, tiny_model_dir, tmp_path):
    """Returns (kind, folder of the tiny model with its linear layers rounded to the kind's levels)."""
    folder = tmp_path / "written-out"
    load_quantized(tiny_model_dir, request.param).dequantize().float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return request.param, folder


LORA = {"rank": 4, "alpha": 8.0}


@needs_bitsandbytes
@quiet
def test_training_is_that_on_the_same_weights_written_out(make_recipe, written_out):
    kind, folder = written_out
    quantized = read_losses(train(make_recipe("quantized", lora=LORA | {"quantization": kind}), "name: t\n"))
    reference = read_losses(train(make_recipe("reference", model={"name": str(folder)}, lora=LORA), "name: t\n"))
    published = read_losses(train(make_recipe("published", lora=LORA), "name: t\n"))
    # int8 on a CPU trains with the weights written out; the transformed products differ in their rounding alone.
    assert quantized == pytest.approx(reference, rel=1e-4)
    if kind == "nf4":  # eight bits change these losses by 4e-6
        assert quantized != pytest.approx(published, rel=1e-4)
    assert quantized[-1] < quantized[0]


@needs_bitsandbytes
@quiet
@pytest.mark.parametrize(("kind", "precision"), [("nf4", "fp32"), ("nf4", "bf16"), ("int8", "bf16")])
def test_the_export_is_the_model_that_was_trained(make_recipe, tmp_path, kind, precision):
    settings = {"max_steps": 12, "learning_rate": 3e-2, "precision": precision}
    recipe = make_recipe(train=settings, lora=LORA | {"quantization": kind})
    run = train(recipe, recipe_text(recipe), watcher=Watcher())
    assert all("lora_" in name for name in load_file(run.final / "adapter_model.safetensors"))
    report = export_run(run, tmp_path / "exports" / "merged")
    # The probe was computed in float32 with the weights written out, and the base model is stored in float32.
    assert report.proof.tolerance == 1e-4
    assert report.proof.difference < 1e-4
    assert report.merge.quantization == kind
    assert report.merge.quantization_shift > (2e-2 if kind == "nf4" else 1e-3)
    assert "quantization_config" not in json.loads((tmp_path / "exports" / "merged" / "config.json").read_text())
    (line,) = [line for line in proof_sentences(report.proof, report.merge) if "quantised" in line]
    assert f"quantised to {kind}: the adapter is merged into those quantised weights, written out in float32" in line


def recipe_text(recipe):
    from misotune.recipe.resolved import DEFAULT, ResolvedRecipe, dump, leaves

    return dump(ResolvedRecipe(recipe, {".".join(path): DEFAULT for path, _ in leaves(recipe)}))


@needs_bitsandbytes
def test_nf4_quantises_its_scales_too_and_computes_in_the_recipe_s_format(tiny_model_dir):
    layer = load_quantized(tiny_model_dir, "nf4", torch.bfloat16).model.layers[0].self_attn.q_proj
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert layer.weight.dtype == torch.uint8
    assert layer.compute_dtype == torch.bfloat16
    assert load_quantized(tiny_model_dir, "nf4").model.layers[0].mlp.up_proj.compute_dtype == torch.float32


@needs_bitsandbytes
def test_a_call_without_gradients_leaves_the_weights_as_they_were(tiny_model_dir):
    """On CPUs with AVX512-BF16 bitsandbytes would store them in another order, and lose the gradient."""
    model = load_quantized(tiny_model_dir, "nf4")
    layer = model.model.layers[0].mlp.up_proj
    before = layer.weight.data.clone()
    inputs = torch.randn(3, 32)
    with torch.no_grad():
        expected = model.eval().model.layers[0].mlp.up_proj(inputs)
    assert torch.equal(layer.weight.data, before)
    inputs.requires_grad_()
    found = model.train().model.layers[0].mlp.up_proj(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert inputs.grad.abs().max() > 0


@needs_bitsandbytes
@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_exact_products_are_those_of_the_weights_written_out_and_end_with_the_block(tiny_model_dir, kind):
    model = load_quantized(tiny_model_dir, kind).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        own = model(ids).logits
        with exact_products(model):
            exact = model(ids).logits
        assert torch.equal(model(ids).logits, own)
        torch.testing.assert_close(model.dequantize().float()(ids).logits, exact, rtol=1e-4, atol=1e-5)


@needs_bitsandbytes
@pytest.mark.distributed
def test_engines_keep_the_losses(make_recipe, tmp_path):
    section = LORA | {"quantization": "nf4"}
    alone = read_losses(train(make_recipe("alone", lora=section), "name: t\n"))
    cases = [
        Case(make_recipe("ddp", lora=section)),
        Case(make_recipe("zero-2", lora=section, deepspeed={"stage": 2})),
        Case(make_recipe("zero-0-bf16", lora=section, deepspeed={"stage": 0}, train={"precision": "bf16"}), ranks=1),
    ]
    ddp, zero, rounded = (read_losses(run) for run in train_on_two_ranks(cases, tmp_path))
    assert ddp == pytest.approx(alone, rel=1e-5)
    assert zero == pytest.approx(alone, rel=1e-5)
    assert rounded == pytest.approx(alone, rel=2e-2)


@needs_bitsandbytes
def test_checkpointing_and_chunked_cross_entropy_go_with_it(make_recipe):
    section = LORA | {"quantization": "nf4"}
    kept = read_losses(train(make_recipe("kept", lora=section), "name: t\n"))
    both = {"gradient_checkpointing": True, "cross_entropy": "chunked"}
    assert read_losses(train(make_recipe("both", lora=section, train=both), "name: t\n")) == pytest.approx(
        kept, rel=1e-5
    )


# Without the package.


def test_a_missing_or_old_bitsandbytes_is_named_with_the_cure_before_anything_is_loaded(make_recipe, monkeypatch):
    monkeypatch.setattr(packages, "installed_version", lambda name: None)
    cure = r"pip install 'bitsandbytes>=0.46.1'"
    with pytest.raises(UsageError, match=rf"lora.quantization 'nf4' needs .* which is not installed: {cure}"):
        prepare_run(make_recipe(lora={"quantization": "nf4"}), num_devices=1, watcher=Watcher())
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.45.5")
    with pytest.raises(UsageError, match=rf"or newer, and 0.45.5 is installed: {cure}"):
        check_bitsandbytes("x")
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.100.0")
    check_bitsandbytes("x")


def test_quantised_weights_are_not_for_zero_3(make_recipe):
    values = make_recipe().model_dump(mode="json")
    values |= {"lora": {"quantization": "nf4"}, "deepspeed": {"stage": 3}}
    found = check_recipe(values)
    assert "lora.quantization 'nf4' cannot be divided by deepspeed.stage 3; use stage 0, 1 or 2" in str(found)
