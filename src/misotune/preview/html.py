"""A preview as one self-contained HTML page: no script, no request to anywhere, light and dark."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from misotune.errors import UsageError
from misotune.preview.page import Preview
from misotune.preview.rows import Run, Segment, Token
from misotune.preview.statistics import LENGTHS, Statistics, histogram, summarize
from misotune.preview.svg import attention_picture, bins_picture, counts_picture
from misotune.preview.tokens import PART_SIGN, visible
from misotune.report.html import page_template

_HERE = Path(__file__).parent

# A token takes about 60 bytes of the page.
_HEAD, _TAIL = 1200, 600


def write_page(preview: Preview, path: Path, *, full: bool = False) -> None:
    """Writes the page.

    Args:
        preview: What it shows.
        path: The file; one that is there is replaced.
        full: Show long texts whole.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        path.write_text(render_page(preview, full=full), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written ({error.strerror or error})") from error


def render_page(preview: Preview, *, full: bool = False) -> str:
    """Returns the page's HTML.

    Args:
        preview: What it shows.
        full: Show long texts whole.
    """
    template, css = page_template(_HERE, _HERE / "page.css")
    found = preview.statistics
    return template.render(
        preview=preview,
        found=found,
        css=css,
        names=LENGTHS,
        shares=summarize(found.trained_shares) if found.num_samples else (),
        pictures=_histograms(found) if found.num_samples else (),
        visible=visible,
        attention=attention_picture,
        tokens=lambda segment: _token_markup(segment, full=full),
    )


def _histograms(found: Statistics) -> list[Markup]:
    lengths = found.lengths()
    shares = found.trained_shares
    return [
        counts_picture(found.inputs, "inputs per sample", "samples"),
        bins_picture(histogram(found.values["pair"]), "tokens: longest input + output", "samples", lengths["pair"]),
        bins_picture(histogram(found.values["whole"]), "tokens: all inputs + output", "samples", lengths["whole"]),
        bins_picture(
            histogram(shares, is_share=True), "share of trained tokens", "samples", summarize(shares), is_share=True
        ),
    ]


def _token_markup(segment: Segment, *, full: bool) -> Markup:
    parts: list[Markup] = []
    instruction = 1
    for run in segment.runs():
        label = f"{len(run.tokens):,} tokens, {'trained' if run.is_trained else 'not trained'}"
        if run.instruction > instruction:
            instruction = run.instruction
            label = f"instruction {instruction}: {label}"
        if segment.name == "y":
            parts.append(
                Markup('<span class="label{}">{}</span>').format(Markup(" t") if run.is_trained else "", label)
            )
        parts.append(_run_markup(run, full=full))
    return Markup("\n").join(parts)


def _run_markup(run: Run, *, full: bool) -> Markup:
    tag = Markup("mark" if run.is_trained else "div")
    tokens = run.tokens
    if full or len(tokens) <= _HEAD + _TAIL:
        inner = _spans(tokens)
    else:
        hidden = len(tokens) - _HEAD - _TAIL
        gap = Markup('<em class="gap">… {:,} tokens … (--full shows all)</em>').format(hidden)
        inner = _spans(tokens[:_HEAD]) + gap + _spans(tokens[-_TAIL:])
    return Markup('<{tag} class="run">{inner}</{tag}>').format(tag=tag, inner=inner)


def _spans(tokens: Sequence[Token]) -> Markup:
    parts = [
        f'<span{" class=s" if token.is_special else ""} title="id {token.id}, position {token.position}">'
        f"{escape(visible(token.text) or PART_SIGN)}</span>"
        for token in tokens
    ]
    return Markup("".join(parts))
