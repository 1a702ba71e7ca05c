"""Tests the official OpenAI SDK with a gateway at BASE_URL."""

import asyncio
import json
import os
import time
import unittest
import urllib.request

import openai

BASE_URL = os.environ["BASE_URL"]
HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def client(**more):
    return openai.OpenAI(base_url=BASE_URL, api_key="sk-test-0123456789", max_retries=0, timeout=20, **more)


def ask(model="sim-model", **more):
    return client().chat.completions.create(model=model, messages=HELLO, **more)


class Chat(unittest.TestCase):
    def test_answer(self):
        answer = ask()
        self.assertTrue(answer.choices[0].message.content.startswith("Hello! I am a simulated model"))
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.completion_tokens, 16)
        self.assertTrue(answer._request_id.startswith("req_"))

    def test_stream(self):
        chunks = list(ask(stream=True))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        self.assertTrue(text.startswith("Hello! I am"))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")
        self.assertTrue(all(c.usage is None and c.choices for c in chunks), "nothing was added")

    def test_stream_with_usage(self):
        chunks = list(ask(stream=True, max_tokens=5, stream_options={"include_usage": True}))
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 5)
        self.assertTrue(all(c.usage is None for c in chunks[:-1]), "only where it was asked for")

    def test_stream_helper(self):
        with client().chat.completions.stream(model="sim-model", messages=HELLO) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        self.assertTrue(final.choices[0].message.content.endswith("I am"))

    def test_tools(self):
        call = ask(tools=TOOLS).choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})

    def test_tools_in_a_stream(self):
        arguments, names = "", []
        for chunk in ask(tools=TOOLS, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                arguments += call.function.arguments or ""
                names += [call.function.name] if call.function.name else []
        self.assertEqual((names, json.loads(arguments)), (["get_weather"], {"city": "Paris"}))
        self.assertEqual(chunk.choices[0].finish_reason, "tool_calls")

    def test_other_endpoints(self):
        self.assertEqual(len(client().embeddings.create(model="sim-model", input="x").data), 1)
        text = client().completions.create(model="sim-model", prompt="x", max_tokens=2).choices[0].text
        self.assertEqual(text, "Hello!")
        self.assertIn("sim-model", [model.id for model in client().models.list()])

    def test_parallel(self):
        async def run():
            many = openai.AsyncOpenAI(base_url=BASE_URL, api_key="sk-x", max_retries=0, timeout=20)

            async def one(n):
                stream = await many.chat.completions.create(
                    model="sim-model", messages=HELLO, stream=True, max_tokens=1 + n % 16
                )
                return sum([bool(c.choices[0].delta.content) async for c in stream])

            return await asyncio.gather(*(one(n) for n in range(100)))

        self.assertEqual(asyncio.run(run()), [1 + n % 16 for n in range(100)])

    def test_a_stream_that_waits(self):
        with openai.OpenAI(base_url=BASE_URL, api_key="sk-test", max_retries=0, timeout=20) as sdk:
            first = sdk.chat.completions.create(model="queued", messages=HELLO, stream=True)
            next(iter(first))
            # The SDK ignores the keep-alive comments.
            second = list(ask(model="queued", stream=True))
            self.assertEqual(second[-1].choices[0].finish_reason, "stop")
            self.assertEqual(list(first)[-1].choices[0].finish_reason, "stop")

    def test_a_first_token_that_is_late(self):
        # The SDK ignores the comments sent meanwhile.
        chunks = list(ask(model="late", stream=True))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_abort(self):
        def stats():
            with urllib.request.urlopen(os.environ["SLOW_STATS"]) as answer:
                return json.load(answer)

        stream = ask(model="slow", stream=True)
        next(iter(stream))
        self.assertEqual(stats()["running"], 1)
        stream.close()
        end = time.monotonic() + 20
        while stats()["aborted"] < 1:
            self.assertLess(time.monotonic(), end, "the backend was not told")
            time.sleep(0.02)


class Errors(unittest.TestCase):
    def check(self, error, status, **request):
        with self.assertRaises(error) as caught:
            ask(**request)
        self.assertEqual(caught.exception.status_code, status)
        return caught.exception

    def test_400(self):
        error = self.check(openai.BadRequestError, 400, stream_options={"include_usage": True})
        self.assertEqual(error.param, "stream_options")
        with self.assertRaises(openai.BadRequestError) as caught:
            client().post("/chat/completions", cast_to=object, content=b"{", options={})
        self.assertEqual(caught.exception.code, "invalid_json")

    def test_401(self):
        self.check(openai.AuthenticationError, 401, model="locked")

    def test_403(self):
        error = self.check(openai.PermissionDeniedError, 403, model="forbidden")
        self.assertEqual(error.code, "forbidden")

    def test_404(self):
        error = self.check(openai.NotFoundError, 404, model="unknown")
        self.assertEqual((error.code, error.param), ("model_not_found", "model"))

    def test_413(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            client().chat.completions.create(
                model="sim-model", messages=[{"role": "user", "content": "x" * (3 << 20)}]
            )
        self.assertEqual(caught.exception.status_code, 413)
        self.assertEqual(caught.exception.code, "request_too_large")

    def test_429(self):
        error = self.check(openai.RateLimitError, 429, model="limited", stream=True)
        self.assertEqual(error.response.headers["retry-after"], "7")

    def test_429_of_the_gateway(self):
        ask(model="tight")
        error = self.check(openai.RateLimitError, 429, model="tight")
        self.assertEqual((error.code, error.type), ("rate_limit_exceeded", "requests"))
        self.assertIn("per_model.requests_per_minute allows 1", error.message)
        headers = error.response.headers
        self.assertGreater(int(headers["retry-after"]), 0)
        self.assertEqual(headers["x-ratelimit-limit-requests"], "1")
        self.assertEqual(headers["x-ratelimit-remaining-requests"], "0")

    def test_503(self):
        self.check(openai.InternalServerError, 503, model="busy")

    def test_error_in_a_stream(self):
        text = ""
        with self.assertRaises(openai.APIError) as caught:
            for chunk in ask(model="broken", stream=True):
                text += chunk.choices[0].delta.content or ""
        self.assertTrue(text.startswith("Hello!"))
        self.assertEqual(caught.exception.code, "backend_failed")


if __name__ == "__main__":
    unittest.main()
