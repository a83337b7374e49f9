"""Weight files: read tensor by tensor, rounded, divided by size, and compared with what they were made from."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from misotune.errors import RunError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SHARD_SIZE = "5GB"

_INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# The formats of safetensors' headers that can be changed into one another. Others (eight bits, integers) stay.
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class WeightFiles:
    """The safetensors files of a checkpoint.

    Args:
        folder: The checkpoint.

    Raises:
        RunError: It has none, or one is missing or cut.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / _INDEX
        names = ["model.safetensors"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        self._files: dict[str, Any] = {}
        for name in names:
            try:
                file = safe_open(folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                what = "is missing" if not (folder / name).is_file() else f"is cut or no weight file ({error})"
                raise RunError(f"{folder}: {name} {what}; copy the checkpoint again") from error
            self._files |= dict.fromkeys(file.keys(), file)
        self.names = sorted(self._files)

    def format(self, name: str) -> torch.dtype | None:
        """Returns a tensor's format if it can be exported in another one."""
        return _FLOATS.get(self._files[name].get_slice(name).get_dtype())

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """Returns a tensor, in another format if it can be."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor if dtype is None or tensor.dtype not in _FLOATS.values() else tensor.to(dtype)

    def num_bytes(self, name: str, dtype: torch.dtype | None) -> int:
        """Returns how large a tensor is in a format; only one that keeps its own is read for it."""
        kind = self.format(name)
        numbers = math.prod(self._files[name].get_slice(name).get_shape())
        return numbers * (dtype or kind).itemsize if kind else self.read(name, None).nbytes

    def is_rounded_by(self, dtype: torch.dtype) -> bool:
        """Returns whether some weight may lose digits in a format."""
        kinds = {self.format(name) for name in self.names}
        return any(kind not in (None, dtype) and torch.promote_types(kind, dtype) != dtype for kind in kinds if kind)


def has_weights(folder: Path) -> bool:
    """Returns whether a folder has weight files of safetensors."""
    return (folder / _INDEX).is_file() or (folder / "model.safetensors").is_file()


def size_in_bytes(size: str) -> int:
    """Returns the number of bytes that a size says.

    >>> size_in_bytes("5GB"), size_in_bytes("1.5 MB")
    (5000000000, 1500000)

    Raises:
        UsageError: It is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B|)\s*", size, re.IGNORECASE)
    number = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if number < 1:
        raise UsageError(f"--max-shard-size {size}: not a size; write for example {MAX_SHARD_SIZE} or 500MB")
    return number


def named_dtype(name: str) -> torch.dtype:
    """Returns torch's format of a name.

    Raises:
        UsageError: It is none that weights are exported in.
    """
    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def rewrite_weights(source: WeightFiles, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    """Writes weights again in files of a largest size, each to the bit what it was, or that rounded once.

    One file's weights are in memory at a time. Integers and truth values stay what they are.

    Args:
        source: The weights.
        folder: Where to.
        dtype: Format of all weights; None: that which each has.
        max_shard_bytes: Of a file; a larger tensor has a file of its own.

    Raises:
        RunError: A weight is too large for the format.
    """
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name in source.names:
        size = source.num_bytes(name, dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: source.read(name, dtype).contiguous() for name in names}
        for name, tensor in tensors.items():
            check_range(name, tensor, source.read(name, None))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(source.num_bytes(name, dtype) for name in source.names)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_range(name: str, rounded: Tensor, exact: Tensor) -> None:
    """Makes sure that rounding made no weight infinite; one that was, is found later.

    Raises:
        RunError: It did.
    """
    if rounded.dtype != exact.dtype and bool((exact.isfinite() & ~rounded.isfinite()).any()):
        kind = str(rounded.dtype).removeprefix("torch.")
        raise RunError(f"the export is refused: {name} holds numbers too large for {kind}; take --dtype bfloat16")


def count_same(
    folder: Path, weights: Mapping[str, Any], whole: Callable[[Any], Tensor], owner: str = "DeepSpeed's files"
) -> int:
    """Returns how many tensors of a folder are to the bit those given, rounded; others have other names in memory.

    Args:
        folder: The checkpoint.
        weights: Tensors by name.
        whole: Returns one as a tensor.
        owner: Whose they are, for people.

    Raises:
        RunError: One is another.
    """
    written = WeightFiles(folder)
    names = [name for name in written.names if name in weights]
    for name in names:
        tensor = written.read(name, None)
        if not torch.equal(tensor, whole(weights[name]).to(tensor.dtype)):
            raise RunError(f"the export is refused: {name} has other values than {owner}")
    return len(names)
