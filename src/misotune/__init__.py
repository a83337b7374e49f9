"""misotune: fine-tune any decoder-only LLM to follow complex instructions, with MISO attention.

To use MISO attention in a trainer of your own, import `misotune.attention` and `misotune.layout`.
"""
