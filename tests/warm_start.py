"""Commands as processes of their own, forked from one that has imported what they need: torch alone costs
two seconds, and the tests start dozens of them.

    test --JSON line--> server, which imports and forks --> the process: runs a module or a file as __main__

Such a process differs from `python -m MODULE` in nothing but that its imports are done: it has its own
arguments, environment, folder and streams, and ends as it would. Where the start is what is tested, or a
variable is read before the first import, start it with subprocess.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

POLL_SECONDS = 0.01


class Started:
    """A process of the server; what subprocess.Popen has of the same names, with text as output.

    Output and errors go to files, so that neither of them ever waits for a reader.
    """

    def __init__(self, server: Server, pid: int, streams: list[IO[str]]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._streams = streams

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"status of": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_SECONDS)
        return status

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Output and errors, once the process has ended. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read())
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        # Only `poll` takes a dead child's number away: it is no other process's.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that imports and forks. Starts with the first command; its processes end with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(
        self,
        target: str | Path,
        *arguments: object,
        imports: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        new_session: bool = False,
    ) -> Started:
        """Runs a module by its name, or a file, as __main__. imports: modules that are imported before the
        fork, once for all. environment: added to this process's; of torch's own variables it is too late for
        those of OpenMP, which has one thread. new_session: the process leads a group of its own.
        """
        streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  # read by `communicate`
        pid = self.ask(
            {
                "target": str(target),
                "is file": isinstance(target, Path),
                "arguments": [str(argument) for argument in arguments],
                "imports": imports,
                "environment": {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                "cwd": str(cwd or Path.cwd()),
                "streams": [f"/proc/{os.getpid()}/fd/{stream.fileno()}" for stream in streams],
                "new session": new_session,
            }
        )
        return Started(self, pid, streams)

    def ask(self, question: dict[str, Any]) -> Any:
        """The server's answer. Raises RuntimeError where there is none: it has died."""
        if self._process is None:
            self._process = subprocess.Popen(
                # No folder of this one's in the search path: tests/kernels is not a package of that name.
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,  # an interrupt is the tests' affair; it ends with its input
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of warm starts died: {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the server and what it has started."""
        if self._process is not None:
            self._process.communicate()


def serve() -> dict[str, Any] | None:
    """The server's life. None at its end; in a process that it has forked, what that is to be."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    running: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "status of" in question:
            pid, status = os.waitpid(question["status of"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            for name in question["imports"]:
                importlib.import_module(name)
            answer = os.fork()
            if answer == 0:
                answers.close()
                return question
            running.add(answer)
        print(json.dumps(answer), file=answers, flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return None


def become(wanted: dict[str, Any]) -> None:
    """Makes this process what was asked for: its streams, environment, folder and arguments."""
    if wanted["new session"]:
        os.setsid()
    for number, path in enumerate((os.devnull, *wanted["streams"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # the old one has read ahead
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["cwd"])
    sys.argv = [wanted["target"], *wanted["arguments"]]


def main() -> None:
    wanted = serve()
    if wanted is None:
        return
    become(wanted)
    if wanted["is file"]:
        runpy.run_path(wanted["target"], run_name="__main__")
    else:
        runpy.run_module(wanted["target"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
