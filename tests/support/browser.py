"""Chromium, driven through its own pipe protocol."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-pipe", "--window-size=1280,860"),
)
KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "/": 191,
}  # fmt: skip
"""Key codes of keys that are not letters; with them Chromium does what each key does by itself."""
SHIFT = 8


def chromium_or_skip() -> str:
    """The path of Chromium; without one the test is skipped, and fails in CI."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium on PATH: apt-get install chromium")
    return program


class Browser:
    """Chromium through its own pipe protocol: real mouse, real keys, every request and error seen."""

    def __init__(self, program: str) -> None:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs_in, out), (back, theirs_out) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (theirs_in, theirs_out)]

        def three_and_four() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=three_and_four,  # noqa: PLW1509 - no threads here, and Chromium wants exactly these numbers
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*high, theirs_in, theirs_out):
            os.close(fd)
        self.out, self.back = os.fdopen(out, "wb", buffering=0), os.fdopen(back, "rb", buffering=0)
        self.numbers, self.buffer = itertools.count(1), b""
        self.events: list[Any] = []
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def read(self) -> Any:
        while b"\0" not in self.buffer:
            chunk = self.back.read(1 << 20)
            assert chunk, "Chromium closed its pipe: it did not start, or it crashed"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, path: Path, anchor: str = "", ready: str = "document.getElementById('heading')?.textContent"
    ) -> Browser:
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{path.as_uri()}{anchor}")
        for _ in range(600):
            if self("document.readyState") == "complete" and self(ready):
                return self
            time.sleep(0.05)
        raise AssertionError(f"the page was not ready: {self.problems()}")

    def __call__(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, selector: str, *, click: bool = False) -> None:
        """Points at the middle of an element, where it is once the page is laid out: two frames later."""
        self("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self(f"(() => {{ const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if click else "none", clickCount=1)

    def key(self, *keys: str, modifiers: int = 0) -> None:
        """Presses keys one after the other."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            code = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper())), "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        """Types text where the focus is."""
        self.call("Input.insertText", text=text)

    @contextmanager
    def media(self, medium: str = "screen", **features: str) -> Iterator[Browser]:
        """The page as a medium or a preference of the reader shows it: ``prefers_color_scheme="dark"``."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=medium, features=wanted)
        yield self
        self.call("Emulation.setEmulatedMedia", media="", features=[])

    @contextmanager
    def window(self, width: int, height: int, scale: float = 1) -> Iterator[Browser]:
        """The page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        yield self
        self.call("Emulation.clearDeviceMetricsOverride")

    def texts(self, selector: str) -> list[str]:
        return self(f"[...document.querySelectorAll({json.dumps(selector)})].map((found) => found.textContent)")

    def text(self, selector: str) -> str:
        (found,) = self.texts(selector)
        return found

    def problems(self) -> list[Any]:
        bad = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        return [event for event in self.events if event.get("method") in bad]

    def requests(self) -> list[str]:
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=20)
        self.out.close()
        self.back.close()
        self.profile.cleanup()


def wait_until(browser: Browser, expression: str) -> None:
    """Waits until an expression is true in the page, four seconds at most."""
    for _ in range(200):
        if browser(expression):
            return
        time.sleep(0.02)
    raise AssertionError(f"never true: {expression}; {browser.problems()}")
