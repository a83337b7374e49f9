"""A DeepSpeed configuration of the user's own: read, and checked against the recipe before anything is loaded.

What the recipe decides must be "auto" in the file, absent, or the same. DeepSpeed ignores an unknown key of the first
level, and with it what its writer wanted: here it is refused.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from misotune.errors import UsageError

# What only says how DeepSpeed goes about its work; everything else of the first level is decided by the recipe.
_FREE = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "allgather_bucket_size",
        "checkpoint",
        "comms_logger",
        "communication_data_type",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
_DECIDED = frozenset(
    {
        "amp",
        "bf16",
        "bfloat16",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    }
)
_SECTIONS = ("amp", "bf16", "bfloat16", "data_types", "fp16", "optimizer", "scheduler", "zero_optimization")
# What transformers fills in of the section zero_optimization.
_AUTO = [
    (key, "auto") for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
]
_SCHEDULERS = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}


@dataclass(frozen=True, slots=True)
class Decided:
    """What the recipe decides, and a DeepSpeed configuration may say too.

    Attributes:
        is_bf16: bfloat16, else float32.
        accumulation: Micro-batches of a step on each device.
        num_devices: Devices that share a step.
        max_grad_norm: Norm to which gradients are scaled down; 0: no clipping.
        learning_rate: Highest learning rate.
        schedule: `cosine`, `linear` or `constant`.
        betas: AdamW's.
        epsilon: AdamW's.
        weight_decay: AdamW's.
        is_quantized: Frozen weights are quantised.
    """

    is_bf16: bool
    accumulation: int
    num_devices: int
    max_grad_norm: float
    learning_rate: float
    schedule: str
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    is_quantized: bool = False

    def values(self) -> Iterator[tuple[str, Any, str]]:
        """Yields dotted keys of a DeepSpeed configuration, their value, and what decides it."""
        batch = "follows from train.batch_size and train.tokens_per_micro_batch"
        precision = f"train.precision is {'bf16' if self.is_bf16 else 'fp32'}"
        yield "train_micro_batch_size_per_gpu", 1, "a micro-batch is one packed row"
        yield "gradient_accumulation_steps", self.accumulation, f"{self.accumulation} {batch}"
        size = self.accumulation * self.num_devices
        yield "train_batch_size", size, f"{size} (devices x micro-batches) {batch}"
        yield "gradient_clipping", self.max_grad_norm, f"train.max_grad_norm is {self.max_grad_norm:g}"
        yield "bf16.enabled", self.is_bf16, precision
        yield "bfloat16.enabled", self.is_bf16, precision
        yield "fp16.enabled", False, precision
        yield "amp.enabled", False, precision
        yield "optimizer.type", "AdamW", "the optimizer is AdamW"
        yield "optimizer.params.lr", self.learning_rate, f"train.learning_rate is {self.learning_rate:g}"
        names = ("train.adam_beta1", "train.adam_beta2")
        told = " and ".join(f"{name} {beta:g}" for name, beta in zip(names, self.betas, strict=True))
        yield "optimizer.params.betas", list(self.betas), f"the recipe has {told}"
        yield "optimizer.params.eps", self.epsilon, f"train.adam_epsilon is {self.epsilon:g}"
        yield "optimizer.params.weight_decay", self.weight_decay, f"train.weight_decay is {self.weight_decay:g}"
        yield "scheduler.type", _SCHEDULERS[self.schedule], f"train.schedule is {self.schedule}"
        yield "scheduler.params.warmup_max_lr", self.learning_rate, f"train.learning_rate is {self.learning_rate:g}"


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """Returns the configuration in a JSON file, as it stands there.

    Raises:
        UsageError: There is no such file, or it holds no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _once(path, pairs))
    except FileNotFoundError as error:
        raise UsageError(f"deepspeed.config: {path} is not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"deepspeed.config: {path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"deepspeed.config: {path}:{error.lineno}: no JSON: {error.msg}") from error
    if not isinstance(config, dict):
        raise UsageError(f"deepspeed.config: {path}: needs a JSON object, got {type(config).__name__}")
    return config


def stage_of(path: Path, config: Mapping[str, Any]) -> int:
    """Returns the ZeRO stage that a configuration asks for; DeepSpeed's default is 0.

    Raises:
        UsageError: It is none of 0 to 3.
    """
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        _refuse(path, "zero_optimization", f"needs an object, got {zero!r}")
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:
        _refuse(path, "zero_optimization.stage", f"needs 0, 1, 2 or 3, got {stage!r}")
    return stage


def check_deepspeed_file(path: Path, config: Mapping[str, Any], decided: Decided) -> None:
    """Refuses a configuration that disagrees with the recipe, or that DeepSpeed would not take.

    Raises:
        UsageError: The first key that is wrong, with the cure.
    """
    for key in config:
        if key not in _FREE | _DECIDED:
            near = get_close_matches(key, _FREE | _DECIDED, n=1)
            _refuse(path, key, f"unknown key; did you mean {near[0]!r}?" if near else "misotune cannot train with it")
        if key in _SECTIONS and not isinstance(config[key], dict):
            _refuse(path, key, f"needs an object, got {json.dumps(config[key])}")
    for key, value, why in decided.values():
        got = _look_up(config, key)
        if got is not None and got != "auto" and not _is_same(got, value):
            _refuse(path, key, f'is {json.dumps(got)}, but {why}; set it to "auto" or leave it out')
    stage = stage_of(path, config)
    if stage == 0 and _look_up(config, "data_types.grad_accum_dtype") not in (None, "fp32"):
        _refuse(path, "data_types.grad_accum_dtype", 'with stage 0 it is "fp32"; leave it out')
    if decided.is_quantized and stage == 3:
        _refuse(path, "zero_optimization.stage", "ZeRO-3 cannot divide the weights of lora.quantization; use 0, 1 or 2")
    _check_optimizer(path, config)
    _check_zero(path, config.get("zero_optimization", {}))


def _check_optimizer(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses settings of an optimizer other than AdamW, for torch's stands in for the section's."""
    known = {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode", "bias_correction"}
    params = _look_up(config, "optimizer.params") or {}
    for name, value in params.items():
        if name not in known or (name in ("adam_w_mode", "bias_correction") and value is not True):
            _refuse(path, f"optimizer.params.{name}", "the optimizer is AdamW; leave the section out")


def _check_zero(path: Path, zero: Mapping[str, Any]) -> None:
    if zero.get("compute_grad_norm", True) is not True:
        _refuse(path, "zero_optimization.compute_grad_norm", "the norm is in the metrics; leave the key out")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if (key, value) not in _AUTO})
    except ValueError as error:  # pydantic's, over several lines
        _, key, what, *_ = [*str(error).splitlines(), "", "", ""]
        _refuse(path, f"zero_optimization.{key}".rstrip("."), f"DeepSpeed does not take it: {what.strip()}")


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise UsageError(f"deepspeed.config: {path}: the key {key!r} stands there twice")
        seen[key] = value
    return seen


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_same(got: Any, value: Any) -> bool:
    if isinstance(value, list):
        return (
            isinstance(got, list)
            and len(got) == len(value)
            and all(_is_same(*pair) for pair in zip(got, value, strict=True))
        )
    if isinstance(value, bool) or isinstance(got, bool):
        return got is value
    if isinstance(value, str):
        # DeepSpeed's Adam is AdamW too, unless told otherwise.
        return isinstance(got, str) and (got.lower() == value.lower() or (value, got.lower()) == ("AdamW", "adam"))
    return isinstance(got, int | float) and abs(got - value) <= 1e-9 * abs(value)


def _refuse(path: Path, key: str, what: str) -> NoReturn:
    raise UsageError(f"deepspeed.config: {path}: {key}: {what}")
