"""The typed recipe: a frozen model per section; the docstring under a field is its help, also in editors.

Unknown keys are refused, types are strict (True is not 1, "3" is not 3), and bounds stand in the types.
Rules between fields are in `rules.py`; reading a recipe from a file is in `loading.py`.
"""

import math
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from misotune.recipe.rules import find_conflicts
from misotune.samples import Mode

Positions = Literal["auto", "aligned", "start", "successive"]
InputRole = Literal["full", "constraint", "base"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Text = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
ChunkCount = Annotated[int, Field(ge=1, le=64)]


def each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses a list that names something twice."""
    if len(set(values)) < len(values):
        raise ValueError("each may stand there once")
    return values


def _sums_to_one(probabilities: dict[int, float]) -> dict[int, float]:
    total = math.fsum(probabilities.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the probabilities must sum to 1, and sum to {total:g}")
    return probabilities


def _sums_to_one_at_most(shares: dict[InputRole, float]) -> dict[InputRole, float]:
    total = math.fsum(shares.values())
    if total > 1 + 1e-6:
        raise ValueError(f"the shares must sum to 1 at most, and sum to {total:g}")
    return shares


def _tidy_properties(schema: dict[str, Any]) -> None:
    """Puts each description on one line, and drops titles that only repeat the key."""
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
        if "description" in field:
            field["description"] = " ".join(field["description"].split())


class Section(BaseModel):
    """A part of a recipe or mixture file: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        json_schema_extra=_tidy_properties,
    )


class ModelSection(Section):
    """The model to start from."""

    name: Text
    """Hub id, or a folder with a Hugging Face checkpoint."""

    revision: Text | None = None
    """Branch, tag or commit on the hub; null: the newest."""

    chat_template: Text | None = None
    """Null: the tokenizer's own template. A base model without one needs `tulu`, `chatml`, or the path of a
    .jinja file."""


class DataSection(Section):
    """The prepared dataset."""

    path: Text
    """Dataset folder that `misotune prepare` wrote, or a JSONL file of such rows."""

    max_length: PositiveInt
    """Tokens of the longest pair of an input with the output: what one row of a standard model would hold. See
    `too_long` for longer ones."""

    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a sample with a longer pair, counted either way. `cut`: a chat loses its last turns, a
    single response its end."""

    max_sample_length: PositiveInt | None = None
    """Tokens of one sample, all inputs and the output together; longer samples are dropped and counted. Null:
    no limit."""

    max_dropped: Share = 0.05
    """Largest share of rows that may be dropped (too long, or with a reason of their own) before training
    refuses to start, 0 to 1."""


class MisoSection(Section):
    """How a sample's inputs are chosen, placed and fused."""

    mode: Mode
    """`para`: parallel inputs. `succ`: the full instruction, cut into chunks. `sft`: the full instruction
    alone (the baseline). `flat`: every (input, output) pair as a sample of its own ("no MISO" in the paper's
    table 2)."""

    weighting: Literal["uniform", "fixed", "fid", "vanilla"] = "uniform"
    """How the attention outputs of the inputs are fused: `uniform` (equation 3 with 1/n), `fixed` (equation 3
    with the shares of `weights`), `fid` (equation 7), or `vanilla` (equation 4, the baseline that dilutes
    attention)."""

    weights: Annotated[
        dict[InputRole, PositiveShare],
        Field(json_schema_extra={"examples": [{"full": 0.5}]}),
        AfterValidator(_sums_to_one_at_most),
    ] = Field(default={})
    """Weighting `fixed`: each role's share of the sum, divided equally among the sample's inputs of that role.
    Inputs of roles not named divide what is left. Where a sample lacks a role, its other shares are scaled to
    sum 1."""

    positions: Positions = "auto"
    """`aligned`: inputs end where the output begins. `start`: inputs begin at 0 (for baselines).
    `successive`: chunks run on (only for mode succ). `auto`: successive for succ, else aligned."""

    inputs: Annotated[
        tuple[InputRole, ...],
        Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True}),
        AfterValidator(each_once),
    ] = ("full", "constraint", "base")
    """The inputs that mode para takes: the full instruction, the instruction with one constraint (one input
    each), the instruction without constraints."""

    chunks: Annotated[
        dict[ChunkCount, Share],
        Field(
            min_length=1,
            examples=[{1: 0.5, 2: 0.5}],
            json_schema_extra={"propertyNames": {"pattern": "^([1-9]|[1-5][0-9]|6[0-4])$"}},
        ),
        AfterValidator(_sums_to_one),
    ] = Field(default={1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25})
    """Mode succ: numbers of chunks (1 to 64) with their probabilities (sum 1); drawn per row and epoch."""

    chunk_prefix: Literal["none", "bos", "system"] = "none"
    """Mode succ: what the second and later chunks begin with: nothing, the BOS token, or the system turn."""

    kernel: Literal["auto", "flash", "eager", "reference"] = "auto"
    """`flash`: the device's flash attention. `eager`: attention written out, on any device and for all models,
    slow. `reference`: the equations term by term, for checks. `auto`: flash where the device, the number format
    and the model allow it, else eager; the plan says which and why."""

    @property
    def chosen_positions(self) -> Literal["aligned", "start", "successive"]:
        """The positions with `auto` decided by the mode."""
        if self.positions == "auto":
            return "successive" if self.mode == "succ" else "aligned"
        return self.positions


class TrainSection(Section):
    """The optimisation."""

    epochs: PositiveFloat | None = None
    """Passes over the data; null: only `max_steps` counts."""

    max_steps: PositiveInt | None = None
    """Optimizer steps after which training ends; with `epochs` too, whichever comes first. One of the two is
    needed."""

    batch_size: PositiveInt
    """Samples in one optimizer step, over all devices and accumulation."""

    pack: bool = True
    """Pack several samples into one row; false: each sample is a row of its own."""

    tokens_per_micro_batch: PositiveInt | None = None
    """Tokens that a packed row holds on one device; a longer sample gets a row of its own. Null:
    `data.max_length`. Not used without `pack`."""

    loss: Literal["token_mean", "instruction_mean"] = "token_mean"
    """What a step's loss is: the mean over all trained tokens of its samples, or over instructions, of each one's
    mean over its trained tokens. A sample is one instruction; one joined from a mixture's chunk is several."""

    learning_rate: PositiveFloat
    """Highest learning rate, at the end of the warm-up."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to zero by a cosine or a line, or not at all."""

    warmup_ratio: Share = 0.1
    """Share of the steps in which the learning rate rises from zero, 0 to 1."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""

    adam_beta1: ShareBelowOne = 0.9
    """AdamW's decay of the mean of gradients."""

    adam_beta2: ShareBelowOne = 0.999
    """AdamW's decay of the mean of squared gradients."""

    adam_epsilon: PositiveFloat = 1e-8
    """AdamW's term against division by zero."""

    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0: no clipping."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the forward and backward pass."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""

    log_every_steps: PositiveInt = 1
    """Optimizer steps between two lines of metrics."""

    cross_entropy: Literal["auto", "plain", "chunked", "liger"] = "auto"
    """How the loss of a row is computed: `plain` keeps all its logits; `chunked` those of a few tokens at a time,
    and computes them again in the backward pass; `liger` in one fused kernel (CUDA, package liger-kernel). `auto`:
    chunked on CUDA, else plain. All are compared with `plain` on the first batch."""

    liger_kernels: bool = False
    """Take norms, rotary embeddings and gated MLPs from the package liger-kernel (CUDA)."""

    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        Field(strict=False, json_schema_extra={"uniqueItems": True}),
        AfterValidator(each_once),
    ] = ()
    """Trackers that get the metrics, off line unless their own settings say otherwise; never a text."""

    timeout_minutes: PositiveFloat = 30.0
    """Minutes without progress on any rank after which the run stops, with every rank's stack in the run folder."""

    trial_save: bool = True
    """Write a checkpoint before the first step, read it back, and delete it: a save cannot fail hours later."""

    save_every_steps: PositiveInt | None = None
    """Optimizer steps between two checkpoints; null: only the end is saved."""

    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept; older ones are deleted."""


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning."""

    rank: PositiveInt = 16
    """Rank of the adapter matrices."""

    alpha: PositiveFloat = 32.0
    """Scale of the adapter: alpha / rank, or alpha / sqrt(rank) with `use_rslora`."""

    dropout: ShareBelowOne = 0.0
    """Dropout on the adapter's input, 0 to below 1."""

    target_modules: Text | Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = "all-linear"
    """`all-linear`, a regular expression, or a list of module names."""

    use_rslora: bool = False
    """Rank-stabilised scaling."""

    quantization: Literal["none", "nf4", "int8"] = "none"
    """Format of the frozen weights: as they are, or quantised by bitsandbytes (QLoRA: nf4)."""


class DeepspeedSection(Section):
    """DeepSpeed's ZeRO."""

    stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """What is divided among devices: 0 nothing, 1 optimizer states, 2 also gradients, 3 also parameters. Null:
    as `config` says."""

    config: Text | None = None
    """A DeepSpeed configuration of your own, as JSON, in place of `stage` and `offload`."""

    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in the host's memory: nothing, the optimizer (stage 2 or 3), or the parameters too (stage
    3)."""


class OutputSection(Section):
    """Where results go."""

    runs_dir: Text = "runs"
    """Folder of run folders; `misotune eval` and `export` look for the newest run in `runs`."""


class Recipe(Section):
    """A misotune training recipe: complete in itself, no inheritance between files."""

    name: Annotated[
        str,
        Field(
            pattern=NAME_PATTERN,
            max_length=100,
            json_schema_extra={
                "patternErrorMessage": "a folder name: a letter or digit, "
                "then letters, digits, '.', '_' or '-', at most 100 in all"
            },
        ),
    ]
    """Name of the run: its folder is `runs/NAME`."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of data order, chunk draws, dropout and adapter initialisation."""

    model: ModelSection
    data: DataSection
    miso: MisoSection
    train: TrainSection

    lora: LoraSection | None = None
    """Null: full fine-tuning."""

    deepspeed: DeepspeedSection | None = None
    """Null: without DeepSpeed."""

    output: OutputSection = OutputSection()

    @model_validator(mode="after")
    def _fields_agree(self) -> "Recipe":
        messages = [message for _, message in find_conflicts(self.value_at)]
        if messages:
            raise ValueError("; ".join(messages))
        return self

    def value_at(self, key: str) -> Any:
        """Returns the value of a dotted key.

        Raises:
            KeyError: There is no such key, or its section is null.
        """
        value: Any = self
        for part in key.split("."):
            if not isinstance(value, BaseModel) or part not in type(value).model_fields:
                raise KeyError(key)
            value = getattr(value, part)
        return value

    @property
    def row_capacity(self) -> int:
        """Tokens that a packed row holds on one device."""
        return self.train.tokens_per_micro_batch or self.data.max_length


def _section_model(annotation: Any) -> type[Section] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


SECTIONS: dict[str, type[BaseModel]] = {
    name: section
    for name, field in Recipe.model_fields.items()
    if (section := _section_model(field.annotation)) is not None
}
"""The sections by name, in the recipe's order."""


def recipe_json_schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
