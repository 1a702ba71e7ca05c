"""Tests Chat of the official OpenAI SDK with backends of each language."""

import json

import openai
from pydantic import BaseModel

from backends import GATEWAY, KEY, NAMES, REASONING, SCHEMA, TEXT, Backend, on_each_backend, slow_stats

SDK = openai.OpenAI(base_url=f"{GATEWAY}/v1", api_key=KEY, max_retries=0, timeout=20)
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}} for name in NAMES]


class City(BaseModel):
    city: str
    people: int


def user(text):
    return {"role": "user", "content": text}


@on_each_backend
class Chat(Backend):
    def ask(self, text="Hello", kind="m", **more):
        return SDK.chat.completions.create(model=self.model(kind), messages=[user(text)], **more)

    def test_answer(self):
        answer = self.ask()
        choice = answer.choices[0]
        self.assertEqual((choice.message.role, choice.message.content), ("assistant", TEXT))
        self.assertEqual((answer.object, choice.finish_reason), ("chat.completion", "stop"))
        self.assertEqual(answer.model, self.model())
        usage = answer.usage
        self.assertEqual(usage.completion_tokens, 20)
        self.assertGreater(usage.prompt_tokens, 5)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + 20)

    def test_cached_usage(self):
        text = "word " * 100
        first, second = (self.ask(text, kind="cached").usage for _ in range(2))
        self.assertGreater(second.prompt_tokens_details.cached_tokens, 50)
        self.assertEqual(second.prompt_tokens, first.prompt_tokens)
        streamed = list(self.ask(text, kind="cached", stream=True, stream_options={"include_usage": True}))
        self.assertEqual(streamed[-1].usage.prompt_tokens_details, second.prompt_tokens_details)
        self.assertEqual(streamed[-1].usage.prompt_tokens, first.prompt_tokens)

    def test_request_id(self):
        raw = SDK.chat.completions.with_raw_response.create(model=self.model(), messages=[user("Hello")])
        self.assertTrue(raw.request_id.startswith("req_"))
        self.assertEqual(raw.parse()._request_id, raw.request_id)
        self.assertEqual(raw.headers["request-id"], raw.request_id)

    def test_stream(self):
        chunks = list(self.ask(stream=True))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), TEXT)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason], ["stop"])
        self.assertTrue(all(c.usage is None for c in chunks), "nothing was asked for")
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_stream_helper(self):
        options = {"include_usage": True}
        request = {"model": self.model(), "messages": [user("Hello")], "stream_options": options}
        with SDK.chat.completions.stream(**request) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("content.delta", events)
        self.assertEqual(events.count("content.done"), 1)
        self.assertEqual(final.choices[0].message.content, TEXT)
        self.assertEqual(final.choices[0].finish_reason, "stop")
        self.assertEqual(final.usage.completion_tokens, 20)

    def test_tool_loop(self):
        messages = [user("Please call get_weather")]
        request = {"model": self.model(), "tools": TOOLS}
        choice = SDK.chat.completions.create(messages=messages, **request).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        (call,) = choice.message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})
        messages.append(choice.message)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "12C"})
        choice = SDK.chat.completions.create(messages=messages, **request).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), ("The tool said: 12C", "stop"))
        self.assertIsNone(choice.message.tool_calls)

    def test_parallel_calls_in_a_stream(self):
        text = "call get_weather and call get_time"
        with SDK.chat.completions.stream(
            model=self.model(), messages=[user(text)], tools=TOOLS
        ) as stream:
            done = [e.name for e in stream if e.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion()
        self.assertEqual(done, NAMES)
        choice = final.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        calls = choice.message.tool_calls
        self.assertEqual([call.function.name for call in calls], NAMES)
        self.assertEqual([json.loads(call.function.arguments) for call in calls], [{"city": "Paris"}] * 2)
        self.assertEqual(len({call.id for call in calls}), 2)
        messages = [user(text), choice.message.to_dict()]
        for call, result in zip(calls, ["12C", "noon"]):
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        final = SDK.chat.completions.create(model=self.model(), messages=messages, tools=TOOLS)
        self.assertEqual(final.choices[0].message.content, "The tool said: 12C\nnoon")

    def test_one_call_only(self):
        answer = self.ask("call get_time, call get_weather", tools=TOOLS, parallel_tool_calls=False)
        self.assertEqual([c.function.name for c in answer.choices[0].message.tool_calls], ["get_time"])

    def test_tool_choice(self):
        named = {"type": "function", "function": {"name": "get_time"}}
        for choice, names in [(named, ["get_time"]), ("required", ["get_weather"]), ("none", []), ("auto", [])]:
            with self.subTest(choice):
                message = self.ask(tools=TOOLS, tool_choice=choice).choices[0].message
                self.assertEqual([c.function.name for c in message.tool_calls or []], names)

    def test_structured_output(self):
        request = {"model": self.model(), "messages": [user("Where?")], "response_format": City}
        answer = SDK.chat.completions.parse(**request)
        self.assertEqual(answer.choices[0].message.parsed, City(city="Paris", people=0))
        with SDK.chat.completions.stream(**request) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.parsed, City(city="Paris", people=0))

    def test_reasoning(self):
        # OpenAI has no member for it. vLLM's is `reasoning`.
        answer = self.ask("think")
        message = answer.choices[0].message
        self.assertEqual(message.content, TEXT)
        self.assertEqual(message.reasoning, REASONING)
        chunks = list(self.ask("think", stream=True))
        deltas = [c.choices[0].delta for c in chunks]
        self.assertEqual("".join(getattr(d, "reasoning", None) or "" for d in deltas), REASONING)
        self.assertEqual("".join(d.content or "" for d in deltas), TEXT)
        if not self.speaks("messages") or self.speaks("chat"):
            # Messages have no count of it.
            self.assertEqual(answer.usage.completion_tokens_details.reasoning_tokens, 11)

    def test_reasoning_goes_back(self):
        first = self.ask("think and call get_weather", tools=TOOLS).choices[0].message
        (call,) = first.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": "12C"}
        messages = [user("think and call get_weather"), first.to_dict(), result]
        answer = SDK.chat.completions.create(model=self.model(), messages=messages, tools=TOOLS)
        self.assertEqual(answer.choices[0].message.content, "The tool said: 12C")

    def test_max_tokens(self):
        for name in ["max_tokens", "max_completion_tokens"]:
            with self.subTest(name):
                text, tokens = self.limited("chat")
                answer = self.ask(**{name: 5})
                self.assertEqual(answer.choices[0].message.content, text)
                self.assertEqual(answer.choices[0].finish_reason, "length")
                self.assertEqual(answer.usage.completion_tokens, tokens)
                chunks = list(self.ask(stream=True, **{name: 5}))
                self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_agents(self):
        for shape in self.shapes("chat/opencode-*.request.json"):
            model, messages = shape.pop("model"), shape.pop("messages")
            with SDK.chat.completions.stream(model=model, messages=messages, extra_body=shape) as stream:
                first = stream.get_final_completion()
            self.assertEqual(first.choices[0].message.content, TEXT)
            self.assertEqual(first.choices[0].finish_reason, "stop")
            self.assertEqual(first.usage.completion_tokens, 20)
            messages += [first.choices[0].message.to_dict(), user("call glob")]
            with SDK.chat.completions.stream(model=model, messages=messages, extra_body=shape) as stream:
                second = stream.get_final_completion().choices[0]
            if "tools" in shape:
                self.assertEqual([c.function.name for c in second.message.tool_calls], ["glob"])
                self.assertEqual(second.finish_reason, "tool_calls")
            else:
                self.assertEqual(second.message.content, TEXT)

    def test_abort(self):
        before = slow_stats()["aborted"]
        stream = self.ask(kind="slow", stream=True)
        next(iter(stream))
        stream.close()
        self.until_aborted(before)

    def test_only_chat_has_these(self):
        requests = [
            lambda: SDK.completions.create(model=self.model(), prompt="x", max_tokens=2).choices[0].text,
            lambda: len(SDK.embeddings.create(model=self.model(), input="x").data),
        ]
        if self.speaks("chat"):
            self.assertEqual([request() for request in requests], ["Hello!", 1])
            self.assertEqual(len(self.ask(n=2).choices), 2)
        else:
            # A completion of one prompt is asked for as a chat; in Responses 16 tokens are the fewest.
            self.assertTrue(requests[0]().startswith("Hello!"))
            with self.assertRaises(openai.BadRequestError) as caught:
                requests[1]()
            self.assertIn("No backend of this model serves /v1/", caught.exception.message)
            with self.assertRaises(openai.BadRequestError) as caught:
                self.ask(n=2)
            self.assertEqual(caught.exception.param, "n")


@on_each_backend
class Errors(Backend):
    def check(self, error, status, kind="m", text="Hello", **more):
        for stream in [False, True]:
            with self.assertRaises(error) as caught:
                list(SDK.chat.completions.create(
                    model=self.model(kind), messages=[user(text)], stream=stream, **more
                ))
            self.assertEqual(caught.exception.status_code, status)
            self.assertTrue(caught.exception.request_id.startswith("req_"))
            self.assertTrue(caught.exception.message)
        return caught.exception

    def test_unknown_model(self):
        error = self.check(openai.NotFoundError, 404, kind="none")
        self.assertEqual((error.code, error.param), ("model_not_found", "model"))

    def test_wrong_key(self):
        wrong = SDK.with_options(api_key="sk-wrong")
        with self.assertRaises(openai.AuthenticationError) as caught:
            wrong.chat.completions.create(model=self.model(), messages=[user("Hello")])
        self.assertEqual(caught.exception.status_code, 401)

    def test_bad_request(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            SDK.post("/chat/completions", cast_to=object, content=b"{", options={})
        self.assertEqual(caught.exception.code, "invalid_json")
        with self.assertRaises(openai.BadRequestError) as caught:
            SDK.post("/chat/completions", cast_to=object, body={"model": self.model()})
        self.assertIn("messages", str(caught.exception))

    def test_overload(self):
        error = self.check(openai.InternalServerError, 503, kind="busy")
        self.assertIn("busy", error.message)

    def test_rate_limit(self):
        error = self.check(openai.RateLimitError, 429, kind="limited")
        self.assertEqual(error.response.headers["retry-after"], "7")

    def test_context_too_long(self):
        error = self.check(openai.BadRequestError, 400, kind="short", text="word " * 2000, max_tokens=10)
        self.assertIn("maximum context length", error.message)
        if not self.speaks("chat"):
            self.assertEqual(error.code, "context_length_exceeded")

    def test_error_in_a_stream(self):
        text = ""
        with self.assertRaises(openai.APIError) as caught:
            stream = SDK.chat.completions.create(
                model=self.model("broken"), messages=[user("Hello")], stream=True
            )
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        self.assertEqual(text, TEXT[: len(text)])
        self.assertGreater(len(text), 5)
        self.assertTrue(caught.exception.message)


@on_each_backend
class Models(Backend):
    def test_list(self):
        models = {model.id: model for model in SDK.models.list()}
        self.assertEqual(models[self.model()].object, "model")
        self.assertEqual(SDK.models.retrieve(self.model()).id, self.model())
        with self.assertRaises(openai.NotFoundError):
            SDK.models.retrieve("unknown")
