"""Processes of tests/warm_start.py are like those of `python FILE`, but that their imports are done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, os, signal, sys, time

if __name__ == "__main__":
    about = {"arguments": sys.argv[1:], "folder": os.getcwd(), "variable": os.environ.get("ASKED")}
    about |= {"leads": os.getsid(0) == os.getpid(), "ready": "decimal" in sys.modules}
    about["input"] = sys.stdin.read()
    about["interrupt"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(json.dumps(about), flush=True)
    print("a warning", file=sys.stderr)
    if sys.argv[1] == "wait":
        time.sleep(60)
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_it_has_what_is_its_own(warm_start: Callable[..., Any], script: Path, tmp_path: Path) -> None:
    given = {"ASKED": "yes"}
    started = warm_start(script, "a b", 3, imports=("decimal",), environment=given, cwd=tmp_path)
    output, errors = started.communicate()
    assert json.loads(output) == {
        "arguments": ["a b", "3"],
        "folder": str(tmp_path),
        "variable": "yes",
        "leads": False,
        "ready": True,
        "input": "",
        "interrupt": True,
    }
    assert errors == "a warning\n"
    assert started.returncode == started.poll() == 7
    started.kill()  # of a process that is no more: nobody is killed
    # The next one has nothing of the one before.
    again = json.loads(warm_start(script, "c", imports=(), new_session=True).communicate()[0])
    assert (again["arguments"], again["folder"], again["variable"]) == (["c"], os.getcwd(), None)
    assert again["leads"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -15), (signal.SIGKILL, -9), (signal.SIGINT, -2)]
)
def test_signals_end_it(
    warm_start: Callable[..., Any], script: Path, tmp_path: Path, number: int, status: int
) -> None:
    started = warm_start(script, "wait", imports=(), cwd=tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.05)
    while not os.path.getsize(f"/proc/{started.pid}/fd/2"):
        time.sleep(0.01)
    assert started.poll() is None
    started.send_signal(number)
    assert started.wait(20) == -number


def test_modules_run_as_main(warm_start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b":1}')
    started = warm_start("json.tool", "--compact", "a.json", imports=("json",), cwd=tmp_path)
    assert started.communicate() == ('{"b":1}\n', "")
    assert started.returncode == 0
