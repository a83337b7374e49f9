"""The two sizes of the study, and what is compared in it.

Reduced, in 100 minutes of two CPU cores (SmolLM2-135M in bfloat16: about 240 tokens/s in training, inputs and outputs
together, `benchmarks/results/cpu/train.jsonl`; about 250 new tokens/s in evaluation, `evaluation.jsonl` beside it):

    ARITHMETIC_REDUCED

Full, in 25 minutes of one H200, six pieces at a time on the one GPU:

    ARITHMETIC_FULL
"""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
MIXTURE = FOLDER / "mixture.yaml"
BASELINE = "sft"
# Rates are tried with it, and the model as it was is scored beside its baseline.
FIRST_SEED = 0

# What a variant is stands in its recipe; here their order in the table.
VARIANTS = (
    BASELINE,
    "para",
    "succ",
    "fid-para",
    "para-without-full",
    "fid-para-without-full",
    "flat",
    "vanilla",
)

# Recipe keys of each model besides its folder.
MODELS: dict[str, tuple[str, ...]] = {
    "SmolLM2-135M-Instruct": (),
    "gemma-3-270m": ("model.chat_template=tulu",),  # a base model: it has none
}


@dataclass(frozen=True)
class Form:
    """How much of everything.

    Attributes:
        name: Of the form.
        models: Names in `MODELS`.
        variants: Names of recipes.
        seeds: Of the runs that are scored on IFEval.
        rates: Learning rates that are tried for each model and variant.
        max_bytes: Longest row, instruction and output together.
        rows: Training rows; None: all there are.
        rate_rows: Training rows while a rate is tried.
        rate_limit: Validation prompts; None: all.
        limit: Prompts of IFEval, and of IFEval-Flatten; None: all.
        max_new_tokens: Longest response.
        training: Recipe keys for this machine.
        evaluation: Options of `misotune eval` for this machine.
        jobs: Pieces at a time.
    """

    name: str
    models: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    max_bytes: int
    rows: int | None
    rate_rows: int
    rate_limit: int | None
    limit: int | None
    max_new_tokens: int
    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    jobs: int = 1


REDUCED = Form(
    name="reduced",
    models=("SmolLM2-135M-Instruct",),
    variants=("sft", "para", "succ", "flat"),
    seeds=(0,),
    rates=(5e-5, 2e-4),
    max_bytes=1800,
    rows=200,
    rate_rows=48,
    rate_limit=48,
    limit=250,
    max_new_tokens=256,
    training=("train.batch_size=8",),
)

FULL = Form(
    name="full",
    models=tuple(MODELS),
    variants=VARIANTS,
    seeds=(0, 1, 2),
    rates=(5e-5, 1e-4, 2e-4),
    max_bytes=4000,
    rows=None,
    rate_rows=400,
    rate_limit=None,
    limit=None,
    max_new_tokens=512,
    training=("train.tokens_per_micro_batch=8192",),
    evaluation=("--batch-size", "256"),
    jobs=6,
)
