"""DeepSpeed's configuration: what misotune asks for, and what it takes from a file of the user's."""

import json
import re
from dataclasses import replace

import pytest
import torch

from misotune.errors import UsageError
from misotune.recipe.schema import DeepspeedSection
from misotune.training.deepspeed_file import Decided
from misotune.training.engine import choose_engine
from misotune.training.prepared import Watcher, prepare_run

DECIDED = Decided(
    is_bf16=True,
    accumulation=4,
    num_devices=2,
    max_grad_norm=1.0,
    learning_rate=1e-5,
    schedule="cosine",
    betas=(0.9, 0.999),
    epsilon=1e-8,
    weight_decay=0.0,
)
# As transformers' documentation has it, for ZeRO-3 with both offloads.
EVERYTHING_AUTO = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "offload_param": {"device": "cpu", "pin_memory": False},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


@pytest.fixture
def engine_of(tmp_path):
    """Returns the engine of a configuration that lies in a file."""

    def engine(config, **decided):
        path = tmp_path / "zero.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return choose_engine(DeepspeedSection(config=str(path)), replace(DECIDED, **decided))

    return engine


def own(stage, offload="none", **decided):
    return choose_engine(DeepspeedSection(stage=stage, offload=offload), replace(DECIDED, **decided))


def test_without_a_section_transformers_trains_alone():
    engine = choose_engine(None, DECIDED)
    assert (engine.name, engine.config, engine.has_master_weights) == ("transformers", None, False)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_float32_is_float32_in_every_stage(stage):
    engine = own(stage, is_bf16=False)
    assert engine.config is not None
    assert engine.config["zero_optimization"]["stage"] == stage
    assert not engine.config.get("bf16", {}).get("enabled")
    assert not engine.does_autocast


def test_bfloat16_has_float32_master_weights_or_autocast():
    assert own(0).does_autocast
    assert not own(0).has_master_weights
    for stage in (1, 2, 3):
        assert own(stage).has_master_weights
        assert own(stage).config["bf16"] == {"enabled": True}
    assert own(2).config["data_types"] == own(3).config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_offload_says_what_goes_to_the_host():
    zero = own(3, "parameters").config["zero_optimization"]
    assert zero["offload_param"]["device"] == zero["offload_optimizer"]["device"] == "cpu"
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert "offload_param" not in own(2, "optimizer").config["zero_optimization"]
    assert own(2, "optimizer").name == "DeepSpeed ZeRO-2, optimizer offloaded"


def test_the_file_that_everyone_copies_is_taken(engine_of):
    engine = engine_of(EVERYTHING_AUTO)
    assert engine.name == "DeepSpeed ZeRO-3, parameters offloaded"
    # torch's AdamW and the recipe's schedule stand in for the sections.
    assert "optimizer" not in engine.config
    assert engine.config["bf16"] == {"enabled": True}
    assert engine.config["zero_optimization"] == EVERYTHING_AUTO["zero_optimization"]
    assert engine.config["steps_per_print"] == 2000


def test_gathering_for_saves_is_switched_on(engine_of):
    engine = engine_of({"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}})
    assert engine.config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_values_that_agree_with_the_recipe_are_taken(engine_of):
    agreeing = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": 1e-5}},
    }
    assert engine_of(agreeing).stage == 0


REFUSED = {
    "micro-batch": (
        {"train_micro_batch_size_per_gpu": 4},
        "train_micro_batch_size_per_gpu: is 4, but a micro-batch is",
    ),
    "accumulation": (
        {"gradient_accumulation_steps": 8},
        "gradient_accumulation_steps: is 8, but 4 follows from train.batch_size and train.tokens_per_micro_batch; "
        'set it to "auto" or leave it out',
    ),
    "batch": ({"train_batch_size": 64}, "train_batch_size: is 64, but 8 (devices x micro-batches) follows from"),
    "clipping": ({"gradient_clipping": 0.5}, "gradient_clipping: is 0.5, but train.max_grad_norm is 1;"),
    "fp32": ({"bf16": {"enabled": False}}, "bf16.enabled: is false, but train.precision is bf16;"),
    "fp16": ({"fp16": {"enabled": True}}, "fp16.enabled: is true, but train.precision is bf16;"),
    "optimizer": ({"optimizer": {"type": "Lion"}}, 'optimizer.type: is "Lion", but the optimizer is AdamW;'),
    "L2": (
        {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}},
        "optimizer.params.adam_w_mode: the optimizer is AdamW; leave the section out",
    ),
    "rate": (
        {"optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}},
        "optimizer.params.lr: is 3e-05, but train.learning_rate is 1e-05;",
    ),
    "betas": (
        {"optimizer": {"params": {"betas": [0.9, 0.95]}}},
        "optimizer.params.betas: is [0.9, 0.95], but the recipe has train.adam_beta1 0.9 and train.adam_beta2 0.999;",
    ),
    "schedule": ({"scheduler": {"type": "WarmupDecayLR"}}, "but train.schedule is cosine;"),
    "misspelt": ({"gradient_cliping": 1.0}, "gradient_cliping: unknown key; did you mean 'gradient_clipping'?"),
    "curriculum": ({"curriculum_learning": {}}, "curriculum_learning: misotune cannot train with it"),
    "section": ({"bf16": True}, "bf16: needs an object, got true"),
    "stage": ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: needs 0, 1, 2 or 3, got 4"),
    "zero": (
        {"zero_optimization": {"stage": 2, "overlap_com": True}},
        "zero_optimization.overlap_com: DeepSpeed does not take it: Extra inputs are not permitted",
    ),
    "norm": (
        {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
        "zero_optimization.compute_grad_norm: the norm is in the metrics; leave the key out",
    ),
    "sums": ({"data_types": {"grad_accum_dtype": "bf16"}}, 'data_types.grad_accum_dtype: with stage 0 it is "fp32"'),
    "list": ("[]", "needs a JSON object, got list"),
    "no JSON": ('{"bf16":\n', ":2: no JSON: Expecting value"),
    "twice": ('{"bf16": {}, "bf16": {}}', "the key 'bf16' stands there twice"),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_file_that_disagrees_is_refused_with_key_and_cure(engine_of, tmp_path, config, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        engine_of(config)
    assert str(error.value).startswith(f"deepspeed.config: {tmp_path / 'zero.json'}:")


def test_quantised_weights_are_not_divided(engine_of):
    with pytest.raises(UsageError, match=r"zero_optimization.stage: ZeRO-3 cannot divide the weights of lora.quant"):
        engine_of({"zero_optimization": {"stage": 3}}, is_quantized=True)


def test_missing_file_is_named_before_tokens_are_made(make_recipe, tmp_path, monkeypatch):
    path = tmp_path / "none.json"
    monkeypatch.setattr("misotune.training.prepared.read_corpus", lambda *_, **__: pytest.fail("tokens were made"))
    with pytest.raises(UsageError, match=re.escape(f"deepspeed.config: {path} is not there")):
        prepare_run(make_recipe(deepspeed={"config": str(path)}), num_devices=2, watcher=Watcher())


def test_batch_sizes_are_compared_with_the_schedule(make_recipe, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"gradient_accumulation_steps": 4}))
    recipe = make_recipe(deepspeed={"config": str(path)}, train={"pack": False, "batch_size": 8})
    assert prepare_run(recipe, num_devices=2, watcher=Watcher()).engine.stage == 0
    with pytest.raises(UsageError, match="gradient_accumulation_steps: is 4, but 8 follows from"):
        prepare_run(recipe, num_devices=1, watcher=Watcher())


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, DeepSpeed may compile")
def test_deepspeed_compiles_nothing_on_the_cpu():
    import deepspeed

    own(2)
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
