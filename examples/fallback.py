"""What happens where Triton does not work: the next backend serves, with one warning that says why.

    python examples/fallback.py

Triton is hidden from import here, as if it were not installed. On a CUDA device the CUDA C++ kernels take
over. Without one the interpreters of both kernel sets stand in for them, and "auto" is told to try them.
"""

from __future__ import annotations

import sys
import warnings

import torch


def main() -> None:
    # None among the modules is how Python marks what is not to be found.
    sys.modules["triton"] = None  # pyright: ignore[reportArgumentType]
    import convgap
    from convgap import selection

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    selection.ORDER[device.type] = convgap.BACKENDS
    x, weight = torch.rand(2, 3, 5, 6, device=device), torch.rand(3, 4, 3, 3, device=device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            out = convgap.conv_transpose2d_multiply_gap(x, weight, multiplier=0.5, stride=2)
    for warning in caught:
        if "convgap" in str(warning.message):
            print(f"warned: {warning.message}")
    expected = 0.5 * torch.nn.functional.conv_transpose2d(x.double(), weight.double(), stride=2).mean((2, 3))
    print(f"right answer: {torch.allclose(out.flatten(1).double(), expected, rtol=1e-5)}")
    print(convgap.explain(convgap.conv_transpose2d_multiply_gap, x, weight, multiplier=0.5, stride=2))
    try:
        convgap.conv_transpose2d_multiply_gap(x, weight, backend="triton")
    except RuntimeError as error:
        print(f"by name: {error}")


if __name__ == "__main__":
    main()
