"""`misotune quickstart`."""
def quickstart() -> None:
    """Quickstart."""
