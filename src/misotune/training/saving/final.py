"""The end of a run: the trained model in `final/`, and the probe by which `export` proves it."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from misotune.attention import MisoArguments
from misotune.layout import ChatTemplate, EncodedSample, RowLayout, build_row
from misotune.quantization import exact_products
from misotune.runs import RunFolder
from misotune.storage import replace_folder
from misotune.training.disk import folder_bytes
from misotune.training.ranks.launch import is_main_process
from misotune.training.saving.checkpoints import PARTIAL_FINAL
from misotune.training.saving.reopening import check_tokenizer, check_weights
from misotune.training.saving.together import saving, wait_for_all
from misotune.training.trainer import MisoTrainer

PROBE_TOKENS = 256
PROBE_LOGITS = 16


def save_final(trainer: MisoTrainer, run: RunFolder, sample: EncodedSample, *, is_bf16: bool) -> None:
    """Writes the probe, then `final/`, which is named last: its presence says that the run is finished.

    A full model is saved in the format it was computed in, bfloat16 or float32; an adapter as it is. It is read back
    before it is named: every tensor is the one in memory.

    Raises:
        SaveError: It could not be saved; the message says why, and the last checkpoint stays.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if is_bf16 and not hasattr(model, "peft_config") and not _has_master_weights(trainer):
        _store_weights(model, torch.bfloat16)
    written = run.path / PARTIAL_FINAL
    if is_main_process() and written.exists():
        shutil.rmtree(written)
    wait_for_all()
    trainer.save_model(str(written))
    what, size = "the trained model", folder_bytes(written)
    with saving(written, what, size):
        check_weights(written, model)
        if is_main_process():
            check_tokenizer(written, trainer.processing_class)
    probe, dtype = _probe(trainer, sample)
    with saving(written, what, size):
        if is_main_process():
            (written / "training_args.bin").unlink(missing_ok=True)
            template = ChatTemplate(trainer.processing_class).sha256
            save_file(probe, run.probe, metadata={"dtype": dtype, "chat_template_sha256": template})
            replace_folder(written, run.final)


def _probe(trainer: MisoTrainer, sample: EncodedSample) -> tuple[dict[str, torch.Tensor], str]:
    """Returns token ids of one plain causal sequence with the trained model's last logits, and their format.

    The weights as they were saved, computed in float32: in bfloat16 the difference between a lightly trained
    model and its base drowns in rounding. Only DeepSpeed's engine, which may hold the weights in pieces,
    computes in its own format. Quantised weights are written out layer by layer, as the export merges into them.
    """
    row = build_row([replace(sample, inputs=sample.inputs[:1])])
    ids = row.input_ids[:, :PROBE_TOKENS].to(trainer.args.device)
    if _has_master_weights(trainer):
        model: Any = trainer.model_wrapped
        dtype = "bfloat16" if trainer.args.bf16 else "float32"
        logits = _last_logits(model, ids)
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        dtype = "float32"
        logits = last_logits_in_float32(model, ids)
    return {"input_ids": ids[0].cpu(), "logits": logits.float().cpu()}, dtype


def last_logits_in_float32(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Returns the last logits of one sequence by the model's weights in float32.

    Args:
        model: Its forward takes `miso`.
        ids: Token ids, `(1, tokens)`.

    Returns:
        `(min(tokens, PROBE_LOGITS), vocabulary)`.
    """
    try:
        with _widened_by_layer(model):
            return _last_logits(model, ids)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a layer computes by another one's weights (DBRX's experts), and the two differ in format
        _store_weights(model, torch.float32)
        return _last_logits(model, ids)


def _last_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad(), exact_products(model):
        return model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
            miso=MisoArguments(RowLayout.from_lengths([([ids.shape[1] - 1], 1)])),
            logits_to_keep=PROBE_LOGITS,
            use_cache=False,
        ).logits[0]


@contextmanager
def _widened_by_layer(model: Any) -> Iterator[None]:
    """Makes each layer compute by its weights in float32, which are there only meanwhile.

    The whole model in float32 may need more memory than all of the training did: twice a frozen bfloat16 base model.
    """
    stored: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def widen(module: nn.Module, _arguments: Any) -> None:
        # A quantised weight is what it is.
        weights = [weight for weight in _own_weights(module) if weight.is_floating_point()]
        stored[module] = [(weight, weight.data) for weight in weights]
        for weight in weights:
            weight.data = weight.data.float()

    def restore(module: nn.Module, _arguments: Any, _result: Any) -> None:
        for weight, narrow in stored.pop(module, []):
            weight.data = narrow

    with ExitStack() as hooks:
        for module in model.modules():
            if any(True for _ in _own_weights(module)):
                hooks.callback(module.register_forward_pre_hook(widen).remove)
                hooks.callback(module.register_forward_hook(restore, always_call=True).remove)
        yield


def _own_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Returns the weights that a module computes with; peft's for trained rows uses those of the one within it."""
    return module.parameters(recurse=hasattr(module, "trainable_tokens_delta"))


def _has_master_weights(trainer: MisoTrainer) -> bool:
    """True where DeepSpeed computes with the weights in a format of its own; without ZeRO (stage 0) it does not."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return plugin is not None and plugin.get_value("zero_optimization.stage") > 0


def _store_weights(model: Any, dtype: torch.dtype) -> None:
    """Changes the weights' format in place; not that of buffers, whose rotary frequencies would lose digits."""
    for weight in model.parameters():
        if weight.is_floating_point():  # a quantised weight is what it is
            weight.data = weight.data.to(dtype)
