"""Tests the official Anthropic SDK with backends of each language.

Version 0 sends `x-api-key` and the API version 2023-06-01, version 2 a bearer token and 2026-10-21.
"""

import os

import anthropic
from pydantic import BaseModel

from backends import GATEWAY, KEY, NAMES, REASONING, SCHEMA, TEXT, Backend, on_each_backend, slow_stats

# The SDK takes more of its settings from there.
for name in [name for name in os.environ if name.startswith("ANTHROPIC_")]:
    del os.environ[name]

OLD = anthropic.__version__.startswith("0.")
SDK = anthropic.Anthropic(base_url=GATEWAY, api_key=KEY, max_retries=0, timeout=20)
TOOLS = [{"name": name, "input_schema": SCHEMA} for name in NAMES]


class City(BaseModel):
    city: str
    people: int


def user(content):
    return {"role": "user", "content": content}


def of_kind(message, kind):
    return [block for block in message.content if block.type == kind]


def results(message, texts):
    calls = of_kind(message, "tool_use")
    assert len(calls) == len(texts), message
    blocks = [{"type": "tool_result", "tool_use_id": c.id, "content": t} for c, t in zip(calls, texts)]
    return [{"role": "assistant", "content": message.content}, user(blocks)]


@on_each_backend
class Messages(Backend):
    def ask(self, text="Hello", kind="m", max_tokens=200, **more):
        return SDK.messages.create(
            model=self.model(kind), max_tokens=max_tokens, messages=[user(text)], **more
        )

    def stream(self, messages, max_tokens=200, kind="m", **more):
        """The events of the helper, and the message that it makes of them."""
        with SDK.messages.stream(
            model=self.model(kind), max_tokens=max_tokens, messages=messages, **more
        ) as stream:
            events = list(stream)
            self.assertTrue(stream.request_id.startswith("req_"))
            final = stream.get_final_message()
        self.assertEqual(events[0].type, "message_start")
        self.assertEqual([e.type for e in events if e.type == "message_stop"], [events[-1].type])
        return events, final

    def test_what_this_version_sends(self):
        raw = SDK.messages.with_raw_response.create(
            model=self.model(), max_tokens=5, messages=[user("Hello")]
        )
        sent = raw.http_request.headers
        if OLD:
            self.assertEqual((sent["anthropic-version"], sent["x-api-key"]), ("2023-06-01", KEY))
            self.assertNotIn("authorization", sent)
        else:
            self.assertEqual((sent["anthropic-version"], sent["authorization"]), ("2026-10-21", f"Bearer {KEY}"))
            self.assertNotIn("x-api-key", sent)

    def test_answer(self):
        answer = self.ask()
        self.assertEqual((answer.type, answer.role, answer.stop_reason), ("message", "assistant", "end_turn"))
        (block,) = answer.content
        self.assertEqual((block.type, block.text), ("text", TEXT))
        self.assertEqual(answer.model, self.model())
        self.assertIsNone(answer.stop_sequence)
        self.assertEqual(answer.usage.output_tokens, 20)
        self.assertGreater(answer.usage.input_tokens, 5)

    def test_cached_usage(self):
        text = "word " * 100
        first, second = (self.ask(text, kind="cached").usage for _ in range(2))
        _, final = self.stream([user(text)], kind="cached")
        total = first.input_tokens + (first.cache_read_input_tokens or 0)
        for usage in [second, final.usage]:
            self.assertGreater(usage.cache_read_input_tokens, 50)
            # They are not among the others.
            self.assertEqual(usage.input_tokens + usage.cache_read_input_tokens, total)

    def test_request_id(self):
        raw = SDK.messages.with_raw_response.create(
            model=self.model(), max_tokens=5, messages=[user("Hello")]
        )
        self.assertTrue(raw.headers["request-id"].startswith("req_"))
        self.assertEqual(raw.parse()._request_id, raw.headers["request-id"])

    def test_system_and_blocks(self):
        blocks = [{"type": "text", "text": "call"}, {"type": "text", "text": "get_time"}]
        system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
        (call,) = of_kind(self.ask(blocks, system=system, tools=TOOLS), "tool_use")
        self.assertEqual(call.name, "get_time")

    def test_stream(self):
        events, final = self.stream([user("Hello")])
        texts = [event.text for event in events if event.type == "text"]
        self.assertEqual("".join(texts), TEXT)
        self.assertEqual(len(texts), 20)
        self.assertEqual(final.content[0].text, TEXT)
        self.assertEqual((final.stop_reason, final.usage.output_tokens), ("end_turn", 20))
        self.assertGreater(final.usage.input_tokens, 5)

    def test_raw_stream(self):
        kinds = [event.type for event in self.ask(stream=True) if event.type != "ping"]
        self.assertEqual(list(dict.fromkeys(kinds)), [
            "message_start", "content_block_start", "content_block_delta", "content_block_stop",
            "message_delta", "message_stop",
        ])
        self.assertEqual(len(kinds), 25)

    def test_a_first_token_that_is_late(self):
        with SDK.messages.with_streaming_response.create(
            model=self.model("late"), max_tokens=200, messages=[user("Hello")], stream=True
        ) as raw:
            first = next(raw.iter_lines())
        # Responses begin before the first token.
        self.assertEqual(first, "event: message_start" if self.language == "responses" else "event: ping")
        # The SDK ignores what comes meanwhile.
        _, final = self.stream([user("Hello")], kind="late")
        self.assertEqual(final.content[0].text, TEXT)

    def test_tool_loop(self):
        text = "Please call get_weather"
        answer = self.ask(text, tools=TOOLS)
        self.assertEqual(answer.stop_reason, "tool_use")
        (call,) = of_kind(answer, "tool_use")
        self.assertEqual((call.name, call.input), ("get_weather", {"city": "Paris"}))
        messages = [user(text), *results(answer, ["12C"])]
        answer = SDK.messages.create(model=self.model(), max_tokens=200, messages=messages, tools=TOOLS)
        self.assertEqual((answer.content[0].text, answer.stop_reason), ("The tool said: 12C", "end_turn"))

    def test_tool_runner(self):
        asked = []

        @anthropic.beta_tool
        def get_weather(city: str) -> str:
            """Gets the weather.

            Args:
                city: Where.
            """
            asked.append(city)
            return "12C"

        runner = SDK.beta.messages.tool_runner(
            model=self.model(), max_tokens=200, tools=[get_weather], messages=[user("call get_weather")]
        )
        final = runner.until_done()
        self.assertEqual(asked, ["Paris"])
        self.assertEqual(final.content[0].text, "The tool said: 12C")

    def test_parallel_calls_in_a_stream(self):
        text = "call get_weather and call get_time"
        events, final = self.stream([user(text)], tools=TOOLS)
        calls = of_kind(final, "tool_use")
        self.assertEqual([(call.name, call.input) for call in calls], [(name, {"city": "Paris"}) for name in NAMES])
        self.assertEqual(len({call.id for call in calls}), 2)
        self.assertEqual(final.stop_reason, "tool_use")
        self.assertTrue(any(event.type == "input_json" for event in events))
        turns = [user(text), *results(final, ["12C", "noon"])]
        _, final = self.stream(turns, tools=TOOLS)
        self.assertEqual(final.content[0].text, "The tool said: 12C\nnoon")

    def test_one_call_only(self):
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        answer = self.ask("call get_time, call get_weather", tools=TOOLS, tool_choice=choice)
        self.assertEqual([call.name for call in of_kind(answer, "tool_use")], ["get_time"])

    def test_tool_choice(self):
        for choice, names in [
            ({"type": "tool", "name": "get_time"}, ["get_time"]),
            ({"type": "any"}, ["get_weather"]),
            ({"type": "none"}, []),
            ({"type": "auto"}, []),
        ]:
            with self.subTest(choice):
                answer = self.ask(tools=TOOLS, tool_choice=choice)
                self.assertEqual([call.name for call in of_kind(answer, "tool_use")], names)
                self.assertEqual(answer.stop_reason, "tool_use" if names else "end_turn")

    def test_structured_output(self):
        request = {"model": self.model(), "max_tokens": 200, "messages": [user("Where?")], "output_format": City}
        self.assertEqual(SDK.messages.parse(**request).parsed_output, City(city="Paris", people=0))
        with SDK.messages.stream(**request) as stream:
            self.assertEqual(stream.get_final_message().parsed_output, City(city="Paris", people=0))

    def test_reasoning(self):
        thinking = {"type": "enabled", "budget_tokens": 1024}
        answer = self.ask(thinking=thinking, max_tokens=2000)
        events, final = self.stream([user("think")], max_tokens=2000)
        for one in [answer, final]:
            self.assertEqual([block.type for block in one.content], ["thinking", "text"])
            self.assertEqual(one.content[0].thinking, REASONING)
            self.assertIsInstance(one.content[0].signature, str)
            self.assertEqual(one.content[1].text, TEXT)
            self.assertEqual(one.usage.output_tokens, 31)
        self.assertEqual("".join(e.thinking for e in events if e.type == "thinking"), REASONING)

    def test_reasoning_goes_back(self):
        text = "call get_weather"
        request = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "tools": TOOLS, "max_tokens": 2000}
        _, first = self.stream([user(text)], **request)
        self.assertEqual([block.type for block in first.content], ["thinking", "tool_use"])
        _, second = self.stream([user(text), *results(first, ["12C"])], **request)
        self.assertEqual(of_kind(second, "text")[0].text, "The tool said: 12C")

    def test_max_tokens(self):
        text, tokens = self.limited("messages")
        _, final = self.stream([user("Hello")], max_tokens=5)
        for answer in [self.ask(max_tokens=5), final]:
            self.assertEqual((answer.content[0].text, answer.stop_reason), (text, "max_tokens"))
            self.assertEqual(answer.usage.output_tokens, tokens)

    def test_count_tokens(self):
        raw = SDK.messages.with_raw_response.count_tokens(
            model=self.model(), messages=[user("Hello")], tools=TOOLS, system="Be brief."
        )
        count = raw.parse().input_tokens
        self.assertGreater(count, 5)
        # No language of the backend is without it: beside Chat vLLM has `/tokenize`.
        self.assertNotIn("x-llmproxy-estimate", raw.headers)
        if self.speaks("messages"):
            answer = self.ask(tools=TOOLS, system="Be brief.")
            self.assertEqual(count, answer.usage.input_tokens)

    def test_agents(self):
        for shape in self.shapes("messages/claude-*.request.json"):
            turns = shape.pop("messages")
            answered = any(m["role"] == "assistant" for m in turns)
            request = {"model": shape.pop("model"), "max_tokens": shape.pop("max_tokens")}

            def ask():
                with SDK.beta.messages.stream(messages=turns, extra_body=shape, **request) as stream:
                    return stream.get_final_message()

            first = ask()
            self.assertEqual(first.stop_reason, "end_turn")
            self.assertEqual([block.type for block in first.content], ["thinking", "text"])
            text = first.content[1].text
            self.assertTrue(text.startswith("The tool said: ") if answered else text == TEXT, text)
            turns += [{"role": "assistant", "content": first.content}, user("call Agent")]
            second = ask()
            self.assertEqual(second.stop_reason, "tool_use")
            self.assertEqual([call.name for call in of_kind(second, "tool_use")], ["Agent"])
            turns += results(second, ["done"])
            self.assertEqual(of_kind(ask(), "text")[0].text, "The tool said: done")

    def test_abort(self):
        before = slow_stats()["aborted"]
        stream = self.ask(kind="slow", stream=True)
        for event in stream:
            if event.type == "content_block_delta":
                break
        stream.close()
        self.until_aborted(before)


@on_each_backend
class Errors(Backend):
    def check(self, error, status, kind, model="m", text="Hello", max_tokens=10):
        for stream in [False, True]:
            with self.assertRaises(error) as caught:
                list(SDK.messages.create(
                    model=self.model(model), max_tokens=max_tokens, messages=[user(text)], stream=stream
                ))
            caught = caught.exception
            self.assertEqual((caught.status_code, caught.body["type"]), (status, "error"))
            self.assertEqual(caught.body["error"]["type"], kind)
            self.assertTrue(caught.request_id.startswith("req_"))
        return caught.body["error"]["message"]

    def test_unknown_model(self):
        self.assertIn(self.model("none"), self.check(anthropic.NotFoundError, 404, "not_found_error", "none"))

    def test_wrong_key(self):
        with self.assertRaises(anthropic.AuthenticationError) as caught:
            SDK.with_options(api_key="sk-wrong").messages.create(
                model=self.model(), max_tokens=5, messages=[user("Hello")]
            )
        self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")

    def test_bad_request(self):
        for body in [{"max_tokens": 5}, {"messages": [user("Hello")]}]:
            with self.subTest(body), self.assertRaises(anthropic.BadRequestError) as caught:
                SDK.post("/v1/messages", cast_to=object, body=body | {"model": self.model()})
            if not self.speaks("messages"):
                self.assertEqual(caught.exception.body["error"]["type"], "invalid_request_error")

    def test_overload(self):
        if self.speaks("messages"):
            # The backend's own error in the client's language is passed as it is.
            message = self.check(anthropic.APIStatusError, 503, "Service Unavailable", "busy")
        else:
            message = self.check(anthropic._exceptions.OverloadedError, 529, "overloaded_error", "busy")
        self.assertIn("busy", message)

    def test_rate_limit(self):
        kind = "RateLimitError" if self.speaks("messages") else "rate_limit_error"
        self.check(anthropic.RateLimitError, 429, kind, "limited")

    def test_context_too_long(self):
        kind = "invalid_request_error"
        message = self.check(anthropic.BadRequestError, 400, kind, "short", "word " * 2000)
        # Claude Code compacts at these words, which vLLM does not say by itself.
        self.assertRegex(message, r"^prompt is too long: 201 tokens > 200 maximum")

    def test_error_in_a_stream(self):
        text = ""
        with self.assertRaises(anthropic.APIError) as caught:
            for event in SDK.messages.create(
                model=self.model("broken"), max_tokens=200, messages=[user("Hello")], stream=True
            ):
                if event.type == "content_block_delta":
                    text += event.delta.text
        self.assertGreater(len(text), 5)
        self.assertEqual(text, TEXT[: len(text)])
        self.assertEqual(caught.exception.body["type"], "error")


@on_each_backend
class Models(Backend):
    def test_list(self):
        models = {model.id: model for model in SDK.models.list()}
        for model in [models[self.model()], SDK.models.retrieve(self.model())]:
            self.assertEqual((model.type, model.id), ("model", self.model()))
            self.assertTrue(model.display_name)
            self.assertGreaterEqual(model.created_at.year, 1970)
        with self.assertRaises(anthropic.NotFoundError) as caught:
            SDK.models.retrieve("unknown")
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")

    def test_pages(self):
        pages = SDK.models.list(limit=5)
        self.assertEqual(len(pages.data), 5)
        self.assertTrue(pages.has_more)
        every = [model.id for model in pages]
        self.assertEqual(len(set(every)), len(every))
        self.assertIn(self.model(), every)
