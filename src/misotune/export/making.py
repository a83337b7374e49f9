"""Writing the checkpoint from whatever is exported, with the logits that it must have."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from misotune.errors import RunError, UsageError
from misotune.export.adapter import MergeProof, merge_adapter, store_weights
from misotune.export.checkpoint import copy_adapter, copy_companions, copy_weights, save_model, tidy_configuration
from misotune.export.probe import Probe, last_logits, probe_ids, read_probe
from misotune.export.proof import REFUSED, Chat, chat_of
from misotune.export.reopening import Base, Opening, open_checkpoint
from misotune.export.shards import consolidated, load_consolidated, save_consolidated_adapter, whole
from misotune.export.source import Source, base_of_adapter, quantization_of
from misotune.export.weights import WeightFiles, count_same, has_weights, rewrite_weights
from misotune.layout import ChatTemplate
from misotune.recipe.schema import Recipe

Message = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Making:
    """How a checkpoint is written.

    Attributes:
        dtype: Format of its weights; None: that which they have.
        max_shard_bytes: Largest weight file.
        is_divided: Whether that was asked for; else a full model's files are copied as they are.
        adapter_only: Copy an adapter, and do not merge it.
    """

    dtype: torch.dtype | None
    max_shard_bytes: int
    is_divided: bool = False
    adapter_only: bool = False

    @property
    def dtype_name(self) -> str | None:
        """The format as configurations name it."""
        return str(self.dtype).removeprefix("torch.") if self.dtype else None


@dataclass(frozen=True, slots=True)
class Made:
    """A checkpoint that was written, and what it is to be compared with.

    Attributes:
        probe: Logits that it must have.
        chat: What training's template makes of a question.
        base: The model that it was trained from, as far as is known.
        merge: Of a merged adapter.
        rounded_to: Format that weights lost digits in.
        num_consolidated: Tensors that are those of DeepSpeed's files.
    """

    probe: Probe
    chat: Chat
    base: Base | None
    merge: MergeProof | None = None
    rounded_to: str | None = None
    num_consolidated: int | None = None


def make_checkpoint(source: Source, recipe: Recipe | None, out: Path, making: Making, say: Message) -> Made:
    """Writes the checkpoint of a source to `out`, which is empty.

    Raises:
        UsageError: It has no chat template, or needs a package that is not there.
        RunError: It cannot be read, or is not what was trained.
    """
    if not source.is_adapter:
        return _make_model(source, recipe, out, making, say)
    scratch = out.with_name(f"{out.name}-adapter")
    try:
        return _make_adapter(source, recipe, out, making, scratch, say)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_adapter(
    source: Source, recipe: Recipe | None, out: Path, making: Making, scratch: Path, say: Message
) -> Made:
    base = base_of_adapter(source.folder, recipe)
    template = _template(source.folder, base)
    folder, number = source.folder, None
    if source.shards is not None:
        say(f"joining the pieces that DeepSpeed's ranks hold in {source.shards}")
        number = save_consolidated_adapter(source.folder, scratch)
        folder = scratch
    probe = _trained_probe(source, template)
    ids = probe.input_ids if probe else _ids(source, template)
    merge: MergeProof | None = None
    if making.adapter_only:
        say(f"copying the adapter of {base.name}")
        copy_adapter(folder, out)
        if probe is None:
            opening = Opening(ids, "float32", base=base)
            _, logits = open_checkpoint(folder, opening, f"{source.path}: the adapter cannot be exported")
            probe = Probe(ids, logits, "float32", "the adapter before its export")
    else:
        say(f"merging the adapter into {base.name}")
        kind = quantization_of(recipe)
        merged = merge_adapter(folder, base, ids, quantization=kind, dtype=making.dtype)
        save_model(merged.model, out, making.max_shard_bytes)
        merge, probe = merged.proof, probe or merged.probe
        del merged  # the fresh process needs the memory
    copy_companions(source.folder, out)
    if not _has_tokenizer(source.folder):
        template.tokenizer.save_pretrained(out)
    chat = chat_of(template)
    tidy_configuration(out, chat.end_id, making.dtype_name)
    return Made(probe, chat, base, merge, num_consolidated=number)


def _make_model(source: Source, recipe: Recipe | None, out: Path, making: Making, say: Message) -> Made:
    template = _template(source.folder)
    chat = chat_of(template)
    probe = _trained_probe(source, template)
    ids = probe.input_ids if probe else _ids(source, template)
    rounded_to, number = None, None
    if source.shards is not None:
        say(f"joining the pieces that DeepSpeed's ranks hold in {source.shards}")
        probe, number = _save_consolidated(source, out, making, ids)
    elif has_weights(source.folder):
        say(f"copying {source.folder}")
        weights = WeightFiles(source.folder)
        if making.dtype is not None and weights.is_rounded_by(making.dtype):
            rounded_to = making.dtype_name
        if making.dtype is None and not making.is_divided:
            copy_weights(source.folder, out)
        else:
            _check_not_quantized(source.folder, making)
            rewrite_weights(weights, out, making.dtype, making.max_shard_bytes)
        if rounded_to is not None:  # what rounding does to the logits could hide a weight that is lost
            source_weights = {name: name for name in weights.names}
            count_same(out, source_weights, lambda name: weights.read(name, None), f"{source.folder}, rounded")
    else:
        say(f"reading {source.folder}, whose weights are no safetensors")
        rounded_to = making.dtype_name
        _save_pickled(source.folder, out, making)
    copy_companions(source.folder, out)
    tidy_configuration(out, chat.end_id, making.dtype_name)
    if probe is None:
        say("reading what is exported with stock transformers, to compare with")
        _, logits = open_checkpoint(source.folder, Opening(ids, "float32"), f"{source.path} cannot be exported")
        probe = Probe(ids, logits, "float32", "the model before its export")
    base = Base(recipe.model.name, recipe.model.revision) if recipe else None
    return Made(probe, chat, base, rounded_to=rounded_to, num_consolidated=number)


def _save_consolidated(source: Source, out: Path, making: Making, ids: Tensor) -> tuple[Probe, int]:
    """Writes the model of DeepSpeed's files; returns its probe and the number of tensors compared.

    The probe is of the weights as they are stored, computed in float32: what rounding them once to bfloat16 does to the
    logits (6e-2 on a model of 135 million parameters) would hide a weight that is lost.
    """
    weights = consolidated(source.folder)
    model, own_dtype = load_consolidated(source.folder, weights)
    store_weights(model, making.dtype or own_dtype)
    save_model(model, out, making.max_shard_bytes)
    number = count_same(out, weights, whole)
    store_weights(model, torch.float32)
    return Probe(ids, last_logits(model, ids), "float32", "DeepSpeed's consolidated model"), number


def _save_pickled(folder: Path, out: Path, making: Making) -> None:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"{folder}: stock transformers cannot open it: {str(error).splitlines()[0]}") from error
    if making.dtype is not None:
        store_weights(model, making.dtype)
    save_model(model, out, making.max_shard_bytes)


def _trained_probe(source: Source, template: ChatTemplate) -> Probe | None:
    """Returns the probe that training left, at the end of a run; None: there is none."""
    if source.run is None or not source.is_final:
        return None
    probe = read_probe(source.run.probe)
    if probe.template_sha256 not in (None, template.sha256):
        raise RunError(
            f"{REFUSED}: the chat template in {source.folder} is not the one that was trained with; put that one back, "
            "and change the export's if it has to be another"
        )
    return probe


def _ids(source: Source, template: ChatTemplate) -> Tensor:
    """Returns tokens to compare models on: those of the run's probe, else a fixed conversation."""
    return probe_ids(template, source.run.probe if source.run else None)


def _template(folder: Path, base: Base | None = None) -> ChatTemplate:
    """Returns the chat template of a folder, or of the base model where an adapter's folder has no tokenizer."""
    from transformers import AutoTokenizer

    where, revision = str(folder), None
    if base is not None and not _has_tokenizer(folder):
        where, revision = base.name, base.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{where}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"{where}: its tokenizer has no chat template; put a chat_template.jinja into {folder}")
    return ChatTemplate(tokenizer)


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _check_not_quantized(folder: Path, making: Making) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if making.dtype is not None and getattr(config, "quantization_config", None):
        raise UsageError(f"--dtype: the weights of {folder} are quantised, and can only be exported as they are")
