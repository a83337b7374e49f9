"""The one file that knows DeepSpeed's configuration."""

from typing import Any

from misotune.recipe.schema import DeepspeedSection


def deepspeed_config(section: DeepspeedSection, *, is_bf16: bool) -> dict[str, Any]:
    """Returns DeepSpeed's configuration; batch sizes and clipping are filled in by transformers.

    Args:
        section: The recipe's section.
        is_bf16: bfloat16 with float32 master weights, else float32.
    """
    zero: dict[str, Any] = {"stage": section.stage}
    if section.stage == 3:
        # Without it a save holds empty weights (users' page, row 12).
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if section.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if section.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": is_bf16},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # torch's own AdamW is used: no compiled optimizer is needed.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
