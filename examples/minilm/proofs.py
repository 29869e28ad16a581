"""What the example claims about its result, and how each claim is checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minilm.bert import FloatArray

#: The split sums in another order, so the last bits differ. Embeddings have length 1.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Proof:
    """One claim and whether it holds."""

    holds: bool
    claim: str

    def __str__(self) -> str:
        return f"{'PASS' if self.holds else 'FAIL'}  {self.claim}"


def prove(differences: FloatArray, everyone: FloatArray, *, in_pairs: bool) -> list[Proof]:
    """Judge the ranks' results.

    differences: each rank's largest distance from the whole model, shape (ranks,).
    everyone: each rank's embeddings, shape (ranks, sentences, hidden).
    in_pairs: sentences 0 and 1, 2 and 3, ... are on the same subject.
    """
    difference = differences.max()
    first = everyone[0]
    proofs = [
        Proof(
            bool(difference <= TOLERANCE),
            f"split equals whole: largest difference {difference:.1e}, allowed {TOLERANCE:.0e}",
        ),
        Proof(
            all(other.tobytes() == first.tobytes() for other in everyone),
            f"same bits on every rank: {first.nbytes} bytes from each of {len(everyone)}",
        ),
    ]
    if in_pairs:
        similarity = first @ first.T
        np.fill_diagonal(similarity, -1.0)
        partners = np.arange(len(first)) ^ 1
        proofs.append(
            Proof(
                bool((similarity.argmax(axis=1) == partners).all()),
                "meaning: closest to each sentence is the other one on its subject",
            )
        )
    return proofs
