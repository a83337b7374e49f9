"""The options that steer attention, of `misotune eval` and `misotune generate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from misotune.errors import UsageError

if TYPE_CHECKING:
    from misotune.attention.steering import Steering

_STEERING = "Steering"

Steer = Annotated[
    float | None,
    typer.Option(
        metavar="ALPHA",
        help="Scale attention to all tokens but the user's by this, above 0 and at most 1; the paper has 0.95. "
        "(default: none)",
        rich_help_panel=_STEERING,
    ),
]
SteerLayers = Annotated[
    str | None,
    typer.Option(
        metavar="LAYER,...",
        help="In these layers alone, counted from 1, such as 1,4-8. (default: all)",
        rich_help_panel=_STEERING,
    ),
]
SteerHeads = Annotated[
    str | None,
    typer.Option(
        metavar="HEAD,...",
        help="In these query heads of each layer alone, counted from 1, such as 1,4-8. (default: all)",
        rich_help_panel=_STEERING,
    ),
]


def steering_of(alpha: float | None, layers: str | None, heads: str | None) -> "Steering | None":
    """Returns how attention is to be steered; None: not at all.

    Raises:
        UsageError: A value is wrong, or layers or heads are named without `--steer`.
    """
    if alpha is None:
        for option, value in (("--steer-layers", layers), ("--steer-heads", heads)):
            if value is not None:
                raise UsageError(f"{option} belongs to --steer ALPHA, such as --steer 0.95")
        return None

    from misotune.attention.steering import Steering, parse_numbers

    return Steering(
        alpha,
        None if layers is None else parse_numbers(layers, "--steer-layers"),
        None if heads is None else parse_numbers(heads, "--steer-heads"),
    )
