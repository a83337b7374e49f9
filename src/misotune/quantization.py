"""Frozen weights in 4 or 8 bits (QLoRA): the one place where bitsandbytes' settings stand.

Training quantises the base model with them, and the export makes just those weights again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from misotune.packages import require_package

# The first that quantises on a CPU too; transformers asks for it.
MIN_VERSION = "0.46.1"


def check_bitsandbytes(what: str) -> None:
    """Makes sure that bitsandbytes is installed.

    Args:
        what: What asks for it, for the message.

    Raises:
        UsageError: It is not, or is too old.
    """
    require_package(what, "bitsandbytes", MIN_VERSION)


def quantization_settings(kind: str, *, is_bf16: bool = True) -> Any:
    """Returns transformers' settings for a quantised base model.

    Args:
        kind: `nf4`: four bits, levels at the quantiles of a normal distribution, with the blocks' scales
            quantised too (QLoRA, arXiv 2305.14314). `int8`: eight bits, with outlying activations apart
            (LLM.int8, arXiv 2208.07339).
        is_bf16: Whether products are computed in bfloat16, else in float32.
    """
    from torch import bfloat16, float32
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=bfloat16 if is_bf16 else float32,
    )


def keep_layout(model: Any) -> None:
    """Keeps bitsandbytes from storing 4-bit weights in another order on CPUs with AVX512-BF16.

    It would do so at the first call without gradients, and from then on return results without gradients, and
    other weights when asked for them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def exact_products(model: Any) -> Iterator[None]:
    """Makes quantised layers multiply by their weights as written out, in the format of their inputs.

    By themselves they round more than the weights: int8 its inputs, nf4 its products.
    """
    changed: list[tuple[Any, Any]] = []
    for module in model.modules():
        # A parameter of its own: peft's layers show the weight of the layer that they wrap.
        if type(module._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params"):
            changed.append((module, vars(module).get("forward")))
            module.forward = partial(_multiply, module)
    try:
        yield
    finally:
        for module, forward in changed:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _multiply(module: Any, inputs: Any) -> Any:
    from torch.nn.functional import linear
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight, getattr(module, "state", None)).to(inputs.dtype)
    return linear(inputs, weight, None if module.bias is None else module.bias.to(inputs.dtype))
