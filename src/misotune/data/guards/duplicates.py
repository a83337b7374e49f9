"""Rows that repeat an earlier row: the same text, or nearly the same by MinHash.

MinHash and its index come from rensa. Beside datasketch it takes a quarter of the time for a signature, a tenth for
the index, and 40 % of the memory; and it compares the signatures of what its index proposes, so that no row is left
out for a chance meeting in a band.
"""

import hashlib
import pickle
from typing import Any, Literal

from misotune.data.guards.text import normalise, shingles_of, visible_turns
from misotune.data.records import Record
from misotune.errors import UsageError

How = Literal["exact", "near"]

EXACT = "duplicate of an earlier row"
NEAR = "near-duplicate of an earlier row"

_DIGEST_BYTES = 16
_SHINGLE_TOKENS = 5
# The standard error of the estimate at Jaccard 0.8 is 0.035.
_NUM_HASHES = 128
# Bands of 8 hashes: a pair whose estimate is above 0.8 is missed once in 200 times, and 16 are half the memory of 32.
_NUM_BANDS = 16
_SEED = 42


class Deduplication:
    """Leaves out rows whose text an earlier row has; the first one stays.

    The text is all that a user sees: the history with its roles, instruction and constraints (or the whole user
    turn, where that is given), and the output. The words of a template do not count.

    - exact: the turns are the same after `normalise`.
    - near: or the Jaccard similarity of the sets of 5-token shingles of the whole text, as MinHash estimates it,
      is at least the threshold.

    Args:
        how: `exact` or `near`.
        threshold: The least similarity of a near-duplicate, above 0 and at most 1.
    """

    def __init__(self, how: How = "exact", threshold: float = 0.8) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"the threshold of near-duplicates must be above 0 and at most 1, it is {threshold:g}")
        self.how: How = how
        self.threshold = threshold
        self._digests: set[bytes] = set()
        self._index = _minhash_index(threshold) if how == "near" else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies the settings alone: worker processes take fingerprints, the index stays in one place."""
        return Deduplication, (self.how, self.threshold)

    def fingerprint(self, record: Record) -> bytes:
        """Returns a digest of the record's text and, for near-duplicates, its MinHash signature."""
        digest = _digest(record)
        return digest if self.how == "exact" else digest + pickle.dumps(_signature(record), pickle.HIGHEST_PROTOCOL)

    def accept(self, record: Record, fingerprint: bytes) -> str | None:
        """Returns None for a new text, else the reason for the account.

        Args:
            record: The record.
            fingerprint: What `fingerprint` returned for it.
        """
        digest, signature = fingerprint[:_DIGEST_BYTES], fingerprint[_DIGEST_BYTES:]
        if digest in self._digests:
            return EXACT
        self._digests.add(digest)
        if self._index is not None and not self._index.add(str(len(self._digests)), pickle.loads(signature)):
            return NEAR
        return None


def _digest(record: Record) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for role, text in visible_turns(record):
        # No text holds these two characters after `normalise`, which takes them for white space.
        digest.update(f"{role}\x1f{normalise(text)}\x1e".encode())
    return digest.digest()


def _signature(record: Record) -> Any:
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    text = "\n".join(text for _, text in visible_turns(record))
    # `from_token_sets` gives the same, but hands each row to a pool of threads, which costs ten times as long.
    signature = RMinHash(num_perm=_NUM_HASHES, seed=_SEED)
    signature.update(shingles_of(text, _SHINGLE_TOKENS))
    return signature


def _minhash_index(threshold: float) -> Any:
    from rensa import RMinHashDeduplicator  # pyright: ignore[reportAttributeAccessIssue]

    return RMinHashDeduplicator(
        threshold=threshold, num_perm=_NUM_HASHES, use_lsh=True, num_bands=_NUM_BANDS, seed=_SEED
    )
