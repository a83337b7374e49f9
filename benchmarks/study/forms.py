"""The two sizes of the study, and what is compared in it.

Reduced, for 100 minutes of two CPU cores. It took 109, other programs taking a part of the cores
(`benchmarks/results/cpu/study.jsonl`; tokens are inputs and outputs together):

    rates        48 rows, two rates, four variants: 214 thousand tokens                                   19 min
    validation   eight models x 48 prompts: 90 thousand new tokens                                        10 min
    runs         200 rows: sft and succ 60, para 101, flat 214 thousand tokens                            43 min
    IFEval       five models x (250 prompts and the 388 of Flatten in them): 625 thousand new tokens      36 min
                                                                                                         109 min

Full, for 25 minutes of one H200, eight pieces at a time on the one GPU: models this small leave most of it idle. It has
not been run; it was sized by (tokens of SmolLM2, from `misotune train --plan`):

    runs         2,235 rows: sft and succ 1.3, para, fid-para and vanilla 2.1, without full about 1.7, flat about 4.7
                 million tokens: 17 million for the eight variants, 102 for three seeds and two models
    rates        300 rows, three rates, two models: 14 million tokens
                 together 116 million, at 127,000 tokens/s over all eight (12 to 15 % of the peak)          15 min
    IFEval       50 models x (541 + 834 prompts, a batch each) x 512 steps of about 35 ms, eight at a time   4 min
    validation   48 models x one batch x 512 steps of about 25 ms, eight at a time                           1 min
    starts       about 200 processes x 12 s, eight at a time                                                 5 min
                                                                                                            25 min

The speed on the GPU is a guess. Seeds are done one after the other, so that a study that takes longer has whole
tables of the first seed, and `--seeds 0` is a third of it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BASELINE = "sft"
# The model as it was, before any training.
BASE = "base"
# Learning rates are tried with it.
RATE_SEED = 0

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

# Hypotheses on why a variant does not win: recipes that change one key of a variant, whose rate they take. Asked for
# with `--variants`; what else may be changed, `--mixture` and `--rates` do.
PROBES: dict[str, str] = {
    "para-full-half": "para",  # too many inputs: the full instruction counts for little
    "para-start": "para",  # positions
    "succ-system-prefix": "succ",  # chunks that begin in the middle of nothing
}

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
        variants: Names of recipes, in `VARIANTS` or `PROBES`.
        seeds: Of the runs that are scored on IFEval.
        rates: Learning rates that are tried for each model and variant; one alone is taken without trying it.
        mixture: The rows' sources: a file of this folder, without its ending.
        max_bytes: Longest row, instruction and output together.
        rows: Training rows; None: all there are.
        rate_rows: Training rows while a rate is tried.
        rate_limit: Validation prompts; None: all.
        limit: Prompts of IFEval, and of IFEval-Flatten; None: all.
        max_new_tokens: Longest response.
        training: Recipe keys for this machine.
        evaluation: Options of `misotune eval` for this machine.
        jobs: Pieces at a time.
        changed: What differs from `REDUCED` or `FULL`, by field; a result says it.
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
    mixture: str = "mixture"
    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    jobs: int = 1
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def is_probe(self) -> bool:
        """Whether the sizes are the form's own, and something else was changed, to see what becomes of a difference.

        Such a study is scored on IFEval alone.
        """
        return bool(self.changed) and set(self.changed) <= {"mixture", "rates", "training", "evaluation"}

    @property
    def scores_base(self) -> bool:
        """Whether the base model is scored: by a probe where it may score otherwise than in the unchanged form."""
        return not self.is_probe or "evaluation" in self.changed


REDUCED = Form(
    name="reduced",
    models=("SmolLM2-135M-Instruct",),
    variants=("sft", "para", "succ", "flat"),
    seeds=(0,),
    rates=(1e-4, 4e-4),
    max_bytes=1800,
    rows=200,
    rate_rows=48,
    rate_limit=48,
    limit=250,
    max_new_tokens=256,
    training=("train.batch_size=8", "train.save_every_steps=20"),
)

FULL = Form(
    name="full",
    models=tuple(MODELS),
    variants=VARIANTS,
    seeds=(0, 1, 2),
    rates=(5e-5, 2e-4, 8e-4),
    max_bytes=4000,
    rows=None,
    rate_rows=300,
    rate_limit=None,
    limit=None,
    max_new_tokens=512,
    # A run takes a minute, and a checkpoint 3 GB; one that is stopped by a signal saves all the same.
    training=("train.tokens_per_micro_batch=8192", "train.save_every_steps=null"),
    evaluation=("--batch-size", "834"),
    jobs=8,
)
