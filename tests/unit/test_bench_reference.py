"""The reference of bench: exact folds, and inputs in which an error cannot hide."""

from __future__ import annotations

import functools
import operator
from fractions import Fraction

import numpy as np
import pytest

from jetstream.bench.reference import PERIOD, SHIFTS, Part, count_wrong, fold, source, table
from jetstream.dtypes import DType

DTYPES = [dtype.numpy for dtype in DType]
FLOATS = [dtype for dtype in DTYPES if dtype.kind not in "iub"]
OPS = ("sum", "prod", "min", "max", "avg", "band", "bor", "bxor")
CASES = [(d.numpy, op) for d in DType for op in OPS if op in {r.label for r in d.redops}]


@pytest.mark.parametrize(("dtype", "redop"), CASES, ids=str)
def test_fold_is_rank_by_rank_with_one_rounding(dtype: np.dtype, redop: str) -> None:
    """Compares some elements with exact or scalar arithmetic."""
    world = 3
    folded = fold(world, dtype, redop)
    tables = [table(rank, dtype, redop) for rank in range(world)]
    for index in (0, 1, PERIOD // 2, PERIOD - 1):
        elements = [values[index] for values in tables]
        assert folded[index] == _by_hand(elements, dtype, redop)


def _by_hand(elements: list, dtype: np.dtype, redop: str) -> object:
    if dtype.kind == "b":
        return {"sum": any, "max": any, "bor": any, "bxor": lambda e: sum(e) % 2 == 1}.get(
            redop, all
        )(elements)
    if dtype.kind == "c":
        return _complex_by_hand(elements, dtype, redop)
    if redop in ("band", "bor", "bxor"):
        combine = {"band": operator.and_, "bor": operator.or_, "bxor": operator.xor}[redop]
        return functools.reduce(combine, elements)
    if redop in ("min", "max"):
        return min(elements) if redop == "min" else max(elements)
    if dtype.kind in "iu":
        values = [int(element) for element in elements]
        total = values[0] * values[1] * values[2] if redop == "prod" else sum(values)
        if redop == "avg":
            total = int(Fraction(total, 3))  # towards zero
        bits = 8 * dtype.itemsize
        total %= 1 << bits
        if dtype.kind == "i" and total >= 1 << (bits - 1):
            total -= 1 << bits
        return total
    wide = np.float32 if dtype.itemsize <= 2 else dtype.type
    total = wide(elements[0])
    for element in elements[1:]:
        total = wide(total * wide(element)) if redop == "prod" else wide(total + wide(element))
    return dtype.type(total / wide(3) if redop == "avg" else total)


def _complex_by_hand(elements: list, dtype: np.dtype, redop: str) -> object:
    part = type(elements[0].real)
    real, imag = elements[0].real, elements[0].imag
    for element in elements[1:]:
        if redop == "prod":
            product = part(real * element.real) - part(imag * element.imag)
            imag = part(part(real * element.imag) + part(imag * element.real))
            real = part(product)
        else:
            real, imag = part(real + element.real), part(imag + element.imag)
    divisor = part(3 if redop == "avg" else 1)
    return dtype.type(complex(part(real / divisor), part(imag / divisor)))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.kind != "b"], ids=str)
def test_inputs_differ_between_ranks_and_places(dtype: np.dtype) -> None:
    first, second = table(0, dtype, "sum"), table(1, dtype, "sum")
    most = PERIOD // (20 if dtype.itemsize == 1 else 50)  # float8 has few values
    assert np.count_nonzero(first == second) < most
    assert np.count_nonzero(first[1:] == first[:-1]) < most


@pytest.mark.parametrize(("dtype", "redop"), [c for c in CASES if c[0] in FLOATS], ids=str)
def test_float_references_are_finite(dtype: np.dtype, redop: str) -> None:
    assert np.isfinite(fold(8, dtype, redop).astype(np.complex128)).all()


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        table(0, np.dtype("float32"), "sum")[0] = 1


@pytest.mark.parametrize("count", [1, 7, PERIOD - 1, PERIOD, PERIOD + 1, 3 * PERIOD + 5])
@pytest.mark.parametrize("shift", [0, 1, SHIFTS - 1])
def test_count_wrong_sees_every_single_element(count: int, shift: int) -> None:
    dtype = np.dtype(("float32", "complex128", "uint16")[shift % 3])
    values = source(1, dtype, "none", count)[shift : shift + count].copy()
    part = (Part(0, count, table(1, dtype, "none"), 0),)
    assert count_wrong(values, part, shift) == 0
    for index in {0, count // 2, count - 1}:
        values.view(np.uint8)[index * dtype.itemsize] ^= 1  # the last bit
    assert count_wrong(values, part, shift) == len({0, count // 2, count - 1})


def test_count_wrong_sees_another_iterations_data() -> None:
    dtype = DType.BFLOAT16.numpy
    count = 1000
    values = source(0, dtype, "none", count)
    part = (Part(0, count, table(0, dtype, "none"), 0),)
    for shift in range(1, SHIFTS):
        assert count_wrong(values[shift : shift + count], part, 0) > count * 0.9


def test_count_wrong_looks_at_its_part_only() -> None:
    dtype = np.dtype("uint8")
    values = np.concatenate([source(0, dtype, "none", 100)[:100], np.zeros(50, np.uint8)])
    assert count_wrong(values, (Part(0, 100, table(0, dtype, "none"), 0),), 0) == 0
    assert count_wrong(values, (Part(100, 50, table(0, dtype, "none"), 100),), 0) > 40
