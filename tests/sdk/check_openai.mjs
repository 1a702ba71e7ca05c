// Tests the official OpenAI SDK for Node, Chat and Responses, with backends of each language.

import assert from "node:assert/strict";
import { test } from "node:test";

import { GATEWAY, KEY, NAMES, REASONING, SCHEMA, TEXT } from "./backends.mjs";
import { aborted, all, failure, onEachBackend, packages, untilAborted, user } from "./backends.mjs";

const { OpenAI } = packages("openai");
const { zodResponseFormat, zodTextFormat } = packages("openai/helpers/zod");
const { z } = packages("zod");

const options = { baseURL: `${GATEWAY}/v1`, apiKey: KEY, maxRetries: 0, timeout: 20_000 };
const sdk = new OpenAI(options);
const City = z.object({ city: z.string(), people: z.int().min(0) });
const paris = { city: "Paris", people: 0 };

onEachBackend("Chat", (backend) => {
  const model = backend.model();
  const tools = NAMES.map((name) => ({ type: "function", function: { name, parameters: SCHEMA, strict: true } }));
  const create = (text, more) => sdk.chat.completions.create({ model, messages: [user(text)], ...more });

  test("answer", async () => {
    const { data, request_id } = await create("Hello").withResponse();
    assert.match(request_id, /^req_/);
    assert.equal(data._request_id, request_id);
    const [choice] = data.choices;
    assert.equal(choice.message.content, TEXT);
    assert.equal(choice.finish_reason, "stop");
    assert.equal(data.usage.completion_tokens, 20);
    assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + 20);
  });

  test("cached usage", async () => {
    const ask = () => create("word ".repeat(100), { model: backend.model("cached") });
    const [first, second] = [await ask(), await ask()];
    assert.ok(second.usage.prompt_tokens_details.cached_tokens > 50);
    assert.equal(second.usage.prompt_tokens, first.usage.prompt_tokens);
  });

  test("stream helper", async () => {
    const request = { model, messages: [user("Hello")], stream_options: { include_usage: true } };
    const stream = sdk.chat.completions.stream(request);
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const final = await stream.finalChatCompletion();
    assert.equal(text, TEXT);
    assert.equal(final.choices[0].message.content, TEXT);
    assert.equal(final.choices[0].finish_reason, "stop");
    assert.equal((await stream.totalUsage()).completion_tokens, 20);
  });

  test("tool runner", async () => {
    const asked = [];
    const run = async ({ city }) => {
      asked.push(city);
      return "12C";
    };
    for (const stream of [false, true]) {
      const fn = { name: "get_weather", description: "Gets the weather", parameters: SCHEMA, parse: JSON.parse, function: run };
      const runner = sdk.chat.completions.runTools({
        model, stream, messages: [user("call get_weather")], tools: [{ type: "function", function: fn }],
      });
      assert.equal(await runner.finalContent(), "The tool said: 12C");
    }
    assert.deepEqual(asked, ["Paris", "Paris"]);
  });

  test("parallel calls in a stream", async () => {
    const text = "call get_weather and call get_time";
    const final = await sdk.chat.completions.stream({ model, messages: [user(text)], tools }).finalChatCompletion();
    const [{ message, finish_reason }] = final.choices;
    assert.equal(finish_reason, "tool_calls");
    assert.deepEqual(message.tool_calls.map((call) => call.function.name), NAMES);
    assert.deepEqual(message.tool_calls.map((call) => JSON.parse(call.function.arguments).city), ["Paris", "Paris"]);
    const results = message.tool_calls.map((call, at) => ({
      role: "tool", tool_call_id: call.id, content: ["12C", "noon"][at],
    }));
    const next = await sdk.chat.completions.create({ model, messages: [user(text), message, ...results], tools });
    assert.equal(next.choices[0].message.content, "The tool said: 12C\nnoon");
    const single = await create(text, { tools, parallel_tool_calls: false });
    assert.equal(single.choices[0].message.tool_calls.length, 1);
  });

  test("structured output", async () => {
    const request = { model, messages: [user("Where?")], response_format: zodResponseFormat(City, "city") };
    const answer = await sdk.chat.completions.parse(request);
    assert.deepEqual(answer.choices[0].message.parsed, paris);
    const final = await sdk.chat.completions.stream(request).finalChatCompletion();
    assert.deepEqual(final.choices[0].message.parsed, paris);
  });

  test("reasoning", async () => {
    const [{ message }] = (await create("think")).choices;
    assert.equal(message.reasoning, REASONING);
    assert.equal(message.content, TEXT);
    const chunks = await all(create("think", { stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].delta.reasoning ?? "").join(""), REASONING);
  });

  test("max tokens", async () => {
    const [text, tokens] = backend.limited("chat");
    const answer = await create("Hello", { max_completion_tokens: 5 });
    assert.equal(answer.choices[0].message.content, text);
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, tokens);
  });

  test("agents", async () => {
    for (const shape of backend.shapes("chat", "opencode-")) {
      const first = await sdk.chat.completions.stream(shape).finalChatCompletion();
      assert.equal(first.choices[0].message.content, TEXT);
      const messages = [...shape.messages, first.choices[0].message, user("call glob")];
      const second = await sdk.chat.completions.stream({ ...shape, messages }).finalChatCompletion();
      assert.equal(second.choices[0].finish_reason, shape.tools ? "tool_calls" : "stop");
    }
  });

  test("abort", async () => {
    const before = await aborted();
    const stream = await create("Hello", { model: backend.model("slow"), stream: true });
    for await (const _ of stream) break;
    await untilAborted(before);
  });

  test("errors", async () => {
    const fails = (kind, status, more) => failure(kind, status, async () => all(create("Hello", { stream: true, ...more })));
    const unknown = await fails(OpenAI.NotFoundError, 404, { model: "none" });
    assert.deepEqual([unknown.code, unknown.param], ["model_not_found", "model"]);
    await fails(OpenAI.InternalServerError, 503, { model: backend.model("busy") });
    const limited = await fails(OpenAI.RateLimitError, 429, { model: backend.model("limited") });
    assert.equal(limited.headers.get("retry-after"), "7");
    const long = { model: backend.model("short"), messages: [user("word ".repeat(2000))], max_tokens: 10 };
    const error = await fails(OpenAI.BadRequestError, 400, long);
    assert.match(error.message, /maximum context length/);
    if (!backend.speaks("chat")) assert.equal(error.code, "context_length_exceeded");
    const wrong = new OpenAI({ ...options, apiKey: "sk-wrong" });
    await failure(OpenAI.AuthenticationError, 401, () => wrong.chat.completions.create({ model, messages: [user("x")] }));
    await failure(OpenAI.BadRequestError, 400, () => sdk.post("/chat/completions", { body: { model } }));
    await assert.rejects(all(create("Hello", { model: backend.model("broken"), stream: true })), OpenAI.APIError);
  });

  test("models", async () => {
    const found = (await all(sdk.models.list())).map(({ id }) => id);
    assert.ok(found.includes(model));
    assert.equal((await sdk.models.retrieve(model)).object, "model");
  });
});

onEachBackend("Responses", (backend) => {
  const model = backend.model();
  const tools = NAMES.map((name) => ({ type: "function", name, parameters: SCHEMA, strict: true }));
  const create = (input, more) => sdk.responses.create({ model, input, ...more });
  const calls = (response) => response.output.filter(({ type }) => type === "function_call");
  /** The events of the helper, and the response that it makes of them. */
  const streamed = async (request) => {
    const stream = sdk.responses.stream({ model, ...request });
    const events = await all(stream);
    const ends = events.filter(({ type }) => /^response\.(completed|incomplete|failed)$/.test(type));
    assert.deepEqual(ends, events.slice(-1));
    return [events, await stream.finalResponse()];
  };

  test("answer", async () => {
    const { data, request_id } = await create("Hello").withResponse();
    assert.match(request_id, /^req_/);
    assert.equal(data.output_text, TEXT);
    assert.equal(data.status, "completed");
    assert.equal(data.usage.output_tokens, 20);
    assert.equal(data.usage.total_tokens, data.usage.input_tokens + 20);
  });

  test("cached usage", async () => {
    const request = { model: backend.model("cached"), input: "word ".repeat(100) };
    const [[, first], [, second]] = [await streamed(request), await streamed(request)];
    assert.ok(second.usage.input_tokens_details.cached_tokens > 50);
    assert.equal(second.usage.input_tokens, first.usage.input_tokens);
  });

  test("stream helper", async () => {
    const [events, final] = await streamed({ input: "Hello" });
    assert.equal(final.output_text, TEXT);
    assert.equal(final.status, "completed");
    const deltas = events.filter(({ type }) => type === "response.output_text.delta");
    assert.equal(deltas.map(({ delta }) => delta).join(""), TEXT);
    assert.equal(final.usage.output_tokens, 20);
  });

  test("tool loop", async () => {
    const text = "call get_weather and call get_time";
    const [, first] = await streamed({ input: text, tools });
    assert.deepEqual(calls(first).map(({ name }) => name), NAMES);
    assert.deepEqual(calls(first).map(({ parsed_arguments }) => parsed_arguments), [{ city: "Paris" }, { city: "Paris" }]);
    const results = calls(first).map(({ call_id }, at) => ({
      type: "function_call_output", call_id, output: ["12C", "noon"][at],
    }));
    const output = first.output.map(({ parsed_arguments, ...item }) => item);
    const second = await create([user(text), ...output, ...results], { tools });
    assert.equal(second.output_text, "The tool said: 12C\nnoon");
    const single = await create(text, { tools, parallel_tool_calls: false });
    assert.equal(calls(single).length, 1);
    const named = await create("Hello", { tools, tool_choice: { type: "function", name: "get_time" } });
    assert.deepEqual(calls(named).map(({ name }) => name), ["get_time"]);
  });

  test("structured output", async () => {
    const request = { model, input: "Where?", text: { format: zodTextFormat(City, "city") } };
    assert.deepEqual((await sdk.responses.parse(request)).output_parsed, paris);
    const [, final] = await streamed(request);
    assert.deepEqual(final.output_parsed, paris);
  });

  test("reasoning", async () => {
    const [events, final] = await streamed({ input: "think and call get_time", tools });
    assert.deepEqual(final.output.map(({ type }) => type), ["reasoning", "function_call"]);
    assert.equal(final.output[0].content[0].text, REASONING);
    const deltas = events.filter(({ type }) => type === "response.reasoning_text.delta");
    assert.equal(deltas.map(({ delta }) => delta).join(""), REASONING);
    const { parsed_arguments, ...call } = final.output[1];
    const result = { type: "function_call_output", call_id: call.call_id, output: "noon" };
    const next = await create([user("think"), final.output[0], call, result], { tools });
    assert.equal(next.output_text, "The tool said: noon");
  });

  test("max tokens", async () => {
    const [text, tokens] = backend.limited("responses");
    const answer = await create("Hello", { max_output_tokens: 5 });
    assert.equal(answer.output_text, text);
    assert.deepEqual([answer.status, answer.incomplete_details.reason], ["incomplete", "max_output_tokens"]);
    assert.equal(answer.usage.output_tokens, tokens);
  });

  test("agents", async () => {
    for (const shape of backend.shapes("responses", "codex-")) {
      const [, first] = await streamed(shape);
      assert.equal(first.status, "completed");
      const input = [...shape.input, ...first.output, { type: "message", ...user("call exec_command") }];
      const [, second] = await streamed({ ...shape, input });
      assert.deepEqual(calls(second).map(({ name }) => name), ["exec_command"]);
    }
  });

  test("abort", async () => {
    const before = await aborted();
    const stream = await create("Hello", { model: backend.model("slow"), stream: true });
    for await (const { type } of stream) if (type === "response.output_text.delta") break;
    await untilAborted(before);
  });

  test("errors", async () => {
    const fails = (kind, status, more) => failure(kind, status, async () => all(create("Hello", { stream: true, ...more })));
    await fails(OpenAI.NotFoundError, 404, { model: "none" });
    await fails(OpenAI.InternalServerError, 503, { model: backend.model("busy") });
    await fails(OpenAI.RateLimitError, 429, { model: backend.model("limited") });
    const long = { model: backend.model("short"), input: "word ".repeat(2000), max_output_tokens: 20 };
    const error = await fails(OpenAI.BadRequestError, 400, long);
    assert.match(error.message, /maximum context length/);
    if (!backend.speaks("responses")) assert.equal(error.code, "context_length_exceeded");
    const wrong = new OpenAI({ ...options, apiKey: "sk-wrong" });
    await failure(OpenAI.AuthenticationError, 401, () => wrong.responses.create({ model, input: "x" }));
    const events = await all(create("Hello", { model: backend.model("broken"), stream: true }));
    assert.equal(events.at(-1).type, "response.failed");
  });
});
