"""Keeps lm-eval's own progress bars and messages off the terminal."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from unittest import mock

import datasets
import lm_eval.api.task
import lm_eval.evaluator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences lm-eval, and the bars of the packages below it, while it works.

    Nor does it describe the machine then: that asks a dozen programs, for seconds, what `scores.json` has of versions.
    """
    logger = logging.getLogger("lm_eval")
    level, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    silent_bar = functools.partial(lm_eval.api.task.tqdm, disable=True)
    try:
        with (
            warnings.catch_warnings(),
            mock.patch.object(lm_eval.api.task, "tqdm", silent_bar),
            mock.patch.object(lm_eval.evaluator, "add_env_info"),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
