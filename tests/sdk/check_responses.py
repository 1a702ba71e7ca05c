"""Tests Responses of the official OpenAI SDK with backends of each language.

The SDK's stream helper raises an error if an event comes before the one that it depends on.
"""

import json

import openai
from pydantic import BaseModel

from backends import GATEWAY, KEY, NAMES, REASONING, SCHEMA, TEXT, Backend, on_each_backend, slow_stats

SDK = openai.OpenAI(base_url=f"{GATEWAY}/v1", api_key=KEY, max_retries=0, timeout=20)
TOOLS = [
    {"type": "function", "name": name, "parameters": SCHEMA, "strict": True} for name in NAMES
]


class City(BaseModel):
    city: str
    people: int


def user(text):
    return {"role": "user", "content": text}


def final_of(**request):
    """The events of a stream, and the response at its end."""
    with SDK.responses.stream(**request) as stream:
        events = list(stream)
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers)), numbers
    assert events[0].type == "response.created", events[0]
    ends = [e for e in events if e.type in ("response.completed", "response.incomplete", "response.failed")]
    assert ends == events[-1:], [event.type for event in events]
    return events, ends[0].response


def of_kind(response, kind):
    return [item for item in response.output if item.type == kind]


@on_each_backend
class Responses(Backend):
    def ask(self, text="Hello", kind="m", **more):
        return SDK.responses.create(model=self.model(kind), input=text, **more)

    def stream(self, text="Hello", kind="m", **more):
        return final_of(model=self.model(kind), input=text, **more)

    def test_answer(self):
        answer = self.ask()
        self.assertEqual((answer.object, answer.status), ("response", "completed"))
        self.assertTrue(answer.id.startswith("resp_"))
        self.assertEqual(answer.output_text, TEXT)
        (item,) = answer.output
        self.assertEqual((item.type, item.role, item.status), ("message", "assistant", "completed"))
        self.assertEqual(answer.model, self.model())
        self.assertIsNone(answer.error)
        self.assertIsNone(answer.incomplete_details)
        usage = answer.usage
        self.assertEqual((usage.output_tokens, usage.output_tokens_details.reasoning_tokens), (20, 0))
        self.assertEqual(usage.input_tokens_details.cached_tokens, 0)
        self.assertGreater(usage.input_tokens, 5)
        self.assertEqual(usage.total_tokens, usage.input_tokens + 20)

    def test_cached_usage(self):
        text = "word " * 100
        first, second = (self.ask(text, kind="cached").usage for _ in range(2))
        _, final = self.stream(text, kind="cached")
        for usage in [second, final.usage]:
            self.assertGreater(usage.input_tokens_details.cached_tokens, 50)
            self.assertEqual(usage.input_tokens, first.input_tokens)

    def test_request_id(self):
        raw = SDK.responses.with_raw_response.create(model=self.model(), input="Hello")
        self.assertTrue(raw.request_id.startswith("req_"))
        self.assertEqual(raw.parse()._request_id, raw.request_id)

    def test_instructions_and_items(self):
        parts = [{"type": "input_text", "text": "call"}, {"type": "input_text", "text": "get_time"}]
        answer = self.ask(
            [{"role": "developer", "content": "Be brief."}, {"type": "message", "role": "user", "content": parts}],
            instructions="Answer.", tools=TOOLS,
        )
        (call,) = of_kind(answer, "function_call")
        self.assertEqual(call.name, "get_time")

    def test_stream(self):
        events, final = self.stream()
        self.assertEqual(final.status, "completed")
        self.assertEqual(final.output_text, TEXT)
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        self.assertEqual("".join(deltas), TEXT)
        self.assertEqual(len(deltas), 20)
        kinds = list(dict.fromkeys(event.type for event in events))
        self.assertEqual(kinds, ["response." + kind for kind in [
            "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
            "output_text.done", "content_part.done", "output_item.done", "completed",
        ]])
        self.assertEqual(final.usage.output_tokens, 20)

    def test_a_first_token_that_is_late(self):
        # The SDK ignores what comes meanwhile.
        _, final = self.stream(kind="late")
        self.assertEqual(final.output_text, TEXT)

    def test_tool_loop(self):
        text = "Please call get_weather"
        request = {"model": self.model(), "tools": TOOLS}
        answer = SDK.responses.create(input=text, **request)
        (call,) = of_kind(answer, "function_call")
        self.assertEqual((call.name, call.status), ("get_weather", "completed"))
        self.assertEqual(json.loads(call.arguments), {"city": "Paris"})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "12C"}
        answer = SDK.responses.create(input=[user(text), *answer.output, result], **request)
        self.assertEqual((answer.output_text, answer.status), ("The tool said: 12C", "completed"))
        self.assertEqual(of_kind(answer, "function_call"), [])

    def test_parallel_calls_in_a_stream(self):
        text = "call get_weather and call get_time"
        events, final = self.stream(text, tools=TOOLS)
        calls = of_kind(final, "function_call")
        self.assertEqual([call.name for call in calls], NAMES)
        self.assertEqual(len({call.call_id for call in calls}), 2)
        self.assertEqual([call.parsed_arguments for call in calls], [{"city": "Paris"}] * 2)
        done = [e.arguments for e in events if e.type == "response.function_call_arguments.done"]
        self.assertEqual([json.loads(arguments) for arguments in done], [{"city": "Paris"}] * 2)
        turn = [item.to_dict() for item in final.output]
        for item in turn:
            # Of the helper, not of the language.
            item.pop("parsed_arguments", None)
        for call, result in zip(calls, ["12C", "noon"]):
            turn.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
        _, final = self.stream([user(text), *turn], tools=TOOLS)
        self.assertEqual(final.output_text, "The tool said: 12C\nnoon")

    def test_one_call_only(self):
        answer = self.ask("call get_time, call get_weather", tools=TOOLS, parallel_tool_calls=False)
        self.assertEqual([c.name for c in of_kind(answer, "function_call")], ["get_time"])
        self.assertFalse(answer.parallel_tool_calls)

    def test_tool_choice(self):
        named = {"type": "function", "name": "get_time"}
        for choice, names in [(named, ["get_time"]), ("required", ["get_weather"]), ("none", []), ("auto", [])]:
            with self.subTest(choice):
                answer = self.ask(tools=TOOLS, tool_choice=choice)
                self.assertEqual([c.name for c in of_kind(answer, "function_call")], names)

    def test_structured_output(self):
        request = {"model": self.model(), "input": "Where?", "text_format": City}
        self.assertEqual(SDK.responses.parse(**request).output_parsed, City(city="Paris", people=0))
        _, final = final_of(**request)
        self.assertEqual(final.output_parsed, City(city="Paris", people=0))

    def test_reasoning(self):
        answer = self.ask("think")
        events, final = self.stream("think")
        for one in [answer, final]:
            self.assertEqual([item.type for item in one.output], ["reasoning", "message"])
            self.assertEqual([c.text for c in one.output[0].content], [REASONING])
            self.assertEqual(one.output[0].summary, [], "none is invented")
            self.assertEqual(one.output_text, TEXT)
            if self.language != "messages":
                # Messages have no count of it.
                self.assertEqual(one.usage.output_tokens_details.reasoning_tokens, 11)
        deltas = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
        self.assertEqual("".join(deltas), REASONING)

    def test_reasoning_goes_back(self):
        text = "think and call get_weather"
        first = self.ask(text, tools=TOOLS)
        self.assertEqual([item.type for item in first.output], ["reasoning", "function_call"])
        result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "12C"}
        answer = self.ask([user(text), *first.output, result], tools=TOOLS)
        self.assertEqual(answer.output_text, "The tool said: 12C")

    def test_max_tokens(self):
        text, tokens = self.limited("responses")
        _, final = self.stream(max_output_tokens=5)
        for answer in [self.ask(max_output_tokens=5), final]:
            self.assertEqual((answer.output_text, answer.status), (text, "incomplete"))
            self.assertEqual(answer.incomplete_details.reason, "max_output_tokens")
            self.assertEqual(answer.usage.output_tokens, tokens)

    def test_agents(self):
        for shape in self.shapes("responses/codex-*.request.json"):
            model, turns = shape.pop("model"), shape.pop("input")
            _, first = final_of(model=model, input=turns, extra_body=shape)
            self.assertEqual(first.status, "completed")
            self.assertGreater(first.usage.output_tokens, 0)
            last = turns[-1]
            if last["type"].endswith("_output"):
                self.assertTrue(first.output_text.startswith("The tool said: "))
            else:
                self.assertEqual(first.output_text, TEXT)
            turns += [item.to_dict() for item in first.output]
            turns.append({"type": "message", **user("call exec_command")})
            _, second = final_of(model=model, input=turns, extra_body=shape)
            (call,) = of_kind(second, "function_call")
            self.assertEqual(call.name, "exec_command")
            turns += [item.to_dict() for item in second.output]
            turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "done"})
            _, third = final_of(model=model, input=turns, extra_body=shape)
            self.assertEqual(third.output_text, "The tool said: done")

    def test_abort(self):
        before = slow_stats()["aborted"]
        stream = self.ask(kind="slow", stream=True)
        for event in stream:
            if event.type == "response.output_text.delta":
                break
        stream.close()
        self.until_aborted(before)

    def test_input_tokens(self):
        counted = SDK.responses.input_tokens.count(model=self.model(), input="Hello")
        self.assertEqual(counted.object, "response.input_tokens")
        self.assertGreater(counted.input_tokens, 1)

    def test_stored_responses(self):
        first = self.ask()
        if not self.speaks("responses"):
            # Only a backend that speaks Responses itself can keep them.
            self.assertRaises(openai.NotFoundError, SDK.responses.retrieve, first.id)
            for state in [{"previous_response_id": first.id}, {"conversation": "conv_1"}, {"background": True}]:
                (name,) = state
                with self.subTest(name), self.assertRaises(openai.BadRequestError) as caught:
                    self.ask(**state)
                self.assertEqual(caught.exception.param, name)
            return
        self.assertEqual(SDK.responses.retrieve(first.id).output_text, TEXT)
        (item,) = SDK.responses.input_items.list(first.id)
        self.assertEqual(item.content[0].text, "Hello")
        alone = self.ask("call get_time", tools=TOOLS)
        second = self.ask("call get_time", tools=TOOLS, previous_response_id=first.id)
        self.assertEqual(second.previous_response_id, first.id)
        self.assertGreater(second.usage.input_tokens, alone.usage.input_tokens)
        (call,) = of_kind(second, "function_call")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
        _, third = self.stream([result], previous_response_id=second.id)
        self.assertEqual(third.output_text, "The tool said: noon")
        SDK.responses.delete(first.id)
        self.assertRaises(openai.NotFoundError, SDK.responses.retrieve, first.id)


@on_each_backend
class Errors(Backend):
    def check(self, error, status, kind="m", text="Hello", **more):
        for stream in [False, True]:
            with self.assertRaises(error) as caught:
                list(SDK.responses.create(model=self.model(kind), input=text, stream=stream, **more))
            self.assertEqual(caught.exception.status_code, status)
            self.assertTrue(caught.exception.request_id.startswith("req_"))
        return caught.exception

    def test_unknown_model(self):
        error = self.check(openai.NotFoundError, 404, kind="none")
        self.assertEqual((error.code, error.param), ("model_not_found", "model"))

    def test_wrong_key(self):
        with self.assertRaises(openai.AuthenticationError):
            SDK.with_options(api_key="sk-wrong").responses.create(model=self.model(), input="Hello")

    def test_bad_request(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            SDK.post("/responses", cast_to=object, content=b"{", options={})
        self.assertEqual(caught.exception.code, "invalid_json")
        # What the backend rejects, or before it the translation.
        bodies = [{}] if self.speaks("responses") else [{"input": 5}, {"input": "x", "tools": "none"}]
        for body in bodies:
            with self.subTest(body), self.assertRaises(openai.BadRequestError):
                SDK.post("/responses", cast_to=object, body=body | {"model": self.model()})

    def test_overload(self):
        error = self.check(openai.InternalServerError, 503, kind="busy")
        self.assertIn("busy", error.message)

    def test_rate_limit(self):
        error = self.check(openai.RateLimitError, 429, kind="limited")
        self.assertEqual(error.response.headers["retry-after"], "7")

    def test_context_too_long(self):
        error = self.check(openai.BadRequestError, 400, kind="short", text="word " * 2000, max_output_tokens=20)
        self.assertIn("maximum context length", error.message)
        if not self.speaks("responses"):
            # Codex stops at this word.
            self.assertEqual(error.code, "context_length_exceeded")

    def test_error_in_a_stream(self):
        events, final = final_of(model=self.model("broken"), input="Hello")
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        self.assertGreater(len(text), 5)
        self.assertEqual(text, TEXT[: len(text)])
        self.assertEqual(final.status, "failed")
        self.assertTrue(final.error.message)
