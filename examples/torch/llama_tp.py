"""A Llama of Hugging Face transformers, split over the ranks by tp_plan="auto".

    torchrun --nproc-per-node 2 examples/torch/llama_tp.py
    torchrun --nproc-per-node 2 examples/torch/llama_tp.py --backend gloo
    jetstream run -n 4 examples/torch/llama_tp.py --compare --dtype bfloat16

The weights are random, made on rank 0 from a configuration and saved to a temporary folder: nothing
is downloaded. The ranks load their parts, generate tokens, and prove that the split model computes
what the whole one does, with the same bits on every rank. Rank 0 prints tokens per second, the
share of communication and the times of all-reduces. With --compare, gloo and jetstream take turns.

Exit status: 1 when a proof fails, 2 when a package is missing or the model cannot be split so.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # said before transformers is imported

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import Ranks, backends_of, give_up, join, new_parser, percentiles
from stopwatch import Stopwatch

try:
    import torch
    import torch.distributed as dist
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.distributed import DistributedConfig
except ImportError as error:
    give_up(f"{error}: pip install -r examples/requirements-llama.txt")

#: Largest difference from the whole model's logits, relative to the largest logit. The split adds
#: up in another order; in bfloat16 (8 bits of mantissa) it also rounds the parts of every sum.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

VOCABULARY = 8192


@dataclass
class Whole:
    """What the whole model computes on one rank."""

    logits: torch.Tensor  # of every token of the prompt, shape (1, prompt, VOCABULARY)
    tokens: torch.Tensor  # prompt and continuation, shape (1, prompt + tokens)
    seconds: float  # that the continuation took


@dataclass
class Measured:
    """What the rounds of one backend have shown."""

    seconds: list[float] = field(default_factory=list)  # per continuation
    times_us: list[torch.Tensor] = field(default_factory=list)  # (ranks, calls) of all-reduces
    shares: list[float] = field(default_factory=list)  # of a continuation in collectives
    difference: float = 0.0  # from the whole model's logits, relative to the largest
    is_same_everywhere: bool = True  # logits and tokens, bit for bit
    tokens: torch.Tensor | None = None


def main() -> int:
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ranks = join()
    config = configuration(arguments)
    heads = config.num_key_value_heads
    if heads % ranks.size:
        give_up(f"{heads} heads of keys and values do not share out equally to {ranks.size} ranks")
    holds = True
    with tempfile.TemporaryDirectory() as own_folder:
        ranks.store.set(f"folder{ranks.rank}", own_folder)
        folder = Path(ranks.store.get("folder0").decode())
        for name in arguments.dtype:
            holds &= run(ranks, config, getattr(torch, name), folder / name, arguments)
        ranks.wait_for_all("end")  # before rank 0 removes the folder
    return 0 if holds else 1


def run(
    ranks: Ranks, config: Any, dtype: torch.dtype, folder: Path, arguments: argparse.Namespace
) -> bool:
    """One dtype: the whole model, then rounds of the split one. Returns whether all proofs hold."""
    prompt = torch.randint(VOCABULARY, (1, arguments.prompt), generator=torch.manual_seed(1))
    if ranks.rank == 0:
        torch.manual_seed(2)
        model = LlamaForCausalLM(config).to(dtype)
        model.save_pretrained(folder)
        torch.save(compute_whole(model, prompt, arguments.tokens), folder / "whole.pt")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"\n{parameters / 1e6:.0f} M parameters in {dtype}, {ranks.size} ranks", flush=True)
        del model
    ranks.wait_for_all(f"whole model in {dtype}")  # the others leave it both cores meanwhile
    whole = torch.load(folder / "whole.pt", weights_only=False)

    measured: dict[str, Measured] = defaultdict(Measured)
    for number in range(arguments.rounds):
        for backend in backends_of(arguments):
            ranks.say(f"  round {number + 1} of {arguments.rounds}, {backend}")
            with ranks.process_group(backend):
                measure(measured[backend], folder, prompt, whole)
    if ranks.rank == 0:
        report(measured, whole, arguments)
    return prove(ranks, measured, dtype)


def configuration(arguments: argparse.Namespace) -> LlamaConfig:
    """A small Llama, with a head for each 64 numbers and half as many for keys and values."""
    heads = arguments.hidden // 64
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def compute_whole(model: Any, prompt: torch.Tensor, count: int) -> Whole:
    """On one rank, without communication."""
    with torch.no_grad():
        logits = model(prompt).logits
    generate(model, prompt, 4)  # warm up
    start = time.perf_counter()
    tokens = generate(model, prompt, count)
    return Whole(logits, tokens, time.perf_counter() - start)


def generate(model: Any, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """The prompt and the `count` most likely tokens after it."""
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False
    )


def measure(measured: Measured, folder: Path, prompt: torch.Tensor, whole: Whole) -> None:
    """One round of one backend, which is the default process group's."""
    model = LlamaForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_plan="auto"), dtype="auto"
    )
    with torch.no_grad():
        logits = model(prompt).logits
    generate(model, prompt, 4)  # warm up
    dist.barrier()
    with Stopwatch() as watch:
        start = time.perf_counter()
        tokens = generate(model, prompt, whole.tokens.shape[1] - prompt.shape[1])
        seconds = time.perf_counter() - start

    measured.seconds.append(seconds)
    measured.shares.append(watch.total_us / 1e6 / seconds)
    measured.times_us.append(gather(torch.tensor(watch.times_us["all_reduce"])))
    furthest = (logits - whole.logits).abs().max() / whole.logits.abs().max()
    measured.difference = max(measured.difference, gather(furthest.float()).max().item())
    measured.is_same_everywhere &= is_same_on_all(logits) and is_same_on_all(tokens)
    measured.tokens = tokens


def gather(x: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, shape (ranks, *x.shape)."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.stack(parts)


def is_same_on_all(x: torch.Tensor) -> bool:
    """Whether all ranks hold the same bits."""
    everyone = gather(x.contiguous().view(torch.uint8))
    return bool((everyone == everyone[0]).all())


def report(measured: dict[str, Measured], whole: Whole, arguments: argparse.Namespace) -> None:
    """Times of rank 0, medians of the rounds."""
    print(f"one rank, whole model: {arguments.tokens / whole.seconds:.1f} tokens/s")
    for backend, seen in measured.items():
        speed = arguments.tokens / statistics.median(seen.seconds)
        times_us = torch.cat(seen.times_us, dim=1)
        same = int((seen.tokens == whole.tokens).sum()) - arguments.prompt
        print(
            f"{backend}: {speed:.1f} tokens/s, {statistics.median(seen.shares):.1%} in collectives"
        )
        print(f"    all-reduce       {percentiles(times_us[0])}")
        print(f"    by the last rank {percentiles(times_us.amin(dim=0))}")
        print(f"    {same} of {arguments.tokens} tokens are those of the whole model")
    if len(measured) > 1:
        gloo, ours = (measured[name] for name in ("gloo", "jetstream"))
        faster = statistics.median(
            theirs / mine for theirs, mine in zip(gloo.seconds, ours.seconds, strict=True)
        )
        ratio, ratio_of_last = (
            (of_ranks(torch.cat(ours.times_us, 1)) / of_ranks(torch.cat(gloo.times_us, 1))).item()
            for of_ranks in (lambda x: x[0].median(), lambda x: x.amin(0).median())
        )
        print(f"jetstream generates {faster:.2f} times as fast as gloo; its all-reduce takes")
        print(f"    {ratio:.3f} of the time (p50), {ratio_of_last:.3f} by the last rank")


def prove(ranks: Ranks, measured: dict[str, Measured], dtype: torch.dtype) -> bool:
    """Say on rank 0 what holds; the same answer on all ranks."""
    holds = True
    for backend, seen in measured.items():
        claims = (
            (
                seen.difference <= TOLERANCE[dtype],
                f"{backend}: logits equal the whole model's: they differ by {seen.difference:.1e} "
                f"of the largest, allowed {TOLERANCE[dtype]:.0e}",
            ),
            (seen.is_same_everywhere, f"{backend}: the same bits on all {ranks.size} ranks"),
        )
        for claim_holds, claim in claims:
            ranks.say("PASS " if claim_holds else "FAIL ", claim)
            holds &= claim_holds
    return holds


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=("float32", "bfloat16"),
        help="of weights and activations (both, one after the other)",
    )
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="layers (8)")
    parser.add_argument(
        "--hidden", type=int, default=512, metavar="N", help="hidden size, a multiple of 128 (512)"
    )
    parser.add_argument("--prompt", type=int, default=16, metavar="N", help="tokens before (16)")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens to make (32)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="continuations of each backend (3)"
    )
    arguments = parser.parse_args()
    for name in ("layers", "hidden", "prompt", "tokens", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.hidden % 128:
        parser.error("--hidden must be a multiple of 128")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
