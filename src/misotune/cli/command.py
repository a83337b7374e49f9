"""How every command tells its options: a default as "(default: x)", and of a switch no type, which it has not."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command of misotune."""

    def get_params(self, ctx: Any) -> Any:
        """Returns the parameters as they are told."""
        return _told(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands of misotune."""

    def get_params(self, ctx: Any) -> Any:
        """Returns the parameters as they are told."""
        return _told(super().get_params(ctx))


def _told(params: list[Any]) -> list[Any]:
    """Returns the parameters; each that has a default of its own, and no words for it, says it behind its help."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""  # else typer writes <bool>
        elif param.default is not None and param.show_default:
            value = f"{param.default:g}" if isinstance(param.default, float) else param.default
            param.help = f"{param.help} (default: {value})"
        param.show_default = False
    return params
