"""What a command sets before it imports the large libraries: they should be silent unless something is wrong."""

import ctypes
import os
import sys
import warnings

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def quiet_libraries() -> None:
    """Silences notices of deepspeed, transformers and tokenizers that no user can act on."""
    import torch

    if not torch.cuda.is_available():
        # Else deepspeed, which transformers imports, warns at every start that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _return_memory()
    # The tokenizers' own threads warn whenever a process that used them forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _return_memory() -> None:
    """Makes a process on the CPU give freed memory back; the quickstart held 6.0 GiB without it.

    Rows differ in length, so every tensor has a size of its own: glibc keeps the freed ones in pieces, and oneDNN a
    compiled kernel for each of its last 1,024 shapes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 1 << 20)
            mallopt(_M_TRIM_THRESHOLD, 1 << 20)
