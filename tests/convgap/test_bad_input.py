"""Every argument, wrong in every way: the error names it, what was expected and what came, before any launch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import convgap
from convgap import functions

X = torch.ones(2, 4, 5, 6)
WEIGHT = torch.ones(4, 3, 3, 3)
BIAS = torch.ones(3)
with warnings.catch_warnings(action="ignore"):  # torch says that nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([torch.ones(4, 5, 6), torch.ones(4, 2, 2)])
    JAGGED = torch.nested.nested_tensor([torch.ones(3, 6), torch.ones(2, 6)], layout=torch.jagged)


class Launched:
    """Stands for everything that computes."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was reached in spite of bad input")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "dispatch", Launched())
    monkeypatch.setattr(functions, "F", Launched())


def test_the_spy_sees_a_launch() -> None:
    with pytest.raises(AssertionError, match="multiply_gap was reached"):
        convgap.multiply_gap(X, 1.0)
    with pytest.raises(AssertionError, match="chain was reached"):
        convgap.conv_transpose2d_multiply_gap(X, WEIGHT, BIAS)
    with pytest.raises(AssertionError, match="conv_transpose2d was reached"):
        convgap.conv_transpose2d_multiply_gap(X, WEIGHT, BIAS, strategy="tail")


PLANES: list[tuple[Any, type[Exception], str]] = [
    ([[1.0]], TypeError, r"expected a torch.Tensor, got list"),
    (X.long(), TypeError, r"expected float32, float16, bfloat16 or float64, got torch.int64"),
    (X.bool(), TypeError, r"expected float32, .*, got torch.bool"),
    (X.to(torch.complex64), TypeError, r"expected float32, .*, got torch.complex64"),
    (X.to_sparse(), TypeError, r"expected a dense tensor, got layout torch.sparse_coo"),
    (NESTED, TypeError, r"expected a dense tensor, got a nested one"),
    (JAGGED, TypeError, r"expected a dense tensor, got a nested one"),
    (torch.ones(2, 3), ValueError, r"expected \[N, C, H, W\] or \[C, H, W\], got \(2, 3\)"),
    (torch.ones(1, 2, 3, 4, 5), ValueError, r"expected \[N, C, H, W\] or .*, got \(1, 2, 3, 4, 5\)"),
    (torch.ones(2, 0, 3, 4), ValueError, r"at least one channel, row and column, got \(2, 0, 3, 4\)"),
    (torch.ones(2, 4, 0, 4), ValueError, r"at least one channel, row and column, got \(2, 4, 0, 4\)"),
    (torch.ones(2, 4, 3, 0), ValueError, r"at least one channel, row and column, got \(2, 4, 3, 0\)"),
]


def ident(value: object) -> str | None:
    """Readable test names."""
    if isinstance(value, torch.Tensor) and not value.is_nested:
        return f"{value.dtype}{list(value.shape)}".removeprefix("torch.")
    return None


@pytest.mark.parametrize(("y", "error", "message"), PLANES, ids=ident)
def test_y(y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^y: .*{message}"):
        convgap.multiply_gap(y, 1.0)


@pytest.mark.parametrize(("x", "error", "message"), PLANES, ids=ident)
def test_x(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^x: .*{message}"):
        convgap.conv_transpose2d_multiply_gap(x, WEIGHT)


MULTIPLIERS: list[Any] = [
    (True, TypeError, r"expected a number or a torch.Tensor, got bool"),
    ("2", TypeError, r"expected a number or a torch.Tensor, got str"),
    (None, TypeError, r"expected a number or a torch.Tensor, got NoneType"),
    (2j, TypeError, r"expected a number or a torch.Tensor, got complex"),
    (torch.ones(3, 1, 1).int(), TypeError, r"expected a floating-point tensor, got torch.int32"),
    (torch.ones(3, 1, 1).to(torch.complex64), TypeError, r"floating-point tensor, got torch.complex64"),
    (np.bool_(True), TypeError, r"expected a number or a torch.Tensor, got bool"),
    pytest.param(10**400, ValueError, r"expected a number that a float can hold", id="huge"),
    (NESTED, TypeError, r"expected a dense tensor, got a nested one"),
    (JAGGED, TypeError, r"expected a dense tensor, got a nested one"),
    (torch.ones(3, 1, 1).to_sparse(), TypeError, r"expected a dense tensor, got layout torch.sparse_coo"),
    (torch.ones(3, 1, 1, device="meta"), ValueError, r"expected x's device cpu, got meta"),
    (torch.ones(2, 1, 1), ValueError, r"the output's \(2, 3, 1, 1\), got \(2, 1, 1\)"),
    (torch.ones(3), ValueError, r"the output's \(2, 3, 1, 1\), got \(3,\)"),
    (torch.ones(1, 1, 1, 1, 1), ValueError, r"the output's \(2, 3, 1, 1\), got \(1, 1, 1, 1, 1\)"),
    (torch.ones(3, 2, 1), ValueError, r"the output's \(2, 3, 1, 1\), got \(3, 2, 1\)"),
    (torch.ones(0, 3, 1, 1), ValueError, r"the output's \(2, 3, 1, 1\), got \(0, 3, 1, 1\)"),
]


@pytest.mark.parametrize(("multiplier", "error", "message"), MULTIPLIERS, ids=ident)
def test_multiplier(multiplier: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^multiplier: .*{message}"):
        convgap.multiply_gap(torch.ones(2, 3, 4, 5), multiplier)
    with pytest.raises(error, match=rf"^multiplier: .*{message}"):
        convgap.conv_transpose2d_multiply_gap(X, WEIGHT, multiplier=multiplier)


def test_multiplier_of_an_unbatched_call() -> None:
    with pytest.raises(ValueError, match=r"^multiplier: .*the output's \(3, 1, 1\), got \(1, 3, 1, 1\)"):
        convgap.multiply_gap(torch.ones(3, 4, 5), torch.ones(1, 3, 1, 1))


CHAIN: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": None}, TypeError, r"weight: expected a torch.Tensor, got NoneType"),
    ({"weight": NESTED}, TypeError, r"weight: expected a dense tensor, got a nested one"),
    ({"bias": JAGGED}, TypeError, r"bias: expected a dense tensor, got a nested one"),
    ({"weight": WEIGHT.half()}, TypeError, r"weight: expected x's dtype torch.float32, got torch.float16"),
    ({"weight": WEIGHT.to("meta")}, ValueError, r"weight: expected x's device cpu, got meta"),
    ({"x": X.to("meta")}, ValueError, r"weight: expected x's device meta, got cpu"),
    ({"weight": WEIGHT.to_sparse()}, TypeError, r"weight: expected a dense tensor, got layout torch.sparse"),
    (
        {"weight": WEIGHT[0]},
        ValueError,
        r"weight: expected \[Cin, Cout / groups, KH, KW\].*, got \(3, 3, 3\)",
    ),
    ({"weight": WEIGHT[:, :0]}, ValueError, r"weight: expected .* without zeros, got \(4, 0, 3, 3\)"),
    ({"weight": WEIGHT[:, :, :0]}, ValueError, r"weight: expected .* without zeros, got \(4, 3, 0, 3\)"),
    ({"weight": WEIGHT[:3]}, ValueError, r"weight: expected 4 input channels \(x's\), got 3"),
    ({"bias": 1.0}, TypeError, r"bias: expected a torch.Tensor, got float"),
    ({"bias": BIAS.double()}, TypeError, r"bias: expected x's dtype torch.float32, got torch.float64"),
    ({"bias": BIAS.to("meta")}, ValueError, r"bias: expected x's device cpu, got meta"),
    ({"bias": BIAS.to_sparse()}, TypeError, r"bias: expected a dense tensor, got layout torch.sparse_coo"),
    ({"bias": torch.ones(4)}, ValueError, r"bias: expected \[3\], got \(4,\)"),
    ({"bias": torch.ones(1, 3)}, ValueError, r"bias: expected \[3\], got \(1, 3\)"),
    ({"bias": BIAS, "groups": 2}, ValueError, r"bias: expected \[6\], got \(3,\)"),
    ({"stride": 0}, ValueError, r"stride: expected at least 1, got 0"),
    ({"stride": 1.5}, TypeError, r"stride: expected an int, got float"),
    ({"stride": True}, TypeError, r"stride: expected an int, got bool"),
    ({"stride": (1, -2)}, ValueError, r"stride: expected at least 1, got -2"),
    ({"stride": (1, 2, 3)}, ValueError, r"stride: expected an int or two, got 3 of them"),
    ({"stride": "2"}, TypeError, r"stride: expected an int, got str"),
    ({"padding": -1}, ValueError, r"padding: expected at least 0, got -1"),
    ({"padding": ()}, ValueError, r"padding: expected an int or two, got 0 of them"),
    ({"padding": np.float64(1)}, TypeError, r"padding: expected an int, got float64"),
    ({"padding": np.array([1, 1])}, TypeError, r"padding: expected an int, got ndarray"),
    ({"stride": 2**63}, ValueError, r"stride: expected a number of 64 bits, got 9223372036854775808"),
    ({"stride": torch.tensor(True)}, TypeError, r"stride: expected an int, got bool"),
    ({"padding": "same"}, TypeError, r"padding: expected an int, got str"),
    ({"padding": (4, 0)}, ValueError, r"padding: .* height of at least 1, these sizes give -1"),
    ({"padding": (0, 4)}, ValueError, r"padding: .* width of at least 1, these sizes give 0"),
    ({"output_padding": -1}, ValueError, r"output_padding: expected at least 0, got -1"),
    ({"output_padding": None}, TypeError, r"output_padding: expected an int, got NoneType"),
    ({"output_padding": 1}, ValueError, r"output_padding: expected less than .*, 1 along the height, got 1"),
    (
        {"output_padding": (1, 3), "stride": 2, "dilation": (1, 3)},
        ValueError,
        r"output_padding: expected less than stride or dilation, 3 along the width, got 3",
    ),
    ({"dilation": 0}, ValueError, r"dilation: expected at least 1, got 0"),
    ({"dilation": (1.0, 1)}, TypeError, r"dilation: expected an int, got float"),
    ({"groups": 0}, ValueError, r"groups: expected at least 1, got 0"),
    ({"groups": 3}, ValueError, r"groups: expected a divisor of x's 4 channels, got 3"),
    ({"groups": (1, 1)}, TypeError, r"groups: expected an int, got tuple"),
    ({"strategy": "fast"}, ValueError, r"strategy: expected one of \('collapsed', 'tail'\), got 'fast'"),
    ({"strategy": None}, ValueError, r"strategy: expected one of .*, got None"),
    ({"backend": "cuda"}, ValueError, r"backend: expected one of \('auto', 'triton', .*\), got 'cuda'"),
    ({"backend": None}, TypeError, r"backend: expected a string, got NoneType"),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"), CHAIN, ids=[f"{i}-{'-'.join(row[0])}" for i, row in enumerate(CHAIN)]
)
def test_chain(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        convgap.conv_transpose2d_multiply_gap(**{"x": X, "weight": WEIGHT, **changes})


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("Triton", ValueError, r"backend: expected one of \('auto', .*\), got 'Triton'"),
        (0, TypeError, r"backend: expected a string, got int"),
    ],
)
def test_backend_of_the_tail(backend: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        convgap.multiply_gap(X, 1.0, backend=backend)


@pytest.mark.parametrize("option", ["strategy", "backend"])
def test_module(option: str) -> None:
    # What nn.ConvTranspose2d does not check is known to be wrong before the first call.
    options: dict[str, Any] = {option: "fast"}
    with pytest.raises(ValueError, match=rf"^{option}: expected one of .*, got 'fast'"):
        convgap.ConvTranspose2dMultiplyGAP(3, 4, 3, **options)


@pytest.mark.parametrize("option", ["kernel_size", "stride", "padding", "output_padding", "dilation"])
def test_numbers_of_the_module(option: str) -> None:
    options: dict[str, Any] = {"kernel_size": 3, option: (2.0, 2.0)}
    with pytest.raises(TypeError, match=rf"^{option}: expected an int, got float"):
        convgap.ConvTranspose2dMultiplyGAP(3, 4, **options)


PAIRS = ("stride", "padding", "output_padding", "dilation")


@pytest.mark.parametrize("option", PAIRS)
@pytest.mark.parametrize("wrong", [2.0, np.float32(2), True, np.bool_(True), 2.5])
@pytest.mark.parametrize("inside", [False, True])
def test_what_was_called_before_allows_nothing(
    option: str, wrong: Any, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2.0, True and (2.0, 2.0) are equal to, and hash like, what is right.
    monkeypatch.undo()
    right = int(wrong)
    numbers: dict[str, Any] = {
        "stride": 3,
        "padding": 1,
        "output_padding": 0,
        "dilation": 2,
        "backend": "torch",
    }

    def with_option(value: Any) -> dict[str, Any]:
        return numbers | {option: value}

    convgap.conv_transpose2d_multiply_gap(X, WEIGHT, **with_option((right, right) if inside else right))
    for value in ((wrong, wrong), (right, wrong), (wrong,)) if inside else (wrong,):
        with pytest.raises(TypeError, match=rf"^{option}: expected an int, got (float|bool)"):
            convgap.conv_transpose2d_multiply_gap(X, WEIGHT, **with_option(value))


@pytest.mark.parametrize("wrong", [1.0, True, np.bool_(True)])
def test_groups_called_before(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    convgap.conv_transpose2d_multiply_gap(X, WEIGHT, groups=1, backend="torch")
    with pytest.raises(TypeError, match=r"^groups: expected an int, got (float|bool)"):
        convgap.conv_transpose2d_multiply_gap(X, WEIGHT, groups=wrong, backend="torch")


INTEGERS: list[Any] = [
    np.int64(2), np.uint8(2), (np.int32(2), 2), [np.int64(2)], (2,), [2], [2, 2], torch.tensor(2), torch.Size((2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("two", INTEGERS, ids=repr)
def test_integers_as_torch_takes_them(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight = torch.rand(2, 4, 5, 6), torch.rand(4, 3, 3, 3)
    for option in PAIRS:
        numbers: dict[str, Any] = {"stride": 3, "padding": 0, "output_padding": 0, "dilation": 1, option: two}
        plain: dict[str, Any] = numbers | {option: 2}
        expected = convgap.conv_transpose2d_multiply_gap(x, weight, backend="torch", **plain)
        got = convgap.conv_transpose2d_multiply_gap(x, weight, backend="torch", **numbers)
        assert torch.equal(got, expected)
        torch.testing.assert_close(
            got, torch.conv_transpose2d(x, weight, **numbers).mean((2, 3), keepdim=True), rtol=1e-5, atol=1e-6
        )
        if not isinstance(two, torch.Tensor):  # nn.ConvTranspose2d's own constructor does not take one
            module = convgap.ConvTranspose2dMultiplyGAP(4, 3, 3, bias=False, backend="torch", **numbers)
            module.conv_transpose.weight = torch.nn.Parameter(weight, requires_grad=False)
            assert torch.equal(module(x), expected)
    got = convgap.conv_transpose2d_multiply_gap(x, weight, groups=np.int64(2), backend="torch")
    assert torch.equal(got, convgap.conv_transpose2d_multiply_gap(x, weight, groups=2, backend="torch"))


def test_right_input_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The edge of each rule above, on the allowed side.
    monkeypatch.undo()
    out = convgap.conv_transpose2d_multiply_gap(
        X, torch.ones(4, 3, 3, 3), torch.ones(6), multiplier=torch.ones(6, 1, 1), stride=[1, 2],  # pyright: ignore
        padding=(3, 5), output_padding=(2, 1), groups=2, dilation=(3, 1), backend="torch",
    )  # fmt: skip
    assert out.shape == (2, 6, 1, 1)


@pytest.mark.parametrize(
    ("device", "error", "said"),
    [
        ("nope", ValueError, "device: expected the name of a device of torch's, got 'nope'"),
        (X, TypeError, "device: expected a torch.device or its name, got Tensor"),
    ],
)
def test_status_of_no_device(device: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        convgap.status(device)
