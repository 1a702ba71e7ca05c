"""What the checks of each SDK share: the gateway, its backends, and the way to check each of them.

A backend speaks `chat`, `responses`, `messages`, or `all` of them. For each there are models that behave in one way:
`m-chat` answers, `busy-chat` is overloaded, and so on.
"""

import json
import os
import pathlib
import sys
import time
import unittest
import urllib.request

GATEWAY = os.environ["GATEWAY"]
KEY = "sk-test-0123456789"
LANGUAGES = ["chat", "responses", "messages", "all"]
# The twenty tokens of an answer that nothing limits.
TEXT = "Hello! I am a simulated model, and I count.Hello! I am a simulated model,"
REASONING = "The user wants me to think. I think briefly."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
NAMES = ["get_weather", "get_time"]


def on_each_backend(case):
    """Makes a test case of this class for each backend, of which `language` says what it speaks."""
    module = sys.modules[case.__module__]
    for language in LANGUAGES:
        name = f"{case.__name__}On{language.capitalize()}"
        made = type(name, (case, unittest.TestCase), {"language": language, "__module__": case.__module__})
        setattr(module, name, made)
    return case


class Backend:
    language: str

    def model(self, kind="m"):
        return f"{kind}-{self.language}"

    def speaks(self, language):
        return self.language in (language, "all")

    def limited(self, client):
        """The text and the tokens of an answer to a client of this language with five tokens at most."""
        if self.language == "responses" and client != "responses":
            # Responses have a least number, to which others are raised.
            return "Hello! I am a simulated model, and I count.Hello! I am", 16
        return "Hello! I am a", 5

    def until_aborted(self, before):
        """Waits until the slow backend has noticed that a client has gone."""
        end = time.monotonic() + 20
        while slow_stats()["aborted"] <= before:
            self.assertLess(time.monotonic(), end, "the backend was not told")
            time.sleep(0.02)

    def shapes(self, pattern):
        """Recorded requests of agents, for this backend's model."""
        folder = pathlib.Path(__file__).parent.parent / "fixtures/translate"
        files = sorted(folder.glob(pattern))
        self.assertGreater(len(files), 0)
        for file in files:
            with self.subTest(file.name):
                shape = json.loads(file.read_text())
                # A note of how many tools there were.
                shape.pop("…tools", None)
                shape.pop("stream", None)
                yield shape | {"model": self.model()}


def slow_stats():
    with urllib.request.urlopen(os.environ["SLOW_STATS"]) as answer:
        return json.load(answer)
