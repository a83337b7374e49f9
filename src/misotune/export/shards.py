"""The weights that DeepSpeed's ranks hold in pieces, joined: the one file that reads its checkpoints."""

import contextlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from misotune.errors import RunError, UsageError


def find_shards(folder: Path) -> Path | None:
    """Returns the folder of the files in which ZeRO's ranks keep their pieces; None: there are none.

    Without ZeRO (stage 0) every rank has all weights, and none are there.
    """
    latest = folder / "latest"
    tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    shards = folder / tag
    return shards if tag and any(shards.glob("*zero_pp_rank_*_optim_states.pt")) else None


def consolidated(folder: Path) -> Mapping[str, Any]:
    """Returns the weights by name, in float32 as ZeRO's optimizer keeps them; each is joined at `whole`.

    The files are pickles, which run what is in them when they are read: they must be of a run that you trust.

    Args:
        folder: The checkpoint; `latest` in it names the folder of the files.

    Raises:
        UsageError: DeepSpeed is not installed.
        RunError: Files are missing, or cut.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            return get_fp32_state_dict_from_zero_checkpoint(str(folder), lazy_mode=True) or {}
    except ImportError as error:
        raise UsageError(
            f"{folder}: its weights are in DeepSpeed's files, and deepspeed cannot be imported ({error}); "
            "pip install deepspeed"
        ) from error
    except Exception as error:  # of pickle, zip, torch and DeepSpeed, each its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{folder}: DeepSpeed cannot join its ranks' files: {reason:.200}; export another step"
        ) from error


def whole(weight: Any) -> Tensor:
    """Returns a joined weight."""
    return weight.contiguous()


def load_consolidated(folder: Path, weights: Mapping[str, Any]) -> tuple[Any, torch.dtype]:
    """Returns the model of a checkpoint's configuration with the joined weights in float32, and its own format.

    Raises:
        RunError: They are not the weights of that model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # Making the model changes it.
        own_dtype: torch.dtype = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: no model can be made of its config.json: {str(error).splitlines()[0]}") from error
    model.tie_weights()
    live = model.state_dict()
    joined = {name: weight for name, weight in weights.items() if name in live}
    if odd := sorted(set(weights) - set(joined)):
        raise RunError(f"{folder}: DeepSpeed's files hold weights that the model has not, first: {odd[0]}")
    filled: set[int] = set()
    with torch.no_grad():
        for name, weight in joined.items():
            if tuple(weight.shape) != tuple(live[name].shape):
                raise RunError(
                    f"{folder}: DeepSpeed's files hold {name} of shape {list(weight.shape)}, "
                    f"and config.json makes it {list(live[name].shape)}"
                )
            live[name].copy_(whole(weight))
            filled.add(live[name].data_ptr())
    # A tied weight is filled by its twin.
    if lacking := [name for name, weight in live.items() if weight.data_ptr() not in filled]:
        raise RunError(f"{folder}: DeepSpeed's files lack weights of the model, first: {lacking[0]}")
    return model.eval(), own_dtype


def save_consolidated_adapter(folder: Path, out: Path) -> int:
    """Writes an adapter of the joined weights to a folder that is not there; returns its number of tensors.

    Where peft saved the adapter too, it must be the same: its tensors are the joined ones, rounded.

    Raises:
        RunError: It is not, or there is none in DeepSpeed's files.
    """
    from safetensors.torch import load_file, save_file

    weights = {
        # peft saves without the adapter's name.
        name.replace(".default.", ".").removesuffix(".default"): whole(weight).clone()
        for name, weight in consolidated(folder).items()
        if any(part in name for part in (".lora_", "modules_to_save.default", "trainable_tokens_delta.default"))
    }
    if not weights:
        raise RunError(f"{folder}: DeepSpeed's files hold no weights of an adapter; export another step")
    saved = folder / "adapter_model.safetensors"
    if saved.is_file():
        for name, tensor in load_file(saved).items():
            if name not in weights or not torch.equal(weights[name].to(tensor.dtype), tensor):
                raise RunError(f"{saved}: {name} has other values than DeepSpeed's files; export another step")
    out.mkdir()
    shutil.copyfile(folder / "adapter_config.json", out / "adapter_config.json")
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return len(weights)
