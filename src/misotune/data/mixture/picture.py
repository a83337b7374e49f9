"""The picture of a mixture's shares: bars before and after the draw, as an SVG written by hand."""

from html import escape

from misotune.data.mixture.shares import Amount, MixtureShares

# Okabe and Ito's colours, which readers with any colour vision tell apart; each part has its name beside it.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_DARK = {"#0072B2", "#009E73", "#D55E00"}

_WIDTH, _LEFT, _BAR = 780, 170, 580
_TOP, _HEIGHT, _GAP = 64, 30, 12
_LEGEND_WIDTH = 145
_FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
_LEAST_WITH_TEXT = 0.06


def shares_svg(shares: MixtureShares, title: str) -> str:
    """Returns the picture: the domains' shares of rows and of response text, before and after."""
    before, after = shares.whole()
    amounts = [shares.of_domain(domain) for domain in shares.domains]
    bars = [
        (f"rows {when}", whole.rows, [pair[i].rows for pair in amounts])
        for i, (when, whole) in enumerate((("before", before), ("after", after)))
    ] + [
        (f"response text {when}", whole.characters, [pair[i].characters for pair in amounts])
        for i, (when, whole) in enumerate((("before", before), ("after", after)))
    ]
    parts = [_text(_LEFT, 24, f"{title}: {_counts(before, after, shares)}", size=14, weight="bold")]
    parts += [_legend(domain, i) for i, domain in enumerate(shares.domains)]
    top = _TOP + _HEIGHT * ((len(shares.domains) - 1) // 4)
    for i, (label, whole, values) in enumerate(bars):
        y = top + i * (_HEIGHT + _GAP) + (_GAP if i > 1 else 0)
        parts.append(_text(_LEFT - 10, y + 20, label, anchor="end"))
        parts += _bar(y, whole, values)
    height = top + len(bars) * (_HEIGHT + _GAP) + 2 * _GAP
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' "
        f"height='{height}' role='img'>\n<title>{escape(title)}: shares of domains</title>\n"
        f"<rect width='100%' height='100%' fill='white'/>\n{body}\n</svg>\n"
    )


def _counts(before: Amount, after: Amount, shares: MixtureShares) -> str:
    chunks = f" in {shares.num_chunks:,} chunks of {shares.rows_per_chunk}" if shares.num_chunks else ""
    return f"{after.rows:,} of {before.rows:,} rows{chunks}"


def _legend(domain: str, i: int) -> str:
    x, y = _LEFT + (i % 4) * _LEGEND_WIDTH, 36 + _HEIGHT * (i // 4)
    square = f"<rect x='{x}' y='{y}' width='14' height='14' fill='{_color(i)}' stroke='#333'/>"
    return square + _text(x + 20, y + 12, domain)


def _bar(y: int, whole: int, values: list[int]) -> list[str]:
    parts: list[str] = []
    x = float(_LEFT)
    for i, value in enumerate(values):
        share = value / whole if whole else 0.0
        width = _BAR * share
        parts.append(
            f"<rect x='{x:.1f}' y='{y}' width='{width:.1f}' height='{_HEIGHT}' fill='{_color(i)}' stroke='white'/>"
        )
        if share >= _LEAST_WITH_TEXT:
            fill = "white" if _color(i) in _DARK else "black"
            parts.append(_text(x + width / 2, y + 20, f"{share:.1%}", anchor="middle", fill=fill))
        x += width
    return parts


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", **style: str) -> str:
    weight, fill = style.get("weight", "normal"), style.get("fill", "black")
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='{fill}' {_FONT}>{escape(text)}</text>"
    )


def _color(i: int) -> str:
    return _COLORS[i % len(_COLORS)]
