"""What of torch's tensors is handed to a communicator, and what comes back into them."""

from __future__ import annotations

import torch

from jetstream.torch.tensors import Staging, gathered, joined


def test_what_lies_together_is_joined() -> None:
    base = torch.arange(6.0)
    flat = joined(base.split(2))
    assert flat is not None and flat.data_ptr() == base.data_ptr() and torch.equal(flat, base)
    assert joined(list(reversed(base.split(2)))) is None


def test_conjugated_and_negated_parts_are_read() -> None:
    """Their memory, one after another, is not what they say."""
    base = torch.complex(torch.arange(6.0), torch.arange(6.0) + 1)
    real = torch.arange(6.0)
    for plain, other in ((base, base.conj()), (real, torch._neg_view(real))):
        parts = [plain[:2], other[2:4], plain[4:]]
        assert torch.equal(gathered(parts), torch.cat([part.clone() for part in parts]))


def test_conjugated_parts_are_written() -> None:
    base = torch.zeros(6, dtype=torch.complex64)
    outputs = [base[:2], base.conj()[2:4], base[4:]]
    wanted = torch.complex(torch.arange(6.0), torch.ones(6))
    staging = Staging()
    staging.parts(outputs).copy_(wanted)
    staging.finish()
    assert torch.equal(torch.cat(outputs), wanted)


def test_copies_are_on_the_cpu() -> None:
    outputs = list(torch.zeros(6).split(2))
    with torch.device("meta"):  # where new tensors are, if nothing else is said
        flat = Staging().parts(outputs[::-1])
    assert flat.device.type == "cpu"
