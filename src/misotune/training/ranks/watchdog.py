"""A run that stands still says where: every rank's stack, and which ranks are missing."""

from pathlib import Path

from transformers import TrainerCallback


class Watchdog(TrainerCallback):
    """Watches that every rank goes on.

    Args:
        folder: Where stacks are written.
        timeout_minutes: Minutes without progress after which the run is stopped.
    """

    def __init__(self, folder: Path, timeout_minutes: float) -> None:
        self.folder = folder
        self.timeout_minutes = timeout_minutes
