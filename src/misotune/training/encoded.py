"""The encoded corpus on disk: flat arrays that a memory map reads, and the account of the rows behind them.

    corpus.json            the account; the names of sources; of each array its type, length and SHA-256
    tokens.bin             token ids: of each sample its inputs, then its output
    token_offsets.bin      where in `tokens` each segment (input or output) begins
    segment_offsets.bin    which segments each sample has; the last is its output
    trained.bin            of each output token, whether its prediction is trained
    sources.bin            where each instruction's row came from: an index into the names in corpus.json
    ...                    one file for each entry of `_FLAT` and `_OFFSETS`

A shard is the same for some rows, as one `.npz` with lengths in place of offsets, so that shards can be made in
any order and joined by writing one behind the other.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from misotune.layout import EncodedSample
from misotune.samples import ROLES, Role
from misotune.storage import sha256_of

MANIFEST = "corpus.json"

# Arrays that are written one behind the other.
_FLAT = {
    "tokens": np.int32,
    "trained": np.bool_,
    "roles": np.uint8,  # of each segment; an output has none
    "ids": np.uint8,  # UTF-8
    "starts": np.int32,
    "sources": np.int32,  # of each instruction, as `starts`
    "num_trained": np.int32,
    "num_instructions": np.int32,
    "num_opening_tokens": np.int32,
    "can_chunk": np.bool_,
}
# Offsets, each with the name of a shard's lengths that they are the running sum of.
_OFFSETS = {
    "token_offsets": "segment_lengths",
    "segment_offsets": "num_segments",
    "trained_offsets": "output_lengths",
    "id_offsets": "id_lengths",
    "start_offsets": "num_starts",
}
_NO_ROLE = len(ROLES)


@dataclass(slots=True)
class RowAccount:
    """What became of rows.

    Attributes:
        rows: Rows read.
        cut: Samples whose output was cut to the limit.
        chunks: Samples that were joined from several rows.
        joined: Rows in them.
        dropped: By reason, how many samples were dropped and the id of the first.
    """

    rows: int = 0
    cut: int = 0
    chunks: int = 0
    joined: int = 0
    dropped: dict[str, tuple[int, str]] = field(default_factory=dict)

    def drop(self, reason: str, first: str, number: int = 1) -> None:
        """Counts dropped samples."""
        before, known = self.dropped.get(reason, (0, first))
        self.dropped[reason] = (before + number, known)

    def add(self, later: "RowAccount") -> None:
        """Adds the account of the rows that follow."""
        self.rows += later.rows
        self.cut += later.cut
        self.chunks += later.chunks
        self.joined += later.joined
        for reason, (number, first) in later.dropped.items():
            self.drop(reason, first, number)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RowAccount":
        """Returns the account that `asdict` wrote as JSON."""
        dropped = {reason: (number, first) for reason, (number, first) in values["dropped"].items()}
        return cls(**{**values, "dropped": dropped})


class EncodedSamples(Sequence[EncodedSample]):
    """The samples of an encoded corpus; each is cut out of the arrays when it is asked for."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], sources: Sequence[str]) -> None:
        self.sources = tuple(sources)
        self._arrays = arrays
        self._segments = arrays["segment_offsets"]
        self._tokens = arrays["token_offsets"]

    def __len__(self) -> int:
        return len(self._segments) - 1

    @overload
    def __getitem__(self, index: int) -> EncodedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedSample]: ...
    def __getitem__(self, index: int | slice) -> EncodedSample | list[EncodedSample]:
        """Returns a sample; its arrays are views of the files and cannot be written to."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        first, output = int(self._segments[index]), int(self._segments[index + 1]) - 1
        bounds = self._tokens[first : output + 2].tolist()
        tokens = self._arrays["tokens"]
        segments = [tokens[start:stop] for start, stop in pairwise(bounds)]
        codes = self._arrays["roles"][first:output].tolist()
        return EncodedSample(
            id=self._part("ids", "id_offsets", index).tobytes().decode("utf-8", "surrogatepass"),
            inputs=tuple(segments[:-1]),
            output=segments[-1],
            is_trained=self._part("trained", "trained_offsets", index),
            num_opening_tokens=int(self._arrays["num_opening_tokens"][index]),
            can_chunk=bool(self._arrays["can_chunk"][index]),
            roles=() if _NO_ROLE in codes else tuple(ROLES[code] for code in codes),
            starts=tuple(self._part("starts", "start_offsets", index).tolist()),
            sources=tuple(self.sources[code] for code in self._part("sources", "start_offsets", index).tolist()),
        )

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each sample, all inputs and the output."""
        return np.diff(self._tokens[self._segments])

    @property
    def num_inputs(self) -> NDArray[np.int64]:
        """Inputs of each sample."""
        return np.diff(self._segments) - 1

    @property
    def num_trained_tokens(self) -> NDArray[np.int32]:
        """Trained tokens of each sample."""
        return self._arrays["num_trained"]

    @property
    def num_instructions(self) -> NDArray[np.int32]:
        """Instructions of each sample that have trained tokens."""
        return self._arrays["num_instructions"]

    @property
    def roles(self) -> list[Role]:
        """The roles that inputs play."""
        codes = np.unique(self._arrays["roles"]).tolist()
        return [ROLES[code] for code in codes if code != _NO_ROLE]

    def count_by_source(self) -> dict[str, int]:
        """Returns how many instructions there are of each source."""
        counts = np.bincount(self._arrays["sources"], minlength=len(self.sources)).tolist()
        return dict(zip(self.sources, counts, strict=True))

    def _part(self, name: str, offsets: str, index: int) -> NDArray[Any]:
        start, stop = self._arrays[offsets][index : index + 2].tolist()
        return self._arrays[name][start:stop]


class BrokenCorpusError(Exception):
    """A file of an encoded corpus is missing, cut or changed; the message says which."""


def shard_bytes(samples: Sequence[EncodedSample], account: RowAccount) -> bytes:
    """Returns a shard's file; equal samples give equal bytes."""
    segments = [segment for sample in samples for segment in (*sample.inputs, sample.output)]
    ids = [sample.id.encode("utf-8", "surrogatepass") for sample in samples]
    outputs = [sample.is_trained for sample in samples]
    sources = [source for sample in samples for source in sample.sources]
    names = list(dict.fromkeys(sources))
    codes = {name: code for code, name in enumerate(names)}
    arrays = {
        "tokens": np.concatenate(segments) if segments else [],
        "trained": np.concatenate(outputs) if outputs else [],
        "roles": [code for sample in samples for code in _role_codes(sample)],
        "ids": np.frombuffer(b"".join(ids), dtype=np.uint8),
        "starts": [start for sample in samples for start in sample.starts],
        "sources": [codes[source] for source in sources],
        "num_trained": [sample.num_trained_tokens for sample in samples],
        "num_instructions": [np.count_nonzero(sample.num_trained_by_instruction) for sample in samples],
        "num_opening_tokens": [sample.num_opening_tokens for sample in samples],
        "can_chunk": [sample.can_chunk for sample in samples],
        "segment_lengths": list(map(len, segments)),
        "num_segments": [len(sample.inputs) + 1 for sample in samples],
        "output_lengths": list(map(len, outputs)),
        "id_lengths": list(map(len, ids)),
        "num_starts": [len(sample.starts) for sample in samples],
        "account": np.frombuffer(json.dumps(asdict(account)).encode(), dtype=np.uint8),
        "source_names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
    }
    file = io.BytesIO()
    types = {**_FLAT, "account": np.uint8, "source_names": np.uint8}
    typed: dict[str, Any] = {name: np.asarray(values, types.get(name, np.int64)) for name, values in arrays.items()}
    np.savez(file, **typed)
    return file.getvalue()


def write_corpus(shards: Iterable[bytes], folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes shards, in order, as one corpus; one shard at a time is in memory.

    Args:
        shards: What `shard_bytes` returned.
        folder: An empty folder.
        facts: What else the manifest says: what the corpus was made of.
    """
    account = RowAccount()
    names = [*_FLAT, *_OFFSETS]
    types = {name: np.dtype(_FLAT.get(name, np.int64)) for name in names}
    lengths = dict.fromkeys(names, 0)
    hashes = {name: hashlib.sha256() for name in names}
    last = dict.fromkeys(_OFFSETS, 0)
    sources: dict[str, int] = {}
    files = {name: (folder / f"{name}.bin").open("wb") for name in names}

    def append(name: str, values: NDArray[Any]) -> None:
        content = np.ascontiguousarray(values, dtype=types[name]).tobytes()
        files[name].write(content)
        hashes[name].update(content)
        lengths[name] += len(values)

    try:
        for name in _OFFSETS:
            append(name, np.zeros(1, dtype=np.int64))
        for content in shards:
            with np.load(io.BytesIO(content)) as shard:
                account.add(RowAccount.from_dict(json.loads(shard["account"].tobytes())))
                # A shard numbers the sources that it has itself.
                found = [sources.setdefault(name, len(sources)) for name in json.loads(shard["source_names"].tobytes())]
                for name in _FLAT:
                    append(name, np.take(found, shard[name]) if name == "sources" and found else shard[name])
                for name, of in _OFFSETS.items():
                    append(name, last[name] + np.cumsum(shard[of]))
                    last[name] += int(shard[of].sum())
    finally:
        for file in files.values():
            file.close()
    arrays = {
        name: {"type": types[name].name, "length": lengths[name], "sha256": hashes[name].hexdigest()} for name in names
    }
    manifest = {**facts, "account": asdict(account), "sources": list(sources), "arrays": arrays}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def open_corpus(folder: Path) -> tuple[EncodedSamples, RowAccount]:
    """Returns the samples and the account of a corpus, once every file is known to be what was written.

    Raises:
        BrokenCorpusError: One is not.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        described = {name: manifest["arrays"][name] for name in (*_FLAT, *_OFFSETS)}
        account = RowAccount.from_dict(manifest["account"])
        sources: list[str] = manifest["sources"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenCorpusError(f"{folder / MANIFEST} is missing or broken") from error
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in described.items():
        path = folder / f"{name}.bin"
        try:
            if sha256_of(path) != entry["sha256"]:
                raise BrokenCorpusError(f"{path} is not what was written")
        except OSError as error:
            raise BrokenCorpusError(f"{path} cannot be read ({error.strerror or error})") from error
        # An empty file cannot be mapped. A plain array over the map is cut faster than a `memmap`.
        kind, length = np.dtype(entry["type"]), entry["length"]
        mapped = np.memmap(path, dtype=kind, mode="r", shape=(length,)) if length else np.zeros(0, dtype=kind)
        arrays[name] = np.asarray(mapped)
    return EncodedSamples(arrays, sources), account


def _role_codes(sample: EncodedSample) -> list[int]:
    if not sample.roles:
        return [_NO_ROLE] * (len(sample.inputs) + 1)
    assert len(sample.roles) == len(sample.inputs), "one role for each input, or none"
    return [*(ROLES.index(role) for role in sample.roles), _NO_ROLE]
