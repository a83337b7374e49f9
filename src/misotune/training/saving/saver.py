"""transformers' saving, where a rank that cannot write does not leave the others waiting."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import Trainer

from misotune.training.disk import checkpoint_bytes
from misotune.training.ranks.launch import is_main_process
from misotune.training.saving.reopening import check_weights, has_own_names
from misotune.training.saving.together import check_room, later_errors, saving


class SavingTrainer(Trainer):
    """A Trainer that saves on all ranks or on none: all raise an error of one, and nothing half-written stays."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as `from_pretrained` reads it.

        Raises:
            SaveError: It failed on some rank.
        """
        written = Path(output_dir or str(self.args.output_dir))
        with saving(written, self._described(written), needed_bytes(self)):
            super().save_model(str(written), _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes the weights; DeepSpeed hands tied ones over as if they were not, to be there twice."""
        if state_dict is not None:
            model: Any = self.model
            names = dict(model.named_parameters())
            again = {name for name, _ in model.named_parameters(remove_duplicate=False) if name not in names}
            state_dict = {name: weight for name, weight in state_dict.items() if name not in again}
        super()._save(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Writes `checkpoint-N`, of weights, optimizer and state."""
        written = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        needed = needed_bytes(self)
        check_room(written, self._described(written), least_bytes(self), needed)
        with saving(written, self._described(written), needed):
            if self.is_deepspeed_enabled and is_main_process():
                # DeepSpeed would make it later, and an error in that is one it does not tell.
                (written / f"global_step{self.state.global_step}").mkdir(parents=True, exist_ok=True)
            with later_errors(self.model_wrapped) if self.is_deepspeed_enabled else nullcontext():
                super()._save_checkpoint(*arguments, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads a checkpoint's weights, and makes sure that they are in the model.

        transformers matches them by name, and passes over what it does not find: a model that is stored in other
        pieces than it computes with (experts, mostly) would go on with the weights it was started from.

        Raises:
            RunError: They are not.
        """
        folder, model = Path(resume_from_checkpoint), model or self.model
        if has_own_names(folder, model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            stored = type(model).from_pretrained(folder, dtype=model.dtype)
            model.load_state_dict(stored.state_dict())
        check_weights(folder, model)

    def _described(self, written: Path) -> str:
        if written.parent != Path(str(self.args.output_dir)):
            return f"the trained model, after step {self.state.global_step},"
        return (
            "the trial checkpoint"
            if self.state.global_step == 0
            else f"the checkpoint of step {self.state.global_step}"
        )


def needed_bytes(trainer: Any) -> int:
    """Returns about how large a checkpoint is; a little more than it comes to."""
    total, trained, is_adapter = _numbers(trainer.model)
    return checkpoint_bytes(
        total, trained, is_bf16=trainer.args.bf16, uses_deepspeed=trainer.is_deepspeed_enabled, is_adapter=is_adapter
    )


def least_bytes(trainer: Any) -> int:
    """Returns what a checkpoint cannot be smaller than: saved weights in bfloat16, and AdamW's moments in float32."""
    total, trained, is_adapter = _numbers(trainer.model)
    return (trained if is_adapter else total) * 2 + trained * 8


def _numbers(model: Any) -> tuple[int, int, bool]:
    """Returns the model's parameters, the trained ones, and whether they are an adapter's."""
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains), hasattr(model, "peft_config")
