"""What a command sets before it imports the large libraries: they should be silent unless something is wrong."""

import io
import logging
import os
import warnings
from contextlib import redirect_stdout


def quiet_libraries() -> None:
    """Silences notices of deepspeed, transformers and tokenizers that no user can act on."""
    import torch

    if not torch.cuda.is_available():
        # Else deepspeed, which transformers imports, warns at every start that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Rows differ in length, and oneDNN keeps a compiled kernel for each of its last 1,024 shapes: 0.4 GiB.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    # The tokenizers' own threads warn whenever a process that used them forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers' Trainer accumulates itself and tells accelerate of one step; DeepSpeed's number is ours, and taken.
    logging.getLogger("accelerate.accelerator").addFilter(lambda line: "steps mismatch" not in line.getMessage())
    from transformers.utils import logging as transformers_logging

    if os.environ.get("WANDB_MODE") == "offline":
        # The import prints a line to standard output, which is for results.
        with redirect_stdout(io.StringIO()):
            import transformers.integrations.integration_utils  # noqa: F401
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # peft asks transformers by the old name.
    warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing`")
