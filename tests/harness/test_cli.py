"""The command line: its errors, its exit codes, and whole runs on fake backends and a fake device."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from convgap import selection as chosen
from harness.cases import spelling
from harness.cases.catalogue import EDGE, GRID, HEADLINE, Case
from harness.cases.inputs import Inputs, make_inputs
from harness.cli import COMMANDS, main
from harness.commands import check, compare, doctor
from harness.entries import entry
from harness.entries.entry import Built, Peer, Unavailable
from harness.records.record import load
from harness.timing import measure
from harness.timing.floors import Card, Ceiling
from harness.timing.session import Stop
from reference import eager
from reference.problem import Chain, Tail
from torch_impl import steps

ROOT = Path(__file__).parents[2]
SMALL = ["--shape", "tail:2,3,4,5"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs are about the command line: on every machine they take the path without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def eager_row(factor: float = 1.0) -> Callable[[Case, Inputs], Built]:
    def build(case: Case, inputs: Inputs) -> Built:
        return Built(
            lambda: factor * inputs.call(eager),
            "torch eager",
            eager.depth(case.problem),
            eager.stores(case.problem) + 1,
        )

    return build


def unavailable(case: Case, inputs: Inputs) -> Built:
    raise Unavailable("not made for this case")


def broken(case: Case, inputs: Inputs) -> Built:
    raise RuntimeError("device on\nfire")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Peer]:
    """Rows that need nothing but torch: one right, one right and the reference, one absent."""
    table = {
        "right": Peer("right", eager_row(), product=True, cpu=True),
        "eager-ieee": Peer("eager-ieee", eager_row(), cpu=True),
        "absent": Peer("absent", unavailable, cpu=True),
    }
    monkeypatch.setattr(entry, "PEERS", table)
    return table


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Exit code 2, one line on standard error, nothing on standard output."""
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", ["compare", "check"])
@pytest.mark.parametrize(
    "options, says",
    [
        (["--cases", "chain/headlin"], "chain/headline"),
        (["--backends", "tritn"], "no row is named 'tritn'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--layout", "nhwc"], "unknown layout 'nhwc'"),
        (["--shape", "tail:1,2,3"], "expected 4 sizes first"),
        (["--shape", "conv:1,2,3,4"], "expected chain:"),
        (["--cases", "tail/headline", "--op", "chain"], "no case is left"),
    ],
)
def test_bad_choices_take_one_line(
    command: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused([command, *options], capsys)


@pytest.mark.parametrize(
    "options, says",
    [
        (["--flush", "wash"], "unknown flush 'wash'"),
        (["--budget-seconds", "0"], "--budget-seconds"),
        (["--precision", "-1"], "--precision"),
        (["--plot", "somewhere"], "timing needs a GPU"),
        (["--json", "no/such/place.json"], "no directory no/such"),
        (["--csv", "."], "is a directory"),
    ],
)
def test_bad_options_of_compare_take_one_line(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused([*SMALL, *options], capsys)


def test_an_unwritable_output_is_found_before_anything_runs(
    peers: dict[str, Peer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        measure, "run_cases", lambda *_: pytest.fail("ran although the output cannot be written")
    )
    refused([*SMALL, "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "no" / "b.csv")], capsys)
    assert os.listdir(tmp_path) == []


def test_argparse_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--cold", "--warm"])
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["compare", "check"])
def test_right_answers_exit_with_0(
    command: str, peers: dict[str, Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "shape/tail:2,3,4,5" in out and "2 answers inside their budget, 0 wrong" in out
    assert "absent: not on 1 of 1 cases: not made for this case" in out
    assert ("timing needs a GPU" in out) == (command == "compare")
    assert "\x1b" not in out


def test_a_wrong_answer_exits_with_1(peers: dict[str, Peer], capsys: pytest.CaptureFixture[str]) -> None:
    peers["wrong"] = Peer("wrong", eager_row(1.01), cpu=True)
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "wrong: wrong:" in out and "1 wrong" in out


def test_a_product_backend_that_dies_is_wrong_and_another_row_is_not(
    peers: dict[str, Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    peers["peer"] = Peer("peer", broken, cpu=True)
    assert main(SMALL) == 0
    assert "peer: not on 1 of 1 cases: RuntimeError: device on fire" in capsys.readouterr().out
    peers["own"] = Peer("own", broken, product=True, cpu=True)
    assert main(SMALL) == 1
    assert "own: wrong: RuntimeError: device on fire" in capsys.readouterr().out


BACKWARD = [
    "--backward",
    "--shape",
    "chain:2,3,4,5,6,k3,s2,p1,op1",
    "--backends",
    "torch,eager-ieee,inductor",
]


def test_gradients_are_compared_on_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*BACKWARD, "--json", str(tmp_path / "run.json")]) == 0
    out = capsys.readouterr().out
    assert "2 answers inside their budget, 0 wrong" in out
    assert "inductor: not on 1 of 1 cases: the row is for outputs, not for gradients" in out
    (case,) = load(tmp_path / "run.json").cases
    assert (case.name, case.op) == ("backward/shape/chain:2,3,4,5,6,k3,s2,p1,op1", "backward")
    # dx, and two times the size of the weight.
    assert case.compulsory_bytes == 4 * (2 * 3 * 5 * 6 + 2 * 3 * 4 * 3 * 3)


def test_a_wrong_gradient_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = steps.band_fill
    monkeypatch.setattr(steps, "band_fill", lambda problem, d, dx: right(problem, d, dx).roll(1, 3))
    assert main(BACKWARD) == 1
    assert "torch: wrong:" in capsys.readouterr().out


def test_only_chains_have_gradients_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--backward: only chains have gradients" in refused(["--backward", *SMALL], capsys)


def test_no_answer_at_all_exits_with_1(peers: dict[str, Peer]) -> None:
    assert main([*SMALL, "--backends", "absent"]) == 1


def test_the_record_is_written(peers: dict[str, Peer], tmp_path: Path) -> None:
    assert main([*SMALL, "--json", str(tmp_path / "run.json"), "--csv", str(tmp_path / "run.csv")]) == 0
    run = load(tmp_path / "run.json")
    assert run.finished and [row.status for row in run.cases[0].rows] == ["right", "right", "unavailable"]
    assert run.cases[0].shape == "tail:2,3,4,5" and run.environment.versions["torch"]
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 4
    assert sorted(os.listdir(tmp_path)) == ["run.csv", "run.json"]


def test_ctrl_c_keeps_what_is_finished(
    peers: dict[str, Peer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = itertools.count()

    def interrupted(case: Case, inputs: Inputs) -> Built:
        if next(count) == 1:
            raise KeyboardInterrupt
        return eager_row()(case, inputs)

    peers["right"] = Peer("right", interrupted, cpu=True)
    path = tmp_path / "run.json"
    assert main([*SMALL, "--shape", "tail:2,3,6,7", "--json", str(path)]) == 130
    out = capsys.readouterr().out
    assert "interrupted" in out and "tail:2,3,4,5" in out and "tail:2,3,6,7" not in out
    run = load(path)
    assert not run.finished and [case.shape for case in run.cases] == ["tail:2,3,4,5"]


def test_dtype_and_layout_make_variants_with_names_of_their_own(
    peers: dict[str, Peer], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    options = ["--dtype", "float32,float64", "--layout", "contiguous,channels_last", "--json", str(path)]
    assert main([*SMALL, *options]) == 0
    assert [case.name.partition("@")[2] for case in load(path).cases] == [
        "",
        "channels_last",
        "float64",
        "float64@channels_last",
    ]


def test_the_seed_changes_the_inputs(peers: dict[str, Peer]) -> None:
    seen: list[torch.Tensor] = []

    def watch(case: Case, inputs: Inputs) -> Built:
        seen.append(inputs.x)
        return eager_row()(case, inputs)

    peers["right"] = Peer("right", watch, cpu=True)
    for seed in ("0", "0", "1"):
        assert main([*SMALL, "--seed", seed]) == 0
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("case", [*HEADLINE, *GRID, *EDGE], ids=lambda case: case.name)
def test_every_problem_has_a_spelling(case: Case) -> None:
    assert spelling.parse(spelling.spell(case.problem)) == case.problem


def test_shapes_by_hand() -> None:
    assert spelling.parse("tail:16,128,256,256") == Tail(16, 128, 256, 256)
    assert spelling.parse("chain:16,64,128,96,160,k3x5,s2x1,p1x2,op1x0,d1,g4,nobias") == Chain(
        16, 64, 128, 96, 160, (3, 5), (2, 1), (1, 2), (1, 0), (1, 1), 4, False
    )


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "expected chain:"),
        ("tail:1,2,3,x", "4 sizes first"),
        ("tail:1,0,3,4", "at least 1"),
        ("tail:1,2,3,4,k3", "no part of"),
        ("chain:1,2,3,4,5,q7", "'q7' is no part of"),
        ("chain:1,2,3,4,5,k3,k5", "given twice"),
        ("chain:1,3,4,5,5,g2", "do not divide"),
        ("chain:1,2,2,1,1,k1,p3", "output would have"),
        ("chain:1,1,1,4,4,k3,op1", "output_padding below"),
        ("chain:1,1,1,4,4,k0", "at least 1"),
    ],
)
def test_bad_shapes(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spelling.parse(text)


class FakeStopwatch:
    """Gives each row the time its launch stands for."""

    def __init__(self, launch: Any, prepare: Any) -> None:
        self.launch, self.host_bound = launch, False
        self.pattern = itertools.cycle([0.999, 1.001])

    def __call__(self) -> float:
        self.launch()
        return 10.0 * next(self.pattern)


def fake_timer(captured: list[Any], throttled: int = 0, **changes: Any) -> measure.Timer:
    """A timer of no device. captured: collects what was captured; throttled: so many first rounds are."""
    rounds = itertools.count()

    def capture(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        captured.append(call)
        out = call()
        return lambda: out.copy_(call()), out

    telemetry: Any = SimpleNamespace(
        read=lambda: None, throttle=lambda: ["power cap"] if next(rounds) < throttled else [], reason=""
    )
    fields: dict[str, Any] = {
        "settings": measure.Settings({"cold": "read", "warm": None}, Stop(min_rounds=8, max_rounds=8)),
        "telemetry": telemetry,
        "prepares": {"cold": lambda: None, "warm": None},
        "ceilings": SimpleNamespace(
            read_us=lambda size, mode: 5.0, reason="", large=lambda: [Ceiling("empty", 0, 3.0, "made up")]
        ),
        "card": Card("fake", 1000.0, 1 << 20, 1),
        "capture": capture,
        "stopwatch": FakeStopwatch,
        "extra_memory": lambda call: 64,
        "host_cost": lambda call, us: [3.0],
    }
    return measure.Timer(**(fields | changes))


def timed_run(peers: dict[str, Peer], timer: measure.Timer) -> measure.CaseRecord:
    case = Case("tail/test", Tail(2, 3, 4, 5), "small")
    run = measure.Run(environment=measure.environment(torch.device("cpu"), None), settings={})
    measure.run_cases(run, [case], list(peers.values()), torch.device("cpu"), timer, lambda _: None)
    return run.cases[0]


def test_right_rows_are_timed_and_wrong_ones_never(peers: dict[str, Peer]) -> None:
    peers["wrong"] = Peer("wrong", eager_row(1.01), cpu=True)
    captured: list[Any] = []
    record = timed_run(peers, fake_timer(captured))
    found = {row.backend: (row.status, set(row.samples)) for row in record.rows}
    assert found == {
        "right": ("timed", {"cold", "warm"}),
        "eager-ieee": ("timed", {"cold", "warm"}),
        "absent": ("unavailable", set()),
        "wrong": ("wrong", set()),
    }
    assert len(captured) == 2
    assert record.reference == "eager-ieee" and record.floor_us == {"cold": 5.0, "warm": 5.0}
    row = record.row("right")
    assert row is not None and (row.how, row.host_us, row.extra_bytes) == ("graph", [3.0], 64)
    assert record.pairwise["right"]["eager-ieee"] == 0


def test_a_graph_that_goes_wrong_loses_its_times(peers: dict[str, Peer]) -> None:
    def capture(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        return lambda: None, call()  # a replay that writes nothing: the poison stays

    record = timed_run(peers, fake_timer([], capture=capture))
    row = record.row("right")
    assert row is not None and row.status == "wrong" and row.samples == {} and "after timing" in row.reason


def test_what_cannot_be_captured_is_timed_by_events_and_says_so(peers: dict[str, Peer]) -> None:
    peers["plain"] = Peer("plain", eager_row(), graph=False, why_not="its allocator forbids it")

    def capture(call: Callable[[], torch.Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    record = timed_run(peers, fake_timer([], capture=capture))
    for name, why in (("right", "stream is capturing"), ("plain", "its allocator forbids it")):
        row = record.row(name)
        assert row is not None and row.how == "events" and row.status == "timed"
        assert why in row.notes[0]


def test_a_whole_timed_run(
    peers: dict[str, Peer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "timer_for", lambda device, settings: fake_timer([]))
    peers["wrong"] = Peer("wrong", eager_row(1.01), cpu=True)
    path = tmp_path / "run.json"
    command = [*SMALL, "--json", str(path), "--csv", str(tmp_path / "run.csv")]
    plot = ["--plot", str(tmp_path / "p.svg")] if find_spec("matplotlib") else []
    assert main([*command, *plot]) == 1
    out = capsys.readouterr().out
    assert "cold us" in out and "speed-up over eager-ieee" in out and "Summary" in out
    assert "1 cases: 2 answers inside their budget, 1 wrong" in out
    assert len(os.listdir(tmp_path)) == 2 + 3 * bool(plot)
    assert load(path).ceilings[0].kind == "empty"
    assert main(["diff", str(path), str(path)]) == 0


def test_a_right_row_that_was_not_timed_exits_with_1(
    peers: dict[str, Peer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopwatch(launch: Any, prepare: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(measure, "timer_for", lambda *_: fake_timer([], stopwatch=stopwatch))
    assert main(SMALL) == 1
    assert "2 not timed" in capsys.readouterr().out


def test_a_failed_measurement_is_flagged_and_the_answers_stay_right(peers: dict[str, Peer]) -> None:
    def stopwatch(launch: Any, prepare: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    record = timed_run(peers, fake_timer([], stopwatch=stopwatch))
    assert record.flags == ["timing failed: OutOfMemoryError: no room"]
    assert [row.status for row in record.rows] == ["right", "right", "unavailable"]


def test_a_row_that_writes_nothing_is_wrong_even_after_a_right_one(peers: dict[str, Peer]) -> None:
    def lazy(case: Case, inputs: Inputs) -> Built:
        return Built(lambda: torch.empty(case.problem.out_shape), "nothing", 1)

    peers["lazy"] = Peer("lazy", lazy, cpu=True)
    row = timed_run(peers, fake_timer([])).row("lazy")
    assert row is not None and row.status == "wrong"


def test_a_throttled_case_is_measured_again_and_flagged_and_nothing_is_dropped(
    peers: dict[str, Peer],
) -> None:
    record = timed_run(peers, fake_timer([], throttled=3))
    row = record.row("right")
    assert row is not None and len(row.samples["cold"]) == 16 and len(row.samples["warm"]) == 8
    assert [bool(mark) for mark in record.marks["cold"]] == [True] * 3 + [False] * 13
    assert record.flags == ["cold: throttled in 3 of 16 rounds (power cap); measured twice, all kept"]


def test_doctor_needs_a_fast_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(usable: bool) -> Callable[..., list[Any]]:
        names = {"triton": False, "cupy": usable, "torch": True}
        return lambda device=None: [
            SimpleNamespace(
                name=n, usable=u, reason="" if u else "no compiler", how="interpreter" if u else ""
            )
            for n, u in names.items()
        ]

    monkeypatch.setattr(doctor.convgap, "status", status(True))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "triton     not usable: no compiler" in out and "cupy       usable, interpreter" in out
    monkeypatch.setattr(doctor.convgap, "status", status(False))
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fast_backend_usable"] is False and found["backends"]["triton"]["reason"] == "no compiler"


def test_every_command_has_its_three_names() -> None:
    assert {"compare", "check", "doctor", "diff"} <= set(COMMANDS)
    for module in (compare, check, doctor):
        assert module.SUMMARY and callable(module.add_arguments) and callable(module.run)


def test_the_front_door_opens() -> None:
    """bench.py itself, in a fresh process whose output is a pipe."""
    env = os.environ | {"FORCE_COLOR": "1"}  # must not bring colour back into a pipe
    done = subprocess.run(
        [sys.executable, "bench.py", "check", *SMALL, "--backends", "eager-ieee"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "shape/tail:2,3,4,5" in done.stdout and "\x1b" not in done.stdout


def test_a_row_probes_its_own_backend_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of one kernel set is not the other's to pay for."""
    probed: list[str] = []
    monkeypatch.setattr(chosen, "_found", {})
    monkeypatch.setattr(chosen, "_load", lambda name, device: probed.append(name))
    monkeypatch.setattr(chosen, "_probe", lambda kernels, device: None)
    inputs = make_inputs(Case("one", Tail(1, 1, 2, 2), "any"), torch.device("cpu"))
    assert entry.require_usable("cupy", inputs) == "interpreter"
    assert probed == ["cupy"]
