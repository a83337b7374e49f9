"""The training corpus: a prepared dataset as token ids, with an account of every row."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from misotune.data.dataset import open_dataset
from misotune.errors import LayoutError, RunError
from misotune.layout import ChatTemplate, Chunking
from misotune.samples import Mode
from misotune.storage import sha256_of
from misotune.training.corpus_cache import RANK_PATIENCE_S, cache_folder, corpus_key, open_or_make
from misotune.training.encoded import EncodedSamples
from misotune.training.shards import Limits, Progress, RowEncoder, encode_shards

# Part of the cache's key: to be raised when the same rows give other tokens or another account than before.
# tests/training/test_corpus.py knows what they give.
ENCODING_VERSION = 2

# What differs between equal tokenizers that were found in different places.
_CONFIG_OF_THE_PLACE = ("is_local", "local_files_only", "name_or_path")


@dataclass(slots=True)
class Corpus:
    """Encoded samples in the dataset's order, and what became of the others.

    Attributes:
        samples: What is trained on.
        num_rows: Rows read.
        num_cut: Samples whose output was cut to the limit.
        num_chunks: Samples that were joined from the rows of a chunk.
        num_joined: Rows in them.
        dropped: Number of samples dropped, by reason.
        examples: For each reason, the id of the first row.
        key: The hash of all that decides the corpus.
        cache: Where it lies; None: the cache is switched off.
        from_cache: Whether it had been made before.
    """

    samples: EncodedSamples
    num_rows: int
    num_cut: int = 0
    num_chunks: int = 0
    num_joined: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    key: str = ""
    cache: Path | None = None
    from_cache: bool = False

    @property
    def num_dropped(self) -> int:
        """Samples that are not trained on."""
        return sum(self.dropped.values())

    def account(self) -> dict[str, Any]:
        """Returns the account as it stands in `plan.json`."""
        reasons = {reason: {"samples": n, "first": self.examples[reason]} for reason, n in self.dropped.items()}
        account = {"rows": self.num_rows, "samples": len(self.samples), "cut": self.num_cut, "dropped": reasons}
        if self.num_chunks:
            account["chunks"] = {"samples": self.num_chunks, "rows": self.num_joined}
        return account


def read_corpus(
    path: Path,
    template: ChatTemplate,
    *,
    mode: Mode,
    roles: Collection[str],
    limits: Limits,
    max_dropped: float,
    chunking: Chunking | None = None,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
    workers: int | None = None,
    use_cache: bool = True,
) -> Corpus:
    """Returns the samples of a prepared dataset as token ids, from the cache where they are there already.

    Called in every process of a job: one of them makes the corpus, the others wait for it.

    Args:
        path: Dataset folder, or a JSONL file of multi-input rows.
        template: The model's chat template.
        mode: How inputs are chosen from a row.
        roles: For para and flat, the roles to include.
        limits: How long a sample may be.
        max_dropped: Share of samples that may be dropped, 0 to 1.
        chunking: For succ, how inputs are cut: prefixes of chunks count as tokens too.
        on_progress: Called with (rows done, rows).
        on_message: Called with a sentence that the user should see.
        workers: Processes that tokenise; None: one for each processor, or this one where rows are few.
        use_cache: Take it from the cache and keep it there.

    Raises:
        DataError: A row of the dataset is wrong.
        RunError: More than `max_dropped` of the samples would be dropped, or none is left.
    """
    encoder = RowEncoder(template, mode, tuple(roles), limits, chunking)
    found = open_or_make(
        cache_folder() if use_cache else None,
        key_parts(path, encoder),
        lambda folder, report: encode_shards(open_dataset(path), encoder, folder, workers=workers, on_progress=report),
        patience_s=0.0 if os.environ.get("LOCAL_RANK", "0") == "0" else RANK_PATIENCE_S,
        on_progress=on_progress or (lambda done, total: None),
        on_message=on_message or (lambda line: None),
    )
    account = found.account
    if on_progress:
        on_progress(account.rows, account.rows)
    most_first = sorted(account.dropped.items(), key=lambda item: -item[1][0])
    corpus = Corpus(
        samples=found.samples,
        num_rows=account.rows,
        num_cut=account.cut,
        num_chunks=account.chunks,
        num_joined=account.joined,
        dropped={reason: number for reason, (number, _) in most_first},
        examples={reason: first for reason, (_, first) in most_first},
        key=found.key,
        cache=found.folder,
        from_cache=found.was_there,
    )
    _check_account(corpus, path, max_dropped)
    return corpus


def key_parts(path: Path, encoder: RowEncoder) -> dict[str, Any]:
    """Returns all that decides the tokens of a dataset: a change of any makes another corpus."""
    tokenizer, chunking = encoder.template.tokenizer, encoder.chunking
    probe = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    try:
        rendered: list[int] | str = encoder.template.encode(probe, add_generation_prompt=False)
    except LayoutError as error:
        rendered = str(error)
    return {
        "version": ENCODING_VERSION,
        # Rows of a hand-written file that have no id are named by the file.
        "data": [sha256_of(path), str(path)] if path.is_file() else [open_dataset(path).sha256],
        "template": tokenizer.chat_template,
        # Some templates write the date.
        "rendered": rendered,
        "tokenizer": _tokenizer_hash(tokenizer),
        "libraries": {name: version(name) for name in ("tokenizers", "transformers")},
        "mode": encoder.mode,
        "roles": sorted(encoder.roles),
        "limits": [encoder.limits.max_length, encoder.limits.too_long, encoder.limits.max_sample_length],
        # How inputs are cut is drawn for each epoch; here counts how much room that may take.
        "chunking": chunking and [max(chunking.probabilities), chunking.prefix, chunking.bos_token_id],
    }


def _tokenizer_hash(tokenizer: Any) -> str:
    """Returns the hash of the files that hold the tokenizer, wherever it was loaded from."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        hashes: dict[str, str] = {}
        for file in sorted(Path(folder).rglob("*")):
            if file.name == "tokenizer_config.json":
                config = json.loads(file.read_text(encoding="utf-8"))
                kept = {key: value for key, value in config.items() if key not in _CONFIG_OF_THE_PLACE}
                hashes[file.name] = corpus_key(kept)
            elif file.is_file():
                hashes[file.name] = sha256_of(file)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _check_account(corpus: Corpus, path: Path, max_dropped: float) -> None:
    total = len(corpus.samples) - corpus.num_chunks + corpus.num_joined + corpus.num_dropped
    if corpus.num_dropped <= max_dropped * total and corpus.samples:
        return
    reasons = "; ".join(
        f"{number} x {reason} (first: row {corpus.examples[reason]})" for reason, number in corpus.dropped.items()
    )
    raise RunError(
        f"{path}: {corpus.num_dropped} of {total} samples would be dropped, more than data.max_dropped="
        f"{max_dropped:g} allows: {reasons or 'the dataset is empty'}"
    )
