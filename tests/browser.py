"""A headless Chromium, controlled over two pipes (the DevTools protocol), without driver, package or port.

    with a Browser: open(url, width, height), evaluate(script), point(x, y), resize(...), theme("dark"); `console` holds its complaints
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium")
SECONDS = 30  # for an answer; the first may take long on a busy machine


def chromium():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES + PLACES)), None)


def beyond_4(fd):
    """A duplicate with a number above 4, because 3 and 4 will be replaced."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
    os.close(fd)
    return moved


class Browser:
    """One page in one process. It reads from descriptor 3 and writes to 4; each message is JSON and a zero byte."""

    def __init__(self):
        self.folder = tempfile.mkdtemp()
        theirs_in, ours_out = map(beyond_4, os.pipe())
        ours_in, theirs_out = map(beyond_4, os.pipe())
        command = [sys.executable, "-c", f"import os, sys; os.dup2({theirs_in}, 3); os.dup2({theirs_out}, 4); os.execv(sys.argv[1], sys.argv[1:])",
                   chromium(), "--headless", "--remote-debugging-pipe", "--no-sandbox",
                   "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        pass_fds=(theirs_in, theirs_out), start_new_session=True)
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.came = ours_out, ours_in
        self.rest, self.number, self.session, self.console = b"", 0, None, []
        target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        """The result of a command; events that come meanwhile are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **({"sessionId": self.session} if self.session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self.receive(until)
            if answer.get("id") == self.number:
                assert "result" in answer, answer
                return answer["result"]
            self.note(answer)

    def receive(self, until):
        """The next message."""
        while b"\0" not in self.rest:
            assert select.select([self.came], [], [], max(0, until - time.monotonic()))[0], "the browser does not answer"
            more = os.read(self.came, 1 << 20)
            assert more, "the browser has ended"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def note(self, event):
        """Remember what a developer would see in the console."""
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(parameters["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.console.append(str(parameters["args"]))
        elif event.get("method") == "Log.entryAdded":
            self.console.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def resize(self, width, height=800, scale=1):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def theme(self, name):
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, url):
        self.ask("Page.navigate", url=url)
        self.console.clear()  # what the last page said

    def evaluate(self, script):
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"].get("exception", answer["exceptionDetails"])
        return answer["result"].get("value")

    def point(self, x, y):
        """Move the pointer."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def roles(self):
        """{role: [names]} as a screen reader gets them."""
        found = {}
        for node in self.ask("Accessibility.getFullAXTree")["nodes"]:
            if not node["ignored"]:
                found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        return found

    def screenshot(self):
        """The bytes of a PNG: for people who look at a test."""
        import base64
        return base64.b64decode(self.ask("Page.captureScreenshot")["data"])

    def stop(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.came)
        shutil.rmtree(self.folder, ignore_errors=True)
