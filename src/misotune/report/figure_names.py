"""What figures are called, wherever people read them; in files they keep the names of lm-eval."""

_NAMES = {
    "prompt_level_strict_acc": "prompt strict",
    "inst_level_strict_acc": "instruction strict",
    "prompt_level_loose_acc": "prompt loose",
    "inst_level_loose_acc": "instruction loose",
}


def figure_name(figure: str) -> str:
    """Returns what a figure of `scores.json` is called; one without another name keeps its own.

    >>> figure_name("inst_level_strict_acc"), figure_name("recall")
    ('instruction strict', 'recall')
    """
    return _NAMES.get(figure, figure)


def figure_heading(figure: str) -> str:
    """Returns a figure's name as a narrow column bears it.

    >>> figure_heading("inst_level_strict_acc"), figure_heading("recall")
    ('instr. strict', 'recall')
    """
    return _NAMES[figure].replace("instruction", "instr.") if figure in _NAMES else figure
