"""The native call path on CPU tensors, against a stand-in for the driver: what it launches, what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from convgap.plans import COUNTERS, INTEGER, MULTIPLIER, OUTPUT, POINTER, WEIGHT, WORKSPACE, X
from tests.runtime.stand_in import ONE, Calls, double, plan, y_like


def test_a_call_is_planned_once_and_launched_every_time(path: Calls) -> None:
    path.plan = plan(ONE)
    y = y_like()
    for scale in (0.5, 3):
        out = path.module.tail(y, scale, "auto")
        assert out.shape == (2, 3, 1, 1) and out.dtype == torch.float32 and out.is_contiguous()
        (launch,) = path.driver.launched()
        assert (launch.function, launch.shared, launch.stream) == (77, 4096, 0)
        assert (tuple(launch.grid), tuple(launch.block)) == ((5, 6, 1), (128, 1, 1))
        given = list(launch.parameter)[:8]
        assert given[:2] == [y.data_ptr(), out.data_ptr()]
        assert given[2:] == [2**64 - 9, double(scale / 20.0), double(scale), 0, 0, 0]
    assert len(path.planned) == 1
    path.module.tail(y.clone(), 0.5, "auto")
    assert len(path.planned) == 1


def test_what_fixes_a_plan_is_told_apart(path: Calls) -> None:
    path.plan = plan(ONE)
    y = torch.rand(2, 3, 4, 8)
    storage = torch.rand(400)
    different: list[tuple[Any, ...]] = [
        (y, 0.5, "auto"), (y, 0.5, "cupy"), (y.double(), 0.5, "auto"), (y[:1], 0.5, "auto"), (y[..., :5], 0.5, "auto"),
        (y[0], 0.5, "auto"), (y, torch.ones(3, 1, 1), "auto"), (y, torch.ones(2, 3, 1, 1), "auto"),
        (storage[1:193].view(2, 3, 4, 8), 0.5, "auto"), (y.contiguous(memory_format=torch.channels_last), 0.5, "auto"),
    ]  # fmt: skip
    for count, call in enumerate(different, 1):
        for _ in range(2):
            assert path.module.tail(*call) is not None
        assert len(path.planned) == count


def test_two_launches_share_a_workspace_that_the_stream_keeps(path: Calls) -> None:
    first = (
        1,
        2,
        1,
        32,
        0,
        ((POINTER, X), (WORKSPACE, 0), (WORKSPACE, 256), (COUNTERS, 0), *[(INTEGER, 0)] * 4),
    )
    second = (
        2,
        3,
        1,
        32,
        0,
        ((WORKSPACE, 0), (POINTER, WEIGHT), (OUTPUT, 0), (POINTER, MULTIPLIER), *[(INTEGER, 0)] * 4),
    )
    path.plan = plan(first, second, workspace=512, counters=3)
    x, weight, multiplier = y_like(), torch.rand(3, 3, 2, 2), torch.rand(3, 1, 1)
    call = x, weight, None, multiplier, 2, (1, 0), 0, 1, 1, "collapsed", "triton"
    spaces = set()
    for _ in range(3):
        out = path.module.chain(*call)
        one, two = path.driver.launched()
        assert (one.function, two.function) == (1, 2)
        space, zeros = one.parameter[1], one.parameter[3]
        assert one.parameter[0] == x.data_ptr() and one.parameter[2] == space + 256
        assert list(two.parameter)[:4] == [space, weight.data_ptr(), out.data_ptr(), multiplier.data_ptr()]
        spaces.add((space, zeros))
    assert len(spaces) == 1 and path.rooms == [(0, 3, 512)]
    # A call that needs more gets more, once; what is large is not kept.
    path.plan = plan(first, workspace=1024, counters=5)
    path.module.tail(x, 0.5, "auto")
    assert path.rooms[1:] == [(0, 5, 1024)]
    path.plan = plan(first, workspace=2 << 20, counters=5)
    for _ in range(2):
        path.module.tail(x[:1], 0.5, "auto")
    assert path.rooms[2:] == [(0, 0, 2 << 20)] * 2


def test_settings_of_the_chain_that_are_not_plain(path: Calls) -> None:
    path.plan = plan(ONE)
    x, weight = y_like(), torch.rand(3, 3, 2, 2)
    usual = [x, weight, None, 0.5, 2, 0, 0, 1, 1, "collapsed", "auto"]
    assert path.module.chain(*usual) is not None
    for at, value in (
        (1, "weight"), (2, 0), (4, [2, 2]), (4, (2, 2, 2)), (4, (2,)), (4, True), (4, (2, True)), (4, 2.0), (4, 2**70),
        (5, None), (8, "1"), (8, True), (9, "tail"), (9, None), (10, 3),
    ):  # fmt: skip
        assert path.module.chain(*usual[:at], value, *usual[at + 1 :]) is None, (at, value)
    assert path.module.chain(*usual[:-1]) is None
    assert len(path.planned) == 1
    for options in ((2, 2), 0, 0, 1), (2, (0, 0), 0, 1), (2, 0, 0, (1, 1)):
        assert path.module.chain(*usual[:4], *options, *usual[8:]) is not None
    assert len(path.planned) == 1, "an int and a pair of it are one setting"
    for at, value in ((4, 3), (5, 1), (6, 1), (7, 2), (8, 3)):
        path.module.chain(*usual[:at], value, *usual[at + 1 :])
    assert len(path.planned) == 6


def test_a_planner_that_has_no_plan_is_asked_once(path: Calls) -> None:
    y = y_like()
    for _ in range(3):
        assert path.module.tail(y, 0.5, "auto") is None
    assert len(path.planned) == 1


def test_a_planner_that_fails_is_asked_again_and_an_interrupt_is_not_lost(path: Calls) -> None:
    y = y_like()
    path.plan = ValueError("planted")
    for _ in range(3):
        assert path.module.tail(y, 0.5, "auto") is None
    assert len(path.planned) == 3
    path.plan = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        path.module.tail(y, 0.5, "auto")
    arguments: tuple[Any, ...] = ((99, 0),), ((POINTER, 4),), ((INTEGER, 0),) * 65
    of_launches = [plan((1, 1, 1, 1, 0, wrong)) for wrong in arguments]
    for wrong in ((), "plan", plan(), plan(*[ONE] * 5), plan((1, 2)), *of_launches):
        path.plan = wrong
        assert path.module.tail(y, 0.5, "auto") is None
    path.plan = plan(ONE)
    assert path.module.tail(y, 0.5, "auto") is not None
