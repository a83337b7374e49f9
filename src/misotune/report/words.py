"""Numbers, times and sizes as people read them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = "-"


def number(value: float) -> str:
    """Returns a number with about four digits.

    >>> [number(value) for value in (12345.6, 1.23456, 0.00001234, 0.0, 3.0, float("nan"))]
    ['12,346', '1.235', '1.23e-05', '0', '3', 'nan']
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Returns a time.

    >>> duration(42.4), duration(3725), duration(200000)
    ('42 s', '1 h 2 min', '2 d 7 h')
    """
    if not math.isfinite(seconds):
        return MISSING
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hours} h {minute} min"
    return f"{minutes} min {second} s" if minutes else f"{second} s"


def facts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields a nested value as lines of (dotted name, text); what is null or empty is left out.

    >>> list(facts({"a": {"b": 1234567, "c_bytes": 3 * 2**30}, "d": [1, 2], "e": None}))
    [('a b', '1,234,567'), ('a c', '3.00 GiB'), ('d', '1, 2')]
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from facts(part, f"{name} {key}".strip())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(part, Mapping) for part in value):
            for at, part in enumerate(value):
                yield from facts(part, f"{name} {at}".strip())
        elif value:
            yield name.replace("_", " "), ", ".join(_fact(name, part) for part in value)
    elif value is not None and value != "":
        for unit in ("_bytes", "_gib"):
            if name.endswith(unit):
                yield name.removesuffix(unit).replace("_", " "), _fact(name, value)
                return
        yield name.replace("_", " "), _fact(name, value)


def _fact(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name.endswith("_bytes"):
            return size(value)
        if name.endswith("_gib"):
            return f"{value:.2f} GiB"
        return f"{value:,}" if isinstance(value, int) else number(value)
    return str(value)


def size(num_bytes: float) -> str:
    """Returns an amount of memory or disk.

    >>> size(1536), size(5 * 2**20), size(3.5 * 2**30)
    ('1.5 KiB', '5.0 MiB', '3.50 GiB')
    """
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.2f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"
