"""The paper's figures (arXiv 2505.11922, tables 1 and 2), in percent, by variant: what ours stand beside."""

FIGURES = ("[S]P", "[S]I", "[L]P", "[L]I", "[S]I flat", "[L]I flat")

# Base model -> variant -> IFEval's four figures and IFEval-Flatten's two.
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "Llama3-8B": {
        "sft": (40.1, 51.9, 44.7, 55.6, 52.5, 56.5),
        "para": (44.5, 54.7, 49.5, 59.5, 58.4, 62.1),
        "succ": (44.7, 54.9, 47.9, 57.9, 55.4, 58.4),
        "fid-para": (42.7, 51.9, 47.1, 57.0, 56.5, 59.6),
        "para-without-full": (44.4, 55.4, 48.6, 59.4, 57.3, 60.5),
        "fid-para-without-full": (41.2, 52.5, 44.4, 55.4, 57.8, 60.8),
        "flat": (38.6, 48.7, 41.2, 51.7, 50.5, 53.1),
    },
    "Mistral-7B": {
        "sft": (38.8, 49.4, 41.8, 52.5, 54.0, 57.9),
        "para": (42.9, 54.1, 46.0, 57.7, 57.6, 61.1),
        "succ": (42.9, 53.5, 47.0, 58.2, 56.1, 61.1),
    },
}


def averages(figures: tuple[float, ...]) -> tuple[float, float]:
    """Returns the means that the paper calls Avg.: of IFEval's four figures, of IFEval-Flatten's two.

    >>> [round(average, 1) for average in averages(PAPER["Llama3-8B"]["para"])]
    [52.0, 60.2]
    """
    return sum(figures[:4]) / 4, sum(figures[4:]) / 2
