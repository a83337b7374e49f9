"""The dataset card: what a prepared dataset is, for people and for the `datasets` library."""

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
configs:
- config_name: default
  data_files: data.parquet
tags:
- misotune
---

# {name}

{rows} rows in the multi-input form of misotune, prepared from `{source}` for mode `{mode}`.

A row has `inputs` (each with a `role`: full, constraint, base or chunked; its chat `messages`, which end
with a user turn; and for the role constraint the `constraint`) and one `output` that answers all of them.

```python
import datasets

rows = datasets.load_dataset("{name}", split="train")
```

| what became of the source's rows | rows |
| --- | ---: |
{table}

{indicator}{texts}`manifest.json` has the source's hash, the settings and the whole account.
"""

_TEXTS = """\
| texts | mean | least | median | 95 % | most |
| --- | ---: | ---: | ---: | ---: | ---: |
{figures}

Languages: {languages}.

"""
_INDICATOR = """\
{marked} of its {turns} user turns are marked as context-dependent: they end with `{token}`, since the dependency score
of the response is above {threshold:g}. Training adds the token to the tokenizer.

"""
_FIGURES = {
    "prompt_words": "words of a prompt",
    "output_words": "words of a response",
    "constraints": "constraints",
    "turns": "user turns",
}


def dataset_card(name: str, manifest: Mapping[str, Any]) -> str:
    """Returns the text of a dataset's README.md."""
    account = manifest["account"]
    lines = [("read", account["read"]), ("kept", account["kept"])]
    lines += [(f"kept with one input: {reason}", count) for reason, count in account["one_input"].items()]
    lines += [(f"dropped: {reason}", count) for reason, count in account["dropped"].items()]
    return _CARD.format(
        name=name,
        rows=manifest["rows"],
        source=manifest["source"]["name"],
        mode=manifest["mode"],
        texts=_texts(manifest["statistics"]) if manifest.get("statistics") else "",
        indicator=_INDICATOR.format(**manifest["indicator"]) if "indicator" in manifest else "",
        table="\n".join(f"| {what.replace('|', '/')} | {count} |" for what, count in lines),
    )


def _texts(statistics: Mapping[str, Any]) -> str:
    shown = ("mean", "min", "p50", "p95", "max")
    figures = [
        f"| {label} | {' | '.join(str(statistics[name][figure]) for figure in shown)} |"
        for name, label in _FIGURES.items()
    ]
    languages = (f"{language} {count['share']:.1%}" for language, count in statistics["languages"].items())
    return _TEXTS.format(figures="\n".join(figures), languages=", ".join(languages))
