"""Random valid and invalid calls on every backend: harness/numerics/properties.py says what is asked of them.

`bench.py fuzz` is the same with as many examples as there is time for.
"""

import argparse
import contextlib
import shlex
from typing import Any

import pytest
import torch

import convgap
from harness.cases.case import Case
from harness.cases.spelling import parse
from harness.numerics.campaign import Campaign, check, draw, search
from harness.numerics.example import Example, Miss, templates
from harness.numerics.properties import PROPERTIES
from harness.options import add_case_options, chosen_cases
from reference.problem import Chain, Tail
from tests.usable import require
from torch_impl import backward, forward
from torch_impl.folding import live

pytest.importorskip("hypothesis", reason="hypothesis draws the examples")

# (examples, templates). torch is quick; Triton's interpreter takes seconds for some examples, and each template of the
# CUDA kernels is some seconds of the host's C++ compiler. The short run is for every day.
SHORT = {"torch": (400, 40), "cupy": (60, 8), "triton": (8, 4)}
LONG = {"torch": (2000, 100), "cupy": (200, 16), "triton": (60, 16)}


@pytest.mark.parametrize("backend", convgap.BACKENDS)
@pytest.mark.parametrize("lengths", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def test_holds_for_random_calls(backend: str, lengths: dict[str, tuple[int, int]], device: torch.device) -> None:
    require(backend, device)
    examples, pool = lengths[backend]
    found = search(backend, device.type, examples=examples, seed=6, pool_size=pool)
    assert not found.miss, found.miss
    assert found.ran.total() == examples


def force(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Plain torch in one form: left to itself it takes torch's own convolution for most of what is drawn."""

    def forced(problem: Chain, device: torch.device) -> tuple[str, str]:
        return (form if live(problem, 0) and live(problem, 1) else "folded"), "told"

    monkeypatch.setattr(forward, "form", forced)
    for module in (forward, backward):
        monkeypatch.setattr(module, "form_of_product", forced)


@pytest.mark.parametrize("form", ["folded", "taps"])
def test_holds_for_random_calls_in_every_form_of_plain_torch(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, form)
    found = search("torch", "cpu", examples=400, seed=7, pool_size=40)
    assert not found.miss, found.miss


def test_a_fold_that_hides_what_is_not_finite_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "folded")
    monkeypatch.setattr(forward, "isfinite", lambda total: True)
    pool, missed = templates(3, 40), 0
    for template in range(len(pool)):
        with contextlib.suppress(Miss):
            check(draw("torch", "cpu", pool, "folds", template, template))
            continue
        missed += 1
    assert missed > 5


# Once a miss: on a GPU plain torch splits a sum by its address and by how many there are, on a CPU it convolves by
# strides.
SEEN = (
    (
        "unbatched",
        "chain:2,2,6,3,5,k1x5,s2x1,p2x1,g2,nobias",
        "float64",
        "expanded",
        "cancelling",
        None,
        63691,
    ),
    (
        "unbatched",
        "chain:2,9,9,7,6,k5x3,s3x4,p0x4,op0x2,g3",
        "float64",
        "channels_last",
        "normal",
        None,
        64094,
    ),
    ("samples permuted", "tail:2,1,35,94", "float32", "offset", "normal", 0.5, 43236),
    ("samples permuted", "tail:2,5,77,7", "float32", "offset", "uniform", 0.1, 33936),
)


@pytest.mark.parametrize("backend", convgap.BACKENDS)
@pytest.mark.parametrize("seen", SEEN, ids=lambda seen: f"{seen[0]}-{seen[1]}")
def test_holds_where_it_once_did_not(backend: str, seen: tuple[Any, ...], device: torch.device) -> None:
    require(backend, device)
    prop, shape, dtype, layout, values, multiplier, seed = seen
    case = Case(
        f"shape/{shape}",
        parse(shape),
        "",
        dtype=dtype,
        layout=layout,
        values=values,
        multiplier=multiplier,
        seed=seed,
    )
    assert check(Example(backend, device.type, prop, case, seed))


def test_every_property_is_drawn_and_counted() -> None:
    # Few problems have taps of one band to add up: of 60 some have, whichever hypothesis draws.
    found = search("torch", "cpu", examples=400, seed=1, pool_size=60)
    assert set(found.ran) == set(PROPERTIES)
    assert not found.miss


def test_stops_when_its_time_is_up() -> None:
    found = search("torch", "cpu", examples=10**6, seed=1, pool_size=4, budget_seconds=0)
    assert found.out_of_time
    assert found.ran.total() == 0
    assert "stopped by --budget-seconds" in found.report()


def test_a_miss_is_reported_with_the_command_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = convgap.multiply_gap

    def wrong(y: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return right(y, *args, **kwargs) * (1 + 1e-3)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(convgap, "multiply_gap", wrong)
    found = search("torch", "cpu", examples=300, seed=1, pool_size=20)
    assert "--shape tail:" in found.miss
    assert "python3 bench.py check" in found.miss
    assert "MISS" in found.report()


@pytest.mark.parametrize("number", range(20))
def test_the_command_makes_the_same_numbers(number: int) -> None:
    example = draw("torch", "cpu", templates(3, 20), "right", number, 1000 + number)
    words = shlex.split(example.command())
    assert words[:3] == ["python3", "bench.py", "check"]
    parser = argparse.ArgumentParser()
    add_case_options(parser)
    args = parser.parse_args(words[3:])
    (case,) = chosen_cases(args, (), gpu=False)
    for name in ("name", "problem", "dtype", "layout", "values", "multiplier", "seed"):
        assert getattr(case, name) == getattr(example.case, name), name


def test_the_same_seed_draws_the_same_examples() -> None:
    assert templates(5, 10) == templates(5, 10) != templates(6, 10)
    pool = templates(5, 10)
    assert draw("torch", "cpu", pool, "right", 3, 9) == draw("torch", "cpu", pool, "right", 3, 9)


def test_an_example_without_a_verdict_is_not_counted() -> None:
    pool = [t for t in templates(0, 40) if isinstance(t.problem, Tail)]
    assert not check(draw("torch", "cpu", pool, "strategies", 0, 0))


def test_an_exception_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(convgap, "multiply_gap", broken)
    monkeypatch.setattr(convgap, "conv_transpose2d_multiply_gap", broken)
    with pytest.raises(Miss, match="RuntimeError: out of luck"):
        check(draw("torch", "cpu", templates(0, 4), "right", 0, 0))


def test_report_says_what_ran() -> None:
    campaign = Campaign("torch", "cpu", 7, 40, seconds=3.0)
    campaign.ran["right"] = 5
    assert campaign.report() == "torch on cpu: 5 examples, no miss; 40 templates, seed 7, 3 s\n  right 5"
