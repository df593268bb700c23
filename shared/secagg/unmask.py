"""From shares to the streams that still lie on a sum (protocol 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import combinations, islice

from shared.crypto.keys import SEED_BITS
from shared.errors import RoundAbortedError
from shared.messages import Receipt, Reveal
from shared.secagg.receipts import pair_commitment, pair_stream_key, self_commitment, self_stream_key
from shared.secagg.shamir import combine, share_from_bytes
from shared.secagg.terms import RoundTerms

_MAX_COMBINATIONS = 1000  # choices of t answers that are tried when somebody reveals wrong shares


def streams_to_remove(
    terms: RoundTerms, receipts: Mapping[str, Receipt], reveals: Mapping[str, Reveal]
) -> tuple[list[bytes], list[bytes]]:
    """Return the keys of the streams to add to the sum and of those to subtract from it.

    Args:
        terms: the round.
        receipts: the survivors' receipts, whose commitments every reconstructed seed must match.
        reveals: at least t survivors' shares, each complete.

    Raises:
        RoundAbortedError: ``shares-inconsistent``.
    """
    sid = terms.sid()
    dropped = [name for name in terms.participants if name not in receipts]
    plus: list[bytes] = []
    minus: list[bytes] = []
    for name, receipt in receipts.items():
        self_shares = {who: reveal.self_shares[name] for who, reveal in reveals.items()}
        seed = _reconstruct(terms, self_shares, receipt.self_commitment, partial(self_commitment, sid, name))
        minus.append(self_stream_key(sid, name, seed))
        for other in dropped:
            pair_shares = {who: reveal.pair_shares[name][other] for who, reveal in reveals.items()}
            commitment = receipt.pair_commitments[other]
            seed = _reconstruct(terms, pair_shares, commitment, partial(pair_commitment, sid, name, other))
            # The survivor added the stream when it comes first in roster order and subtracted it otherwise.
            (minus if name < other else plus).append(pair_stream_key(sid, name, other, seed))
    return plus, minus


def _reconstruct(
    terms: RoundTerms, shares: Mapping[str, bytes], commitment: bytes, commit: Callable[[int], bytes]
) -> int:
    """Return the seed that t of the shares give, if it is the committed one."""
    for seed in _candidates(terms, shares):
        if seed < 1 << SEED_BITS and commit(seed) == commitment:
            return seed
    raise RoundAbortedError("shares-inconsistent", "The revealed shares do not give a seed that was committed to.")


def _candidates(terms: RoundTerms, shares: Mapping[str, bytes]) -> Iterator[int]:
    """Combine t shares at a time: normally the first choice is right, a wrong share spoils some of them."""
    points = [(terms.point(name), share_from_bytes(shares[name])) for name in sorted(shares)]
    return (combine(dict(choice)) for choice in islice(combinations(points, terms.threshold), _MAX_COMBINATIONS))
