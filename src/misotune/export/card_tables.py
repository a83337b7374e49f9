"""Tables in the model card's Markdown."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_text_columns: int = 1) -> str:
    """Returns a table; all columns but the first ones hold numbers.

    >>> print(table(["task", "prompts"], [["ifeval", "541"]]))
    | task | prompts |
    | --- | ---: |
    | ifeval | 541 |
    """
    is_number = [at >= num_text_columns for at in range(len(head))]
    return "\n".join([_row(head), _row(["---:" if number else "---" for number in is_number]), *map(_row, rows)])


def pairs_table(rows: Iterable[tuple[str, str]]) -> str:
    """Returns a table of names and values without a head.

    >>> print(pairs_table([("steps", "5")]))
    | | |
    | --- | --- |
    | steps | 5 |
    """
    return "\n".join(["| | |", "| --- | --- |", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
