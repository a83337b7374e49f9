"""Builds a mixture: all sources are read, then its rows are drawn, chunk by chunk, into one dataset."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from misotune.data.account import Account, DroppedRow
from misotune.data.dataset_writer import DatasetWriter
from misotune.data.mixture.picture import shares_svg
from misotune.data.mixture.reading import ReadSource, read_source, response_characters
from misotune.data.mixture.sampling import Draw, Pool, draw_rows, pool_totals
from misotune.data.mixture.shares import MixtureShares
from misotune.data.mixture.spec import Mixture
from misotune.data.mixture.store import RowStore
from misotune.data.mixture.system_prompts import with_system_prompt
from misotune.data.prepare import Prepared, PrepareSettings, Statistics, guards_of, text_statistics
from misotune.data.records import to_samples
from misotune.errors import DataError
from misotune.samples import Sample
from misotune.storage import sha256_of

PICTURE = "shares.svg"


@dataclass(slots=True)
class PreparedMixture(Prepared):
    """What `prepare_mixture` did.

    Attributes:
        shares: What each domain and source has of it.
    """

    shares: MixtureShares


def prepare_mixture(
    mixture: Mixture,
    out: Path,
    settings: PrepareSettings,
    on_row: Callable[[str, Account], None] = lambda *_: None,
    on_dropped: Callable[[DroppedRow], None] = lambda _: None,
) -> PreparedMixture:
    """Writes the dataset folder `out` of a mixture, and the picture of its shares in it.

    Rows wait in a temporary file until all sources have been read, so that memory stays flat.

    Args:
        mixture: What to build.
        out: The folder; it appears whole at the end, or not at all.
        settings: Of these `fail_above`, `dedupe`, `decontaminate` and `workers` are used; the guards see all
            sources as one.
        on_row: Called after each row read, with its source and the source's account, for progress.
        on_dropped: Called for each row left out or changed.

    Raises:
        UsageError: `out` holds something else.
        DataError: A file cannot be read, a source gives no row, a share of its rows is above its threshold, or
            there are too few rows for one chunk.
        RunError: The hub cannot be reached, or a worker process was killed.
    """
    with DatasetWriter(out) as writer, RowStore(out.parent) as store:

        def drop(row: DroppedRow) -> None:
            writer.add_dropped(row)
            on_dropped(row)

        guards = guards_of(settings)
        statistics = text_statistics()
        read = [
            read_source(source, mixture, settings, guards, statistics, store, on_row, drop)
            for source in mixture.sources
        ]
        draws, num_draws = _draws(mixture, read)
        account = _sum(each.account for each in read)
        account.num_inputs.clear()  # counted below, of the rows that are written
        for sample in _samples(mixture, draws, read, store, statistics, account.changed):
            account.num_inputs[len(sample.inputs)] += 1
            writer.add(sample)
        per_chunk = mixture.file.rows_per_chunk
        shares = MixtureShares(
            mixture.file.domains,
            [each.share for each in read],
            per_chunk,
            num_draws // per_chunk if mixture.file.has_chunks else 0,
        )
        summary = statistics.to_dict()
        writer.add_file(PICTURE, shares_svg(shares, mixture.file.name))
        writer.finish(_manifest(mixture, settings, account, summary, shares, read))
    return PreparedMixture(out, writer.num_rows, account, summary, shares)


def _draws(mixture: Mixture, read: Sequence[ReadSource]) -> tuple[Iterator[Draw], int]:
    """Returns which rows to take, in order, and how many."""
    file = mixture.file
    names = file.domains if file.has_chunks else ("",)
    pools = [_pool(name, mixture, read) for name in names]
    totals = pool_totals(pools, rows_per_chunk=file.rows_per_chunk, max_epochs=file.max_epochs, max_rows=file.rows)
    if not sum(totals):
        sizes = ", ".join(f"{pool.name or 'all'} {sum(pool.sizes)}" for pool in pools)
        raise DataError(
            f"{mixture.path}: too few rows for one chunk of {file.rows_per_chunk} ({sizes}); lower n_mix, or raise "
            "rows or max_epochs"
        )
    return draw_rows(pools, totals, [each.keys for each in read], file.seed), sum(totals)


def _pool(domain: str, mixture: Mixture, read: Sequence[ReadSource]) -> Pool:
    """The sources of a domain; of all domains, when it is empty."""
    members = [i for i, source in enumerate(mixture.sources) if domain in ("", source.entry.domain)]
    weights = [mixture.sources[i].entry.weight for i in members]
    given = tuple(weight for weight in weights if weight is not None)
    return Pool(domain, tuple(members), tuple(len(read[i].keys) for i in members), given or None)


def _samples(
    mixture: Mixture,
    draws: Iterator[Draw],
    read: Sequence[ReadSource],
    store: RowStore,
    statistics: Statistics,
    changed: Counter[str],
) -> Iterator[Sample]:
    """Yields the rows of the mixture, and counts them in the sources' shares."""
    file = mixture.file
    for place, draw in enumerate(draws):
        source = read[draw.source]
        stored = store[source.numbers[draw.row]]
        record = stored.record
        source.share.after.add(response_characters(record))
        source.share.num_different += draw.times == 0
        if draw.times:
            record = replace(record, id=f"{record.id}@{draw.times + 1}")
        num_notes = len(record.notes)
        prompts = file.system_prompts.get(record.domain, ())
        record = with_system_prompt(record, prompts, file.seed, replace_own=file.replace_system_prompts)
        changed.update(record.notes[num_notes:])
        statistics.add(stored.measured)
        chunk = f"chunk-{place // file.rows_per_chunk + 1}" if file.has_chunks else ""
        for sample in to_samples(record, file.mode):
            yield replace(sample, chunk=chunk)


def _sum(accounts: Iterable[Account]) -> Account:
    whole = Account()
    for account in accounts:
        for field in fields(Account):
            if field.name == "first":
                for kind, lines in account.first.items():
                    whole.first.setdefault(kind, []).extend(lines)
            else:
                setattr(whole, field.name, getattr(whole, field.name) + getattr(account, field.name))
    return whole


def _manifest(
    mixture: Mixture,
    settings: PrepareSettings,
    account: Account,
    statistics: dict[str, Any],
    shares: MixtureShares,
    read: Sequence[ReadSource],
) -> dict[str, Any]:
    sources: list[dict[str, Any]] = []
    for source, each in zip(mixture.sources, read, strict=True):
        found = source.source
        where: dict[str, Any] = {"hub_id": found.hub_id, "split": source.entry.split, "revision": source.entry.revision}
        if found.path is not None:
            where = {"path": str(found.path), "sha256": sha256_of(found.path)}
        sources.append({"name": source.name, **where, "account": each.account.to_dict()})
    return {
        "source": {"name": mixture.file.name, "path": str(mixture.path), "sources": sources},
        "mode": mixture.file.mode,
        "seed": mixture.file.seed,
        "settings": {
            **mixture.file.model_dump(mode="json"),
            "fail_above": dict(settings.fail_above),
            "dedupe": settings.dedupe,
            "decontaminate": list(settings.decontaminate),
        },
        "account": account.to_dict(),
        "statistics": statistics,
        "mixture": shares.to_dict(),
    }
