"""The end of a run: the trained model in `final/`, and the probe by which `export` proves it."""

import shutil
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file

from misotune.attention import MisoArguments
from misotune.layout import EncodedSample, RowLayout, build_row
from misotune.runs import RunFolder
from misotune.storage import replace_folder
from misotune.training.ranks.launch import is_main_process
from misotune.training.trainer import MisoTrainer

PROBE_TOKENS = 256
PROBE_LOGITS = 16


def save_final(trainer: MisoTrainer, run: RunFolder, sample: EncodedSample, *, is_bf16: bool) -> None:
    """Writes the probe, then `final/`, which is named last: its presence says that the run is finished.

    A full model is saved in the format it was computed in, bfloat16 or float32; an adapter as it is.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if is_bf16 and not hasattr(model, "peft_config") and not trainer.is_deepspeed_enabled:
        _store_weights(model, torch.bfloat16)
    written = run.path / ".final.partial"
    if is_main_process() and written.exists():
        shutil.rmtree(written)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(written))
    probe, dtype = _probe(trainer, sample)
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        (written / "training_args.bin").unlink(missing_ok=True)
        save_file(probe, run.probe, metadata={"dtype": dtype})
        replace_folder(written, run.final)
    trainer.accelerator.wait_for_everyone()


def _probe(trainer: MisoTrainer, sample: EncodedSample) -> tuple[dict[str, torch.Tensor], str]:
    """Returns token ids of one plain causal sequence with the trained model's last logits, and their format.

    The weights as they were saved, computed in float32: in bfloat16 the difference between a lightly trained
    model and its base drowns in rounding. Only DeepSpeed's engine, which may hold the weights in pieces,
    computes in its own format.
    """
    if trainer.is_deepspeed_enabled:
        model: Any = trainer.model_wrapped
        dtype = "bfloat16" if trainer.args.bf16 else "float32"
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        _store_weights(model, torch.float32)
        dtype = "float32"
    row = build_row([replace(sample, inputs=sample.inputs[:1])])
    ids = row.input_ids[:, :PROBE_TOKENS].to(trainer.args.device)
    model.eval()
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1], device=ids.device)[None],
            miso=MisoArguments(RowLayout.from_lengths([([ids.shape[1] - 1], 1)])),
            logits_to_keep=PROBE_LOGITS,
            use_cache=False,
        ).logits[0]
    return {"input_ids": ids[0].cpu(), "logits": logits.float().cpu()}, dtype


def _store_weights(model: Any, dtype: torch.dtype) -> None:
    """Changes the weights' format in place; not that of buffers, whose rotary frequencies would lose digits."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
