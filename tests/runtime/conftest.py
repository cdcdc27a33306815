"""The native path against a stand-in for the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from runtime import native
from tests.runtime.stand_in import Calls, Driver, compiled, loaded


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := native.refusal() or ("" if native.compiler() else "no C compiler"):
        pytest.skip(f"there is no native path here: {reason}")
    return compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def module(library: Path) -> ModuleType:
    return loaded()


@pytest.fixture
def path(module: ModuleType, library: Path) -> Iterator[Calls]:
    driver = Driver(library)
    driver.set(launches=0, device=0, capturing=0, status=0, context_status=0, parameters=8)
    yield Calls(module, driver)
    module.clear()
