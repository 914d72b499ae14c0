"""Programs that models write: what they may do, and that nothing of them is left. Error rate 0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest
from sglang_power.errors import HostError
from sglang_power.evaluation import sandbox
from sglang_power.evaluation.sandbox import CHILD, Limits, run

SHORT = Limits(seconds=2.0)


def test_a_program_that_ends_without_an_error_passes() -> None:
    ending = run("print('x' * 100_000)\nassert 1 + 1 == 2")
    assert (ending.passed, ending.reason) == (True, "")
    assert ending.network in ("network namespace", "audit hook")


FAILING = {
    "assert": ("assert 1 == 2, 'no'", "AssertionError: no"),
    "syntax": ("def f(:", "SyntaxError"),
    "exit": ("import sys; sys.exit(0)", "SystemExit"),
    "exit at once": ("import os; os._exit(0)", "ended before its end"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "crash": ("import ctypes; ctypes.string_at(0)", ""),
    "memory": ("x = bytearray(3 << 30)", "MemoryError"),
    "file": ("open('f', 'wb').write(bytes(2 << 20))", "OSError"),
    "input": ("input()", "EOFError"),
    "surrogate": ("x = '\ud800'\nraise ValueError", "ValueError"),
}


@pytest.mark.parametrize(("program", "reason"), FAILING.values(), ids=list(FAILING))
def test_a_program_that_fails_says_why(program: str, reason: str) -> None:
    ending = run(program)
    assert not ending.passed
    assert ending.reason.startswith(reason)


def test_a_program_cannot_raise_its_limits() -> None:
    ending = run("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))")
    if ending.network == "audit hook" and os.geteuid() == 0:
        pytest.skip("root without namespaces may")
    assert ending.reason.startswith("ValueError: not allowed to raise maximum limit")


def test_an_endless_loop_is_stopped_by_the_clock_and_by_the_processor() -> None:
    assert run("import time\ntime.sleep(60)", SHORT).reason == "stopped after 2 seconds"
    assert run("while True: pass", Limits(seconds=60.0, cpu_seconds=1)).reason.startswith("ended by SIG")


def test_a_program_sees_no_environment_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "x")
    program = """
        import os
        assert "SECRET_OF_THE_TEST" not in os.environ, "environment"
        assert os.listdir(".") == [], "folder"
        open("left", "w").write("x")
        """
    assert run(textwrap.dedent(program)).passed
    assert run(textwrap.dedent(program)).passed, "the folder is another one each time"


REACH = """
    import socket, threading
    server = socket.socket()
    server.connect(("127.0.0.1", {port}))
    """


def test_the_network_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        program = textwrap.dedent(REACH.format(port=listening.getsockname()[1]))
        subprocess.run([sys.executable, "-c", program], check=True)  # it can be reached from outside
        ending = run(program)
    assert not ending.passed
    assert ending.reason.startswith(("OSError", "PermissionError"))


def test_without_namespaces_a_hook_refuses_sockets() -> None:
    """As on a machine whose kernel permits no namespace of its own."""
    starter = (
        f"import runpy, sys; m = runpy.run_path({str(CHILD)!r}); "
        "m['main'].__globals__['unshared'] = lambda: False; m['main'](['10', str(1 << 30), str(1 << 20)])"
    )
    for program, error in (
        ("import socket\nsocket.socket()", "PermissionError: socket.__new__"),
        ("import os\nos.fork()", "PermissionError: os.fork"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError: subprocess.Popen"),
        ("import ctypes\nctypes.CDLL(None)", "PermissionError"),
        ("1", None),
    ):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", starter],
            input=program.encode(),
            capture_output=True,
            check=True,
        )
        ending = sandbox._ending(done.stdout, done.stderr, "")
        assert ending.network == "audit hook"
        assert ending.passed is (error is None), ending
        assert error is None or ending.reason.startswith(error)


def alive(mark: str) -> list[str]:
    """Processes whose command line holds a mark."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if mark.encode() in (process / "cmdline").read_bytes():
                    found.append(process.name)
            except OSError:
                continue
    return found


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "is stopped"])
def test_nothing_that_a_program_starts_outlives_it(ends: bool) -> None:
    mark = uuid.uuid4().hex
    program = f"""
        import os, subprocess, sys, time
        code = "import time; time.sleep(120)"
        started = subprocess.Popen([sys.executable, "-c", code, "{mark}"], start_new_session=True)
        open("started", "w").write(str(started.pid))
        {"pass" if ends else "time.sleep(60)"}
        """
    ending = run(textwrap.dedent(program), Limits(seconds=3.0))
    if ending.network == "audit hook":
        pytest.skip("this kernel permits no namespace: the hook refuses to start processes")
    assert ending.passed is ends, ending
    deadline = time.monotonic() + 60.0
    while left := alive(mark):  # the kernel ends them; when is its affair
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise RuntimeError('broken')")
    monkeypatch.setattr(sandbox, "CHILD", broken)
    with pytest.raises(HostError, match=r"(?s)the sandbox did not start: .*broken"):
        run("1")
