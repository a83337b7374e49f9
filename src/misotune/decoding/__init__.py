"""Multi-input decoding: one output from several inputs (the paper's appendix A)."""

from misotune.decoding.generation import generate

__all__ = ["generate"]
