"""Serves the page of util/verify_images.py for a test, and asks it as the page's script does, or in a real browser."""
import http.client
import json
import re
import shutil
import signal
import time

import pytest
from commands import Command

WAIT = 30  # seconds until something that should happen at once counts as missing


class Server:
    """A page that is served, by the command with some flags, until stop() or kill().

    Attributes:
        url: what the command printed. port: int. token: str.
    """

    def __init__(self, *flags, **options):
        self._command, self._ended = Command("util/verify_images.py", *flags, **options), False
        wait_for(lambda: "(Ctrl-C ends it)" in self._command.output()[0] or not self._command.is_running())
        output, errors = self._command.output()
        assert "(Ctrl-C ends it)" in output, errors
        self.url, self.port, self.token = re.search(r"(http://[^:]+:(\d+)/\?token=(\S+))", output).groups()

    def ask(self, method, path, body=None, **headers):
        """Sends a request, its headers as given. Returns (status, headers, bytes)."""
        connection = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=WAIT)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def call(self, action, author="ann", window="w", **body):
        """Does what the page's script does for an action. Returns the JSON of the answer, which must be good."""
        status, _, text = self.ask("POST", f"/{action}", json.dumps({"author": author, "window": window, **body}), X_Token=self.token)
        assert status == 200, text
        return json.loads(text)

    def batch(self, author="ann", window="w", held=(), **wanted):
        """The next rows of a window, list of dict."""
        no_filter = {"class_name": "", "verdict": "", "suggested": ""}
        return self.call("batch", author, window, held=list(held), filter={**no_filter, **wanted})["rows"]

    def decide(self, rows, label, author="ann", window="w", right_class=""):
        """Decides on rows that batch() gave."""
        found = [{"row": row["row"], "label": label, "right_class": right_class, "before": row["before"]} for row in rows]
        return self.call("decide", author, window, decisions=found)

    def kill(self):
        """Ends it as kill -9 does."""
        self._ended = True
        self._command.send_signal(signal.SIGKILL)
        self._command.wait()

    def stop(self):
        """Ends it as Ctrl-C does. Returns the finished process."""
        self._ended = True
        self._command.send_signal(signal.SIGINT)
        return self._command.wait(WAIT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self._ended:
            self.kill()


def wait_for(condition):
    """Waits until a condition holds, and returns what it gave; fails after WAIT seconds."""
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return found


def open_browser():
    """A Chromium without a window, driven by selenium; skips the test where either is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1920,1080"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Person:
    """Somebody at the page in a browser, who presses keys and clicks, and waits until the page has answered."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)
        browser.get_log("browser")  # of the page before
        wait_for(lambda: self.find("#ask[open]") or self.text("#message") or self._is_idle())

    def _is_idle(self):
        return self.browser.execute_script("return document.body?.dataset.waiting === '0'")

    def find(self, selector):
        """The elements that a CSS selector finds."""
        return self.browser.find_elements("css selector", selector)

    def text(self, selector):
        """The text of the first element that a CSS selector finds."""
        return self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)

    def wait_idle(self):
        """Waits until the page has done all that it was asked for."""
        wait_for(self._is_idle)

    def press(self, *keys):
        """Presses keys, one after the other; of several characters, all but the last are held meanwhile.

        They go to the page, as those of a keyboard: an element that the page has just hidden would refuse them.
        """
        from selenium.webdriver import ActionChains

        for *held, key in keys:
            actions = ActionChains(self.browser)
            for modifier in held:
                actions.key_down(modifier)
            actions.send_keys(key)
            for modifier in held:
                actions.key_up(modifier)
            actions.perform()
            self.wait_idle()

    def click(self, element):
        """Clicks an element, or the first that a CSS selector finds."""
        (self.find(element)[0] if isinstance(element, str) else element).click()
        self.wait_idle()

    def say_name(self, name):
        """Answers the question for the name."""
        wait_for(lambda: self.find("#ask[open]"))
        self.find("#name")[0].send_keys(name + "\n")
        self.wait_idle()

    def wait_message(self, text):
        """Waits until the page says something."""
        wait_for(lambda: text in self.text("#message"))

    def accept_alert(self, text):
        """Agrees to a question of the browser."""
        alert = wait_for(self._alert)
        assert alert.text == text
        alert.accept()
        self.wait_idle()

    def _alert(self):
        from selenium.common.exceptions import NoAlertPresentException

        try:
            return self.browser.switch_to.alert
        except NoAlertPresentException:
            return None

    def choose(self, selector, value):
        """Chooses an entry of a list."""
        from selenium.webdriver.support.ui import Select

        Select(self.find(selector)[0]).select_by_value(value)
        self.wait_idle()

    def cells(self):
        """The images of the grid: list of (element, key, label or None)."""
        script = "return [...document.querySelectorAll('.cell')].map((c) => [c, c.getAttribute('aria-label'), c.dataset.label || null])"
        return self.browser.execute_script(script)

    def errors(self):
        """What the browser complained of, but for the icon that no page has."""
        return [entry["message"] for entry in self.browser.get_log("browser") if "favicon" not in entry["message"]]
