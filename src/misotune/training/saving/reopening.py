"""A save is read back before it counts: every tensor is there, finite, and equal to the one in memory."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from misotune.errors import RunError
from misotune.training.ranks.launch import is_main_process

_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")


def check_weights(folder: Path, model: Any) -> None:
    """Compares saved weights with the model's; called by all ranks, since ZeRO-3 gathers each weight for it.

    Where transformers stores a model under other names or in other pieces than it computes with (experts, mostly),
    numbers of elements are compared in place of values.

    Args:
        folder: A checkpoint or final model in Hugging Face's format.
        model: The live model; a PEFT model's adapter is what was saved.

    Raises:
        RunError: They differ.
    """
    problem: RunError | None = None
    weights: _SavedWeights | None = None
    saved_names: dict[int, str] = {}
    if is_main_process():
        try:
            weights = _SavedWeights(folder)
            saved_names = _names_in_file(model, weights)
        except RunError as error:
            problem = error
    for parameter in model.parameters():
        # All ranks gather all weights, also when the main one has seen a problem: the others do not know of it.
        with _whole(parameter):
            if weights is not None and problem is None and id(parameter) in saved_names:
                try:
                    weights.compare(saved_names[id(parameter)], parameter)
                except RunError as error:
                    problem = error
    if problem is not None:
        raise problem


def has_own_names(folder: Path, model: Any) -> bool:
    """Returns whether weights are saved under the names that the model has for them in memory.

    Raises:
        RunError: Some are missing.
    """
    return bool(_names_in_file(model, _SavedWeights(folder)))


def check_optimizer(path: Path, model: Any) -> None:
    """Reads AdamW's saved state back, on one process: moments of every trained weight, finite.

    Raises:
        RunError: One is missing, or not finite.
    """
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    for name in ("exp_avg", "exp_avg_sq"):
        moments = [entry[name] for entry in state.values() if name in entry]
        if (number := sum(moment.numel() for moment in moments)) != trained:
            raise RunError(f"{path.name} holds {name} of {number:,} weights, and {trained:,} are trained")
        if not all(_is_finite(moment) for moment in moments):
            raise RunError(f"{path.name} holds {name} that is not finite")


def check_shard(folder: Path, rank: int, world_size: int) -> int:
    """Reads one of the shards that DeepSpeed's ranks wrote back; each rank takes another.

    Args:
        folder: The checkpoint.
        rank: This rank.
        world_size: Number of ranks.

    Returns:
        Numbers in it.

    Raises:
        RunError: Shards are missing, or hold numbers that are not finite.
    """
    shards = sorted(folder.glob("global_step*/*_optim_states.pt"))
    if len(shards) != world_size:
        raise RunError(
            f"{len(shards)} of {world_size} ranks' files are in {folder}; "
            "do all hosts share the disk of output.runs_dir?"
        )
    # DeepSpeed's files hold its own classes beside tensors; they were written by this run.
    state = torch.load(shards[rank], map_location="cpu", weights_only=False)
    number = 0
    for tensor in _tensors(state["optimizer_state_dict"]):
        number += tensor.numel()
        if not _is_finite(tensor):
            raise RunError(f"{shards[rank].name} holds numbers that are not finite")
    return number


def check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Reads the tokenizer and the model's configurations back, as `eval` and `export` will.

    Raises:
        RunError: The tokenizer is another one than was saved.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    saved = AutoTokenizer.from_pretrained(folder)
    if saved.get_vocab() != tokenizer.get_vocab() or saved.chat_template != tokenizer.chat_template:
        raise RunError("the tokenizer is another one when it is read back")
    if (folder / "config.json").is_file():  # not in an adapter's folder
        AutoConfig.from_pretrained(folder)
    if (folder / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(folder)


class _SavedWeights:
    """Tensors of all safetensors files in a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
        if not files:
            raise RunError(f"{folder.name} holds no weights")
        self.files = {path: safe_open(path, framework="pt") for path in files}
        self.places = {name: path for path, file in self.files.items() for name in file.keys()}  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading it."""
        return tuple(self.files[self.places[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Returns a tensor.

        Raises:
            RunError: It is not finite.
        """
        tensor = self.files[self.places[name]].get_tensor(name)
        if not _is_finite(tensor):
            raise RunError(f"{self.places[name].name} holds {name} with numbers that are not finite")
        return tensor

    def compare(self, name: str, live: Tensor) -> None:
        """Compares a saved tensor with the one in memory, to the bit.

        Raises:
            RunError: It has another shape or other values.
        """
        if self.shape(name) != tuple(live.shape):
            where = self.places[name].name
            raise RunError(f"{where} holds {name} of shape {list(self.shape(name))}, and it is {list(live.shape)}")
        saved = self.read(name)
        if not torch.equal(saved, live.detach().to("cpu", saved.dtype)):
            raise RunError(f"{self.places[name].name} holds {name} with other values than were trained")


def _names_in_file(model: Any, weights: _SavedWeights) -> dict[int, str]:
    """Returns each saved parameter's name in the files by its id; tied ones are saved once.

    Raises:
        RunError: One is not in the files.
    """
    is_adapter = hasattr(model, "peft_config")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not is_adapter or parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name.replace(".default", "") if is_adapter else name)
    found = {key: next((name for name in known if name in weights.places), None) for key, known in names.items()}
    missing = [names[key][0] for key, name in found.items() if name is None]
    if not missing:
        return {key: name for key, name in found.items() if name is not None}
    sizes = {id(parameter): getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters()}
    live, saved = sum(sizes[key] for key in names), sum(weights.read(name).numel() for name in weights.places)
    if is_adapter or live != saved:
        raise RunError(f"the saved weights lack {missing[0]} ({saved:,} numbers are there, {live:,} were to be saved)")
    return {}


def _whole(parameter: Any) -> Any:
    """Returns a context in which a parameter that ZeRO-3 divided is whole."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter])


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields all tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
