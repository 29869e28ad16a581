"""A BERT sentence encoder in NumPy whose layers can be split over several ranks.

The split is Megatron's. In each layer a rank owns some attention heads and some columns of the MLP,
so it reads the whole input and computes a *part of the sum* that is the output. Two all-reduces per
layer add the parts up. All else (embeddings, norms, residuals, pooling) is small, and every rank
does it for itself.

One sentence at a time, so there is no padding and no attention mask: the case in which latency
counts, because each all-reduce carries only tokens * hidden * 4 bytes (about 20 KiB).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[Any]  # float32 throughout
Weights = Mapping[str, FloatArray]

#: Adds the ranks' arrays up; every rank gets the sum. `comm.all_reduce` is one.
AllReduce = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder."""

    layers: int
    heads: int
    hidden: int
    intermediate: int
    norm_epsilon: float

    @classmethod
    def read(cls, path: Path) -> BertConfig:
        """The sizes in a Hugging Face `config.json`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            hidden=values["hidden_size"],
            intermediate=values["intermediate_size"],
            norm_epsilon=values["layer_norm_eps"],
        )


@dataclass(frozen=True)
class Linear:
    """y = x @ weight + bias, with a weight of shape (inputs, outputs)."""

    weight: FloatArray
    bias: FloatArray

    def __call__(self, x: FloatArray) -> FloatArray:
        return x @ self.weight + self.bias

    def reduced(self, part: FloatArray, all_reduce: AllReduce) -> FloatArray:
        """The same where each rank holds some of the inputs: add the products up, then the bias.

        The bias comes after the sum: added before it, it would count once per rank.
        """
        return all_reduce(part @ self.weight) + self.bias


@dataclass(frozen=True)
class Norm:
    """Layer normalisation over the last axis."""

    scale: FloatArray
    shift: FloatArray
    epsilon: float

    def __call__(self, x: FloatArray) -> FloatArray:
        centred: FloatArray = x - x.mean(axis=-1, keepdims=True)
        variance: FloatArray = np.square(centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + self.epsilon) * self.scale + self.shift


@dataclass(frozen=True)
class Layer:
    """One rank's share of one transformer layer."""

    query_key_value: Linear  # this rank's heads
    attention_output: Linear  # this rank's heads back to the hidden size: a part of the sum
    attention_norm: Norm
    mlp_up: Linear  # this rank's columns
    mlp_down: Linear  # this rank's columns back to the hidden size: a part of the sum
    mlp_norm: Norm


class Encoder:
    """One rank's share of the encoder; with size 1, the whole encoder."""

    def __init__(
        self, weights: Weights, config: BertConfig, *, rank: int = 0, size: int = 1
    ) -> None:
        """Cut out this rank's share.

        weights holds float32 arrays under their Hugging Face names. Raises ValueError when size
        does not divide the heads and the MLP columns.
        """
        if config.heads % size or config.intermediate % size:
            raise ValueError(
                f"{size} ranks cannot share {config.heads} heads and "
                f"{config.intermediate} MLP columns equally"
            )
        self.head_size = config.hidden // config.heads
        self.words = weights["embeddings.word_embeddings.weight"]
        self.positions = weights["embeddings.position_embeddings.weight"]
        self.segment = weights["embeddings.token_type_embeddings.weight"][0]
        self.norm = _norm(weights, "embeddings.LayerNorm", config.norm_epsilon)
        heads = _share(config.hidden, rank, size)
        columns = _share(config.intermediate, rank, size)
        self.layers = [
            _layer(weights, f"encoder.layer.{index}", heads, columns, config.norm_epsilon)
            for index in range(config.layers)
        ]

    def embed(self, token_ids: Sequence[int], all_reduce: AllReduce) -> FloatArray:
        """The embedding of one sentence: shape (hidden,), float32, length 1.

        Every rank calls this with the same tokens and gets the same bits.
        """
        ids = np.asarray(token_ids)
        x = self.norm(self.words[ids] + self.positions[: len(ids)] + self.segment)
        for layer in self.layers:
            context = self._attention(layer.query_key_value(x))
            x = layer.attention_norm(x + layer.attention_output.reduced(context, all_reduce))
            columns = gelu(layer.mlp_up(x))
            x = layer.mlp_norm(x + layer.mlp_down.reduced(columns, all_reduce))
        mean: FloatArray = x.mean(axis=0)
        return mean / math.sqrt(mean @ mean)

    def _attention(self, query_key_value: FloatArray) -> FloatArray:
        """Softmax attention of this rank's heads: (tokens, 3 * width) to (tokens, width)."""
        tokens = query_key_value.shape[0]
        split = query_key_value.reshape(tokens, 3, -1, self.head_size)
        query, key, value = split.transpose(1, 2, 0, 3)  # each (heads, tokens, head_size)
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(self.head_size)
        context: FloatArray = (softmax(scores) @ value).transpose(1, 0, 2)
        return context.reshape(tokens, -1)


def softmax(scores: FloatArray) -> FloatArray:
    """exp(scores) scaled to sum 1 over the last axis."""
    powers: FloatArray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: FloatArray = powers.sum(axis=-1, keepdims=True)
    return powers / total


def gelu(x: FloatArray) -> FloatArray:
    """x times the normal distribution function at x: BERT's activation, without the tanh shortcut.

    NumPy has no erf. This one is formula 7.1.26 of Abramowitz and Stegun, off by at most 1.5e-7.
    """
    magnitude = np.abs(x)
    z = magnitude * math.sqrt(0.5)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = -1.453152027 + t * 1.061405429
    series = 1.421413741 + t * series
    series = -0.284496736 + t * series
    erfc = t * (0.254829592 + t * series) * np.exp(-z * z)
    return np.maximum(x, 0.0) - 0.5 * magnitude * erfc


def _share(width: int, rank: int, size: int) -> slice:
    """The rank's equal share of width columns; heads lie side by side, so heads stay whole."""
    return slice(width * rank // size, width * (rank + 1) // size)


def _layer(weights: Weights, name: str, heads: slice, columns: slice, epsilon: float) -> Layer:
    """Cut one rank's share out of one layer: outputs of the first product, inputs of the second."""
    return Layer(
        query_key_value=_outputs(
            weights, [f"{name}.attention.self.{part}" for part in ("query", "key", "value")], heads
        ),
        attention_output=_inputs(weights, f"{name}.attention.output.dense", heads),
        attention_norm=_norm(weights, f"{name}.attention.output.LayerNorm", epsilon),
        mlp_up=_outputs(weights, [f"{name}.intermediate.dense"], columns),
        mlp_down=_inputs(weights, f"{name}.output.dense", columns),
        mlp_norm=_norm(weights, f"{name}.output.LayerNorm", epsilon),
    )


def _outputs(weights: Weights, names: Sequence[str], outputs: slice) -> Linear:
    """Some outputs of several products of the same input, joined into one product.

    The files store weights as (outputs, inputs), hence the transposes here and below.
    """
    weight = np.concatenate([weights[f"{name}.weight"][outputs] for name in names])
    bias = np.concatenate([weights[f"{name}.bias"][outputs] for name in names])
    return Linear(np.ascontiguousarray(weight.T), bias)


def _inputs(weights: Weights, name: str, inputs: slice) -> Linear:
    """A product that gets only some of its inputs: its result is one rank's part of a sum."""
    weight = weights[f"{name}.weight"][:, inputs]
    return Linear(np.ascontiguousarray(weight.T), weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, epsilon: float) -> Norm:
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)
