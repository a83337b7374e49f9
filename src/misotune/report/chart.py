"""A chart of curves over the steps, as inline SVG in the page's colours."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from misotune.report.series import USUAL, Curve, quantile
from misotune.report.words import number

_WIDTH, _HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 30, 30
NUM_COLORS = 8
_MANY_POINTS = 60


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    from_zero: bool = False,
    text: Callable[[float], str] = number,
    last_step: float = 0,
) -> Markup:
    """Returns a chart; an empty one says that nothing is measured yet.

    Args:
        title: What is drawn, with its unit.
        curves: At most `NUM_COLORS`; those of one chart share its axes.
        from_zero: Whether the axis of values begins at 0.
        text: How a value is written.
        last_step: The last step of the axis, at least.
    """
    head = Markup('<text class="title" x="{}" y="16">{}</text>').format(_LEFT, title)
    drawn = [curve for curve in curves if curve.points]
    broken = sorted({step for curve in curves for step in curve.not_finite})
    if not drawn:
        note = Markup('<text class="quiet" x="{}" y="{}">{}</text>').format(
            _LEFT, _HEIGHT / 2, "not finite" if broken else "nothing measured yet"
        )
        return _svg(f"{title}: nothing to draw", [head, note])
    low, high = _value_range(drawn, from_zero=from_zero)
    first = min(curve.points[0].step for curve in drawn)
    last = max([last_step, first + 1, *(curve.points[-1].step for curve in drawn), *broken])

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return _HEIGHT - _BOTTOM - (inside - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [head, *_axes(x, y, (first, last), (low, high), text)]
    for at, curve in enumerate(drawn):
        parts += _curve(curve, f"c{at % NUM_COLORS}", x, y, text, is_alone=len(drawn) == 1)
    for step in broken:
        parts.append(
            Markup('<path class="broken" d="M{:.1f} {}V{}"><title>step {:,.0f}: not finite</title></path>').format(
                x(step), _TOP, _HEIGHT - _BOTTOM, step
            )
        )
    ends = "; ".join(f"{curve.name} {text(curve.last)}" for curve in drawn)
    return _svg(f"{title}, steps {first:,.0f} to {drawn[0].points[-1].step:,.0f}: at the end {ends}", parts)


def legend(curves: Sequence[Curve], text: Callable[[float], str] = number) -> Markup:
    """Returns the names of a chart's curves with their colours and last values."""
    entries = [
        Markup('<li><span class="swatch c{}"></span>{} <b>{}</b></li>').format(
            at % NUM_COLORS, curve.name, text(curve.last)
        )
        for at, curve in enumerate(curve for curve in curves if curve.points)
    ]
    return Markup('<ul class="legend">') + Markup("").join(entries) + Markup("</ul>")


def ticks(low: float, high: float, number: int) -> list[float]:
    """Returns round values between two, about as many as asked for.

    >>> ticks(0.0, 10.0, 4)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    >>> ticks(1.13, 1.31, 4)
    [1.15, 1.2, 1.25, 1.3]
    """
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(k * step, digits) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _value_range(curves: Sequence[Curve], *, from_zero: bool) -> tuple[float, float]:
    # Spikes go beyond the chart: they would press the rest of a curve flat.
    smooth = [value for curve in curves for _, value in curve.smooth]
    points = [point for curve in curves for point in curve.points]
    # Of a single curve the spread is drawn too.
    lows = [point.low if len(curves) == 1 else point.mean for point in points]
    highs = [point.high if len(curves) == 1 else point.mean for point in points]
    low = min(quantile(lows, USUAL[0]), quantile(smooth, USUAL[0]))
    high = max(quantile(highs, USUAL[1]), quantile(smooth, USUAL[1]))
    if from_zero:
        low = min(low, 0.0)
    if high - low <= 1e-12 * max(abs(high), abs(low)):
        room = abs(high) * 0.1 or 1.0
        return (low, high + room) if from_zero and low == 0 else (low - room, high + room)
    room = 0.05 * (high - low)
    return (low if from_zero and low == 0 else low - room), high + room


def _axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    steps: tuple[float, float],
    values: tuple[float, float],
    text: Callable[[float], str],
) -> list[Markup]:
    parts: list[Markup] = []
    for value in ticks(*values, 4):
        parts += [
            Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y(value), _WIDTH - _RIGHT),
            Markup('<text class="quiet" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                _LEFT - 6, y(value) + 4, text(value)
            ),
        ]
    whole = dict.fromkeys(round(step) for step in ticks(*steps, 5))
    for step in whole:
        if steps[0] <= step <= steps[1]:
            anchor = "end" if x(step) > _WIDTH - 30 else "middle"
            parts.append(
                Markup('<text class="quiet" x="{:.1f}" y="{}" text-anchor="{}">{:,}</text>').format(
                    x(step), _HEIGHT - 10, anchor, step
                )
            )
    return parts


def _curve(
    curve: Curve,
    color: str,
    x: Callable[[float], float],
    y: Callable[[float], float],
    text: Callable[[float], str],
    *,
    is_alone: bool,
) -> list[Markup]:
    parts: list[Markup] = []
    if is_alone and len(curve.points) > 1:
        # The spread of what each point is the mean of; of single values, the line through them.
        upper = [f"{x(p.step):.1f} {y(p.high):.1f}" for p in curve.points]
        lower = [f"{x(p.step):.1f} {y(p.low):.1f}" for p in reversed(curve.points)]
        parts.append(Markup('<path class="band {}" d="M{}Z"/>').format(color, "L".join([*upper, *lower])))
    line = [f"{x(step):.1f} {y(value):.1f}" for step, value in curve.smooth]
    if len(line) > 1:
        parts.append(Markup('<path class="curve {}" d="M{}"/>').format(color, "L".join(line)))
    if len(curve.points) <= _MANY_POINTS:
        parts += [
            Markup(
                '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}step {:,.0f}: {}</title></circle>'
            ).format(color, x(p.step), y(p.mean), 2.5, f"{curve.name}, " if curve.name else "", p.step, text(p.mean))
            for p in curve.points
        ]
    return parts


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg role="img" viewBox="0 0 {} {}" aria-label="{}">').format(_WIDTH, _HEIGHT, label)
    return head + Markup("").join(parts) + Markup("</svg>")
