"""transformers' `Trainer`, told where rows, loss and order come from. Nothing else of it is changed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from misotune.training.batches import NOT_FOR_THE_MODEL, MicroBatches
from misotune.training.cross_entropy import CrossEntropy
from misotune.training.loss import step_loss
from misotune.training.saving.saver import SavingTrainer

# Called with each micro-batch (an item of `MicroBatches`) and the losses of its trained tokens, on every rank.
Observer = Callable[[Mapping[str, Any], torch.Tensor], None]


class MisoTrainer(SavingTrainer):
    """A Trainer whose data set is the run's micro-batches in order, one forward call each.

    Args:
        model: The model, loaded with MISO attention.
        arguments: transformers' settings.
        micro_batches: The run's micro-batches.
        cross_entropy: Calls the model and returns its token losses.
        callbacks: Watchers of steps.
        observers: Watchers of micro-batches.
    """

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        micro_batches: MicroBatches,
        cross_entropy: CrossEntropy,
        callbacks: list[TrainerCallback],
        processing_class: Any,
        observers: Sequence[Observer] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=micro_batches,
            data_collator=_only,
            callbacks=callbacks,
            processing_class=processing_class,
            # Its presence tells every supported version of transformers that the loss is already normalised
            # over the accumulated batch; `compute_loss` below is what computes it.
            compute_loss_func=step_loss,
        )
        self.cross_entropy = cross_entropy
        self.observers = observers

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns the micro-batch's share of the step's loss."""
        arguments = {key: value for key, value in inputs.items() if key not in NOT_FOR_THE_MODEL}
        losses = self.cross_entropy(model, arguments, inputs["targets"])
        for observe in self.observers:
            observe(inputs, losses.detach())
        loss = step_loss(losses, inputs["num_trained_in_step"], self.args.world_size, inputs["target_weights"])
        return (loss, {"losses": losses}) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader[Mapping[str, Any]]:
        """Returns the micro-batches in their own order; accelerate gives item i to rank i % world_size."""
        loader = DataLoader(cast(MicroBatches, self.train_dataset), batch_size=1, shuffle=False, collate_fn=_only)
        return self.accelerator.prepare(loader)


def trainer_arguments(
    *,
    folder: str,
    num_steps: int,
    accumulation: int,
    learning_rate: float,
    schedule: str,
    warmup_ratio: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    max_grad_norm: float,
    is_bf16: bool,
    log_every_steps: int,
    save_every_steps: int | None,
    seed: int,
    num_devices: int,
    deepspeed: dict[str, Any] | None,
) -> TrainingArguments:
    """Returns transformers' settings for a run; made before the model, which ZeRO-3 divides as it loads."""
    has_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=folder,
        max_steps=num_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=warmup_steps(warmup_ratio, num_steps),
        weight_decay=weight_decay,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
        adam_epsilon=epsilon,
        max_grad_norm=max_grad_norm,
        optim="adamw_torch_fused",
        bf16=is_bf16,
        logging_steps=log_every_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no" if save_every_steps is None else "steps",
        save_steps=save_every_steps or num_steps,
        seed=seed,
        deepspeed=deepspeed,
        use_cpu=not has_gpu,
        ddp_backend="gloo" if num_devices > 1 and not has_gpu else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=has_gpu,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        disable_tqdm=True,
        report_to=[],
    )


def warmup_steps(warmup_ratio: float, num_steps: int) -> int:
    """Returns the steps in which the learning rate rises from zero."""
    return round(warmup_ratio * num_steps)


def _only(items: list[Any]) -> Any:
    """A batch of one item is that item: packing is done already."""
    (item,) = items
    return item
