"""The page's pictures: who attends to whom, and histograms, as inline SVG in the page's colours."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from misotune.preview.rows import SampleView
from misotune.preview.statistics import Bin, Summary

_SIDE = 300
_SHORTEST = 15
_LEFT, _TOP, _RIGHT = 130, 24, 90
_WIDTH, _HEIGHT = 360, 190
_BASELINE = 140
_MOST_LABELS = 8
_WIDEST_BAR = 48


def attention_picture(sample: SampleView) -> Markup:
    """Returns the attention matrix of a sample: queries down, keys across, sides to scale with tokens.

    Args:
        sample: Its spans are the sides, its blocks what is filled.
    """
    sides = [max(_SHORTEST, _SIDE * len(span) / sample.num_tokens) for span in sample.segment_spans]
    starts = [sum(sides[:i]) for i in range(len(sides))]
    total = sum(sides)
    parts: list[Markup] = []
    names = [f"{segment.name} {segment.role}" for segment in sample.segments]
    for i, segment in enumerate(sample.segments):
        at, middle = starts[i], starts[i] + sides[i] / 2
        parts += [
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
                _LEFT - 6, _TOP + middle + 4, names[i]
            ),
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                _LEFT + middle, _TOP - 7, segment.name
            ),
            Markup('<text class="quiet" x="{:.1f}" y="{:.1f}">{:,} tokens</text>').format(
                _LEFT + total + 6, _TOP + middle + 4, len(segment.tokens)
            ),
        ]
        parts += [
            Markup('<path d="M{:.1f} {:.1f}h{:.1f}M{:.1f} {:.1f}v{:.1f}" stroke="var(--line)" fill="none"/>').format(
                _LEFT, _TOP + at, total, _LEFT + at, _TOP, total
            )
        ]
    for queries, keys, is_causal in sample.attention():
        x, y = _LEFT + starts[keys], _TOP + starts[queries]
        width, height = sides[keys], sides[queries]
        shape = f"M{x:.1f} {y:.1f}v{height:.1f}h{width:.1f}" + ("z" if is_causal else f"v{-height:.1f}z")
        what = f"{names[queries]} sees {'itself, causal' if is_causal else f'all of {names[keys]}'}"
        # The keys' colour: what an output reads is seen at a glance.
        parts.append(
            Markup('<path class="block {}" d="{}"><title>{}</title></path>').format(
                sample.segments[keys].kind, shape, what
            )
        )
    parts.append(
        Markup('<rect x="{}" y="{}" width="{:.1f}" height="{:.1f}" fill="none" stroke="var(--soft)"/>').format(
            _LEFT, _TOP, total, total
        )
    )
    inputs = len(sample.segments) - 1
    label = f"who attends to whom: of {inputs} inputs each sees only itself; the output sees every input and itself"
    return _svg(_LEFT + total + _RIGHT, _TOP + total + 4, label, parts)


def counts_picture(counts: Mapping[int, int], what: str, of: str) -> Markup:
    """Returns bars for whole numbers, one each from the smallest to the largest.

    Args:
        counts: How often each number is there; at least one.
        what: What is counted, the axis.
        of: What the bars count.
    """
    low, high = min(counts), max(counts)
    bars = [(str(n), f"{n}: {counts.get(n, 0):,} {of}", counts.get(n, 0)) for n in range(low, high + 1)]
    every = -(-len(bars) // (2 * _MOST_LABELS))
    labels = [(i + 0.5, name) for i, (name, _, _) in enumerate(bars) if i % every == 0]
    return _bars([(title, count) for _, title, count in bars], labels, what, of, "")


def bins_picture(bins: Sequence[Bin], what: str, of: str, summary: Summary, *, is_share: bool = False) -> Markup:
    """Returns a histogram, with median and 90 % quantile in its caption.

    Args:
        bins: Its bars.
        what: What is measured, the axis.
        of: What the bars count.
        summary: Of the measured values.
        is_share: Values are shares of one, shown in percent.
    """

    def text(value: float) -> str:
        return f"{value:.0%}" if is_share else f"{value:,.0f}"

    bars = [(f"{text(b.low)} to {text(b.high)}: {b.number:,} {of}", b.number) for b in bins]
    every = -(-len(bins) // 4)
    edges = [b.low for b in bins] + [bins[-1].high]
    labels = [(float(i), text(edges[i])) for i in range(0, len(edges), every)]
    caption = f"median {text(summary.median)}, 90 % up to {text(summary.p90)}, most {text(summary.max)}"
    return _bars(bars, labels, what, of, caption)


def _bars(
    bars: Sequence[tuple[str, int]], labels: Sequence[tuple[float, str]], what: str, of: str, caption: str
) -> Markup:
    left, right, top = 12, _WIDTH - 12, 34
    step = (right - left) / len(bars)
    most = max(max(count for _, count in bars), 1)
    parts = [
        Markup('<text x="{}" y="14" style="font-weight:600">{}</text>').format(left, what),
        Markup('<text class="quiet" x="{}" y="14" text-anchor="end">tallest bar: {:,} {}</text>').format(
            right, most, of
        ),
    ]
    width = min(max(step - 1, 1), _WIDEST_BAR)
    for i, (title, count) in enumerate(bars):
        height = (_BASELINE - top) * count / most
        height = max(height, 1.5) if count else 0
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="var(--full)"><title>{}</title></rect>'
            ).format(left + (i + 0.5) * step - width / 2, _BASELINE - height, width, height, title)
        )
    parts.append(Markup('<path d="M{} {}H{}" stroke="var(--soft)"/>').format(left, _BASELINE, right))
    for at, label in labels:
        x = left + at * step
        anchor = "start" if x < left + 8 else "end" if x > right - 8 else "middle"
        parts.append(
            Markup('<text class="quiet" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                x, _BASELINE + 15, anchor, label
            )
        )
    if caption:
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(left, _BASELINE + 38, caption))
    return _svg(_WIDTH, _HEIGHT, f"{what}: {caption or ', '.join(title for title, _ in bars)}", parts)


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg role="img" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" height="{:.0f}" aria-label="{}">').format(
        width, height, width, height, label
    )
    return head + Markup("").join(parts) + Markup("</svg>")
