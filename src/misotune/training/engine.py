"""How a run's weights, gradients and optimizer are kept and shared out: by transformers alone, or by DeepSpeed's ZeRO.

The one file that knows how DeepSpeed is configured. Whatever the engine, a step is the same: the same loss, the same
gradient, clipped by its whole norm, and torch's own fused AdamW on float32 weights. Nothing is compiled.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from misotune.errors import UsageError
from misotune.recipe.schema import DeepspeedSection
from misotune.training.deepspeed_file import Decided, check_deepspeed_file, read_deepspeed_file, stage_of

# Elements of the buffer in which DeepSpeed collects gradients before it reduces them. Its own default of 5e8 takes
# 1 GB, or 2 GB in float32, whatever the model; beyond some 50 MB a larger one is not faster.
REDUCE_BUCKET_ELEMENTS = 50_000_000


@dataclass(frozen=True, slots=True)
class Engine:
    """What trains.

    Attributes:
        stage: DeepSpeed's ZeRO stage; None: transformers alone, with DDP on several devices.
        offload: What is kept in the host's memory: `none`, `optimizer` or `parameters`.
        config: DeepSpeed's configuration; None: without it.
    """

    stage: int | None
    offload: str
    config: dict[str, Any] | None

    @property
    def name(self) -> str:
        """As the plan says it."""
        if self.stage is None:
            return "transformers"
        return f"DeepSpeed ZeRO-{self.stage}" + ("" if self.offload == "none" else f", {self.offload} offloaded")

    @property
    def has_master_weights(self) -> bool:
        """True when DeepSpeed keeps float32 master weights beside the model's weights.

        False: the model's own weights are what is trained; they are float32, under autocast for bf16.
        """
        return bool(self.stage)

    @property
    def clips_in_callback(self) -> bool:
        """True when `WholeGradientNorm` clips the gradient, and nothing else may."""
        return self.stage == 0

    @property
    def does_autocast(self) -> bool:
        """True when DeepSpeed computes in bfloat16 by autocast, of which transformers must not be told."""
        return self.config is not None and "torch_autocast" in self.config


def choose_engine(section: DeepspeedSection | None, decided: Decided) -> Engine:
    """Returns the engine of a recipe's DeepSpeed section, checked before anything is loaded.

    Args:
        section: The section; None: without DeepSpeed.
        decided: What other sections say.

    Raises:
        UsageError: DeepSpeed is not installed; or the user's own configuration cannot be read, or disagrees with the
            recipe.
    """
    if section is None:
        return Engine(None, "none", None)
    compile_nothing()
    if section.config is None:
        assert section.stage is not None  # a rule of the recipe
        own, stage = _own_config(section.stage, section.offload), section.stage
    else:
        path = Path(section.config)
        own = read_deepspeed_file(path)
        stage = stage_of(path, own)
        check_deepspeed_file(path, own, decided)
    return Engine(stage, _offload(own), _complete(own, stage, is_bf16=decided.is_bf16))


def compile_nothing() -> None:
    """Keeps DeepSpeed on gloo where there is no GPU: else it compiles collectives of its own for a minute.

    Raises:
        UsageError: DeepSpeed is not installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise UsageError(f"deepspeed: the package cannot be imported ({error}); pip install deepspeed") from error
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class WholeGradientNorm(TrainerCallback):
    """Clips the gradient under DeepSpeed's ZeRO-0, and tells its norm.

    Without ZeRO and in float32, DeepSpeed clips and forgets the norm. Here it is taken just before the optimizer steps,
    when the gradient is summed over devices and micro-batches, and left where the engine looks for it.

    Args:
        max_grad_norm: Gradients are scaled down to this norm; 0: no clipping.
    """

    def __init__(self, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Hooks into torch's optimizer, within accelerate's and DeepSpeed's."""
        while not isinstance(optimizer, torch.optim.AdamW):
            optimizer = optimizer.optimizer
        optimizer.register_step_pre_hook(self._clip)

    def _clip(self, optimizer: Any, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        limit = self.max_grad_norm or float("inf")
        optimizer._global_grad_norm = torch.nn.utils.clip_grad_norm_(weights, limit)


def _own_config(stage: int, offload: str) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS}
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload != "none":
        zero["offload_optimizer"] = host
    if offload == "parameters":
        zero["offload_param"] = host
    return {"zero_optimization": zero}


def _complete(own: dict[str, Any], stage: int, *, is_bf16: bool) -> dict[str, Any]:
    """Returns the configuration with what the recipe decides; transformers fills in what is "auto"."""
    config = copy.deepcopy({"zero_optimization": {"stage": stage}} | own)
    # torch's AdamW and the recipe's schedule stand in for them, with the same numbers.
    for key in ("optimizer", "scheduler", "fp16", "amp", "bfloat16", "bf16", "train_batch_size"):
        config.pop(key, None)
    config |= {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    config.setdefault("steps_per_print", 2**31)
    # Else DeepSpeed puts its own AdamW in place of torch's, and compiles it.
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    if stage == 0:
        # DeepSpeed's bf16 optimizer without ZeRO takes a step on zeros to make its states, and so counts one step too
        # many ever after (0.19.8). Its autocast keeps the weights in float32, as training without DeepSpeed does.
        if is_bf16:
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return config
    config["bf16"] = {"enabled": is_bf16}
    zero = config["zero_optimization"]
    if is_bf16 and stage > 1:
        # Micro-batches would be summed in bfloat16, which loses the more the more there are. With stage 1, where each
        # device keeps the whole gradient, DeepSpeed's own default stays: it would double.
        config["data_types"] = {"grad_accum_dtype": "fp32"} | config.get("data_types", {})
    if stage == 3:
        # Without it a save holds empty weights (LLaMA-Factory#253).
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return config


def _offload(config: dict[str, Any]) -> str:
    zero = config.get("zero_optimization", {})
    for key, name in (("offload_param", "parameters"), ("offload_optimizer", "optimizer")):
        if (zero.get(key) or {}).get("device", "none") != "none":
            return name
    return "none"
