"""`misotune export`."""
def export() -> None:
    """Export."""
