"""Looks at packages in a process of its own, where one that is broken, ends the process or hangs does no harm.

    python -m misotune.doctor.probe NAME...

Prints a JSON line before each name, and one after it with the facts or the error.
"""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

# Where the name of the module is not that of the package.
MODULES = {"pyyaml": "yaml", "liger-kernel": "liger_kernel.transformers"}
_HUB_TIMEOUT_S = 5
_MAX_ERROR = 200


def main(names: Sequence[str]) -> None:
    """Looks at each name in turn; standard output is for the answers alone."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    for name in names:
        answers.write(json.dumps({"started": name}) + "\n")
        try:
            answer = {"facts": _LOOKS.get(name, lambda name=name: _import(name))()}
        except BaseException as error:  # noqa: BLE001 - an import may raise anything, SystemExit too
            answer = _failure(error)
        answers.write(json.dumps({"name": name, **answer}) + "\n")
    answers.flush()
    # Libraries that fail at their own end would look like a broken package.
    os._exit(0)


def describe(error: BaseException) -> str:
    """Returns an error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.{_MAX_ERROR}}" if lines else type(error).__name__


def _failure(error: BaseException) -> dict[str, Any]:
    """Returns what went wrong first, and in whose code."""
    while error.__cause__ is not None:  # transformers raises another error of its own on top
        error = error.__cause__
    is_missing = isinstance(error, ModuleNotFoundError)
    frames = list(traceback.walk_tb(error.__traceback__))
    module = error.name if is_missing else frames[-1][0].f_globals.get("__name__")
    culprit = (module or "").partition(".")[0] or None
    return {"error": describe(error), "is_missing": is_missing, "culprit": culprit}


def _import(name: str) -> dict[str, Any]:
    import_module(MODULES.get(name, name.replace("-", "_")))
    return {}


def _transformers() -> dict[str, Any]:
    """Imports what training imports: the package's own name is but a list of lazy ones."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401

    return {}


def _torch() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        has_gpu = torch.cuda.is_available()
    if not has_gpu:
        # Else deepspeed, which transformers imports, looks for a GPU at length.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    facts: dict[str, Any] = {"cuda": torch.version.cuda, "hip": torch.version.hip, "has_gpu": has_gpu, "gloo": gloo}
    facts["warning"] = str(said[0].message).splitlines()[0][:_MAX_ERROR] if said else None
    facts["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())] if has_gpu else []
    if has_gpu and torch.distributed.is_available() and torch.distributed.is_nccl_available():
        facts["nccl"] = ".".join(map(str, import_module("torch.cuda.nccl").version()))
    return facts


def _gpu(index: int) -> dict[str, Any]:
    """Returns what one GPU is, and the error of a small product on it."""
    import torch

    try:
        properties = torch.cuda.get_device_properties(index)
        facts: dict[str, Any] = {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "total": properties.total_memory,
        }
        ones = torch.ones(8, 8, device=f"cuda:{index}")
        assert (ones @ ones).sum().item() == 512
        others = (other for other in range(torch.cuda.device_count()) if other != index)
        peers = [other for other in others if torch.cuda.can_device_access_peer(index, other)]
        return facts | {"free": torch.cuda.mem_get_info(index)[0], "peers": peers, "error": None}
    except Exception as error:  # noqa: BLE001 - whatever a broken device raises
        return {"name": f"GPU {index}", "error": describe(error)}


def _kernels() -> dict[str, Any]:
    """Returns which attention kernel would be taken for each device and precision, and why not flash."""
    import torch

    from misotune.attention.kernels import select_kernel

    rows: list[dict[str, Any]] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            arguments = (torch.device(device), dtype, 128)
            reason = None
            try:
                select_kernel("flash", *arguments)
            except ValueError as error:
                reason = (
                    str(error).removeprefix("kernel 'flash' cannot be used: ").removesuffix("; use 'auto' or 'eager'")
                )
            kernel = select_kernel("auto", *arguments).name
            rows.append({"device": device, "precision": precision, "kernel": kernel, "no_flash": reason})
    return {"kernels": rows}


def _deepspeed() -> dict[str, Any]:
    accelerator = import_module("deepspeed.accelerator").get_accelerator()
    import_module("deepspeed")
    return {"accelerator": accelerator.device_name()}


def _lm_eval() -> dict[str, Any]:
    from misotune.verifiers import constraint_types

    return {"verifiers": len(constraint_types())}


def _punkt() -> dict[str, Any]:
    from misotune.verifiers import has_punkt

    return {"is_here": has_punkt()}


def _hub() -> dict[str, Any]:
    """Returns the settings of the hub's client; of the token only whether there is one."""
    from huggingface_hub import constants, get_token

    return {
        "endpoint": constants.ENDPOINT,
        "is_offline": bool(constants.HF_HUB_OFFLINE),
        "cache": str(constants.HF_HUB_CACHE),
        "has_token": get_token() is not None,
    }


def _reach() -> dict[str, Any]:
    """Asks the hub for one line, with the token where there is one."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session

    token = get_token()
    # Not the client's own headers and errors: to make them it may ask the hub a question of its own.
    headers = {"authorization": f"Bearer {token}"} if token else {}
    address = f"{constants.ENDPOINT}/api/models"
    response = get_session().get(address, params={"limit": 1}, headers=headers, timeout=_HUB_TIMEOUT_S)
    return {"status": response.status_code}


_LOOKS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "transformers": _transformers,
    "kernels": _kernels,
    "deepspeed": _deepspeed,
    "lm-eval": _lm_eval,
    "punkt": _punkt,
    "hub": _hub,
    "reach": _reach,
}

if __name__ == "__main__":
    main(sys.argv[1:])
