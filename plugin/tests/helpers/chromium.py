"""A headless Chromium for tests of pages, over its DevTools pipe: JSON messages that end with a zero byte.

The pipe needs no port and no library. Evaluated expressions are the debugger's: the page's content security
policy does not stop them, and does not let the page do the same.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium")
"""None where there is none."""

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)

ANSWER_WITHIN_S = 60.0
"""Only a browser that hangs takes so long."""

TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"

Json = dict[str, Any]


class Tab:
    """One page.

    Args:
        send_to, receive_from: file descriptors of the pipe.

    Attributes:
        events: what the browser told meanwhile, in order.
    """

    def __init__(self, send_to: int, receive_from: int) -> None:
        self._send_to, self._receive_from = send_to, receive_from
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.events: list[Json] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Json:
        """One command and its result."""
        number = next(self._numbers)
        message: Json = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send_to, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: Json = answer["result"]
        return result

    def _message(self) -> Json:
        while b"\0" not in self._rest:
            if not select.select([self._receive_from], [], [], ANSWER_WITHIN_S)[0]:
                raise RuntimeError("Chromium does not answer")
            part = os.read(self._receive_from, 1 << 16)
            if not part:
                raise RuntimeError("Chromium is gone")
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message: Json = json.loads(line)
        return message

    def open(self, page: Path, *, width: int = 1000, height: int = 1200, dark: bool = False) -> None:
        """Load a file, as a screen of that size shows it."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def click(self, selector: str, number: int = 0) -> None:
        """Press the middle of an element, as a mouse or a finger does."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.value(f"{element}.scrollIntoView({{block: 'center'}})")
        self.value(TWO_FRAMES)  # Rows take their height when they are drawn for the first time.
        box = self.value(f"(({element}).getBoundingClientRect()).toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key of the keyboard."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def told(self, method: str) -> list[Json]:
        """What the browser told of one kind since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def screenshot(self, path: Path) -> None:
        """A PNG of what is on the screen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser of its own, with a fresh profile in `profile`."""
    assert EXECUTABLE is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    wired = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'  # The pipe's two ends are descriptors 3 and 4.
    process = subprocess.Popen(
        ["bash", "-c", wired, EXECUTABLE, *ARGUMENTS, f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.terminate()
        process.wait(timeout=30)
