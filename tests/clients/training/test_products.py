import pytest
import torch
from torch import Tensor

from clients.training.engines.products import LARGE, gram, transposed_product
from tests.clients.training.toy_models import numbers


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rows", "left", "right"), [(3, 2, 4), (128, 96, 90), (300, 64, 55), (1, 2000, 1000)])
def test_a_transposed_product_is_exact_to_float32(rows: int, left: int, right: int) -> None:
    one, other = numbers(rows, left), numbers(rows, right, seed=2)
    assert error(transposed_product(one, other), one.double().t() @ other.double()) < 1e-6


@pytest.mark.parametrize(("units", "rows", "width"), [(3, 4, 5), (2, 128, 64), (3, 64, 300)])
def test_products_of_rows_are_exact_to_float32(units: int, rows: int, width: int) -> None:
    values = numbers(units, rows, width)
    assert error(gram(values), values.double() @ values.double().mT) < 1e-6


def test_both_libraries_are_reached_in_these_tests() -> None:
    assert 3 * 2 * 4 < LARGE <= min(128 * 96 * 90, 300 * 64 * 55, 128 * 128 * 64, 64 * 64 * 300)
    assert torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    values = numbers(128, 128).to(dtype)
    assert transposed_product(values, values).dtype == dtype
    assert gram(values.unsqueeze(0)).dtype == dtype
