// Tests the official Anthropic SDK for Node with backends of each language.

import assert from "node:assert/strict";
import { test } from "node:test";

import { GATEWAY, KEY, NAMES, REASONING, SCHEMA, TEXT } from "./backends.mjs";
import { aborted, all, failure, onEachBackend, packages, untilAborted, user } from "./backends.mjs";

// The SDK takes more of its settings from there.
for (const name of Object.keys(process.env)) if (name.startsWith("ANTHROPIC_")) delete process.env[name];

const { Anthropic } = packages("@anthropic-ai/sdk");
const { zodOutputFormat } = packages("@anthropic-ai/sdk/helpers/zod");
const { betaZodTool } = packages("@anthropic-ai/sdk/helpers/beta/zod");
const { z } = packages("zod");

const options = { baseURL: GATEWAY, apiKey: KEY, maxRetries: 0, timeout: 20_000 };
const sdk = new Anthropic(options);
const tools = NAMES.map((name) => ({ name, input_schema: SCHEMA }));
const paris = { city: "Paris", people: 0 };

const ofKind = (message, kind) => message.content.filter(({ type }) => type === kind);
/** The turns that give the calls of a message their results. */
const results = (message, texts) => {
  const calls = ofKind(message, "tool_use");
  assert.equal(calls.length, texts.length);
  const blocks = calls.map(({ id }, at) => ({ type: "tool_result", tool_use_id: id, content: texts[at] }));
  return [{ role: "assistant", content: message.content }, user(blocks)];
};

onEachBackend("Messages", (backend) => {
  const request = { model: backend.model(), max_tokens: 200 };
  const create = (text, more) => sdk.messages.create({ ...request, messages: [user(text)], ...more });
  const final = (messages, more) => sdk.messages.stream({ ...request, messages, ...more }).finalMessage();

  test("answer", async () => {
    const { data, request_id } = await create("Hello").withResponse();
    assert.match(request_id, /^req_/);
    assert.equal(data._request_id, request_id);
    assert.deepEqual([data.type, data.role, data.stop_reason], ["message", "assistant", "end_turn"]);
    assert.deepEqual(data.content.map(({ text }) => text), [TEXT]);
    assert.equal(data.usage.output_tokens, 20);
    assert.ok(data.usage.input_tokens > 5);
  });

  test("cached usage", async () => {
    const total = (usage) => usage.input_tokens + (usage.cache_read_input_tokens ?? 0);
    const ask = () => final([user("word ".repeat(100))], { model: backend.model("cached") });
    const [first, second] = [await ask(), await ask()];
    assert.ok(second.usage.cache_read_input_tokens > 50);
    assert.equal(total(second.usage), total(first.usage));
  });

  test("stream helper", async () => {
    const stream = sdk.messages.stream({ ...request, messages: [user("Hello")] });
    let text = "";
    stream.on("text", (delta) => (text += delta));
    const message = await stream.finalMessage();
    assert.equal(text, TEXT);
    assert.deepEqual([message.stop_reason, message.usage.output_tokens], ["end_turn", 20]);
    assert.match(stream.request_id, /^req_/);
  });

  test("tool loop", async () => {
    const text = "call get_weather and call get_time";
    const message = await final([user(text)], { tools });
    assert.equal(message.stop_reason, "tool_use");
    const calls = ofKind(message, "tool_use").map(({ name, input }) => [name, input.city]);
    assert.deepEqual(calls, NAMES.map((name) => [name, "Paris"]));
    const next = await final([user(text), ...results(message, ["12C", "noon"])], { tools });
    assert.equal(next.content[0].text, "The tool said: 12C\nnoon");
    const auto = { type: "auto", disable_parallel_tool_use: true };
    assert.equal(ofKind(await create(text, { tools, tool_choice: auto }), "tool_use").length, 1);
    const named = await create("Hello", { tools, tool_choice: { type: "tool", name: "get_time" } });
    assert.deepEqual(ofKind(named, "tool_use").map(({ name }) => name), ["get_time"]);
  });

  test("tool runner", async () => {
    const asked = [];
    const weather = betaZodTool({
      name: "get_weather",
      description: "Gets the weather",
      inputSchema: z.object({ city: z.string() }),
      run: ({ city }) => {
        asked.push(city);
        return "12C";
      },
    });
    for (const stream of [false, true]) {
      const runner = sdk.beta.messages.toolRunner({
        ...request, stream, messages: [user("call get_weather")], tools: [weather],
      });
      assert.equal((await runner.runUntilDone()).content[0].text, "The tool said: 12C");
    }
    assert.deepEqual(asked, ["Paris", "Paris"]);
  });

  test("structured output", async () => {
    const format = zodOutputFormat(z.object({ city: z.string(), people: z.int().min(0) }));
    const more = { messages: [user("Where?")], output_config: { format } };
    assert.deepEqual((await sdk.messages.parse({ ...request, ...more })).parsed_output, paris);
    assert.deepEqual((await final(more.messages, more)).parsed_output, paris);
  });

  test("reasoning", async () => {
    const more = { thinking: { type: "enabled", budget_tokens: 1024 }, max_tokens: 2000, tools };
    const message = await final([user("call get_time")], more);
    assert.deepEqual(message.content.map(({ type }) => type), ["thinking", "tool_use"]);
    assert.equal(message.content[0].thinking, REASONING);
    const next = await final([user("call get_time"), ...results(message, ["noon"])], more);
    assert.equal(ofKind(next, "text")[0].text, "The tool said: noon");
  });

  test("max tokens", async () => {
    const [text, tokens] = backend.limited("messages");
    const answer = await create("Hello", { max_tokens: 5 });
    assert.deepEqual([answer.content[0].text, answer.stop_reason], [text, "max_tokens"]);
    assert.equal(answer.usage.output_tokens, tokens);
  });

  test("count tokens", async () => {
    const { input_tokens } = await sdk.messages.countTokens({ model: backend.model(), messages: [user("Hello")] });
    assert.ok(input_tokens > 5);
  });

  test("agents", async () => {
    for (const shape of backend.shapes("messages", "claude-")) {
      const ask = (messages) => sdk.beta.messages.stream({ ...shape, messages }).finalMessage();
      const first = await ask(shape.messages);
      assert.equal(first.stop_reason, "end_turn");
      const messages = [...shape.messages, { role: "assistant", content: first.content }, user("call Agent")];
      const second = await ask(messages);
      assert.deepEqual(ofKind(second, "tool_use").map(({ name }) => name), ["Agent"]);
      const third = await ask([...messages, ...results(second, ["done"])]);
      assert.equal(ofKind(third, "text")[0].text, "The tool said: done");
    }
  });

  test("abort", async () => {
    const before = await aborted();
    const stream = await create("Hello", { model: backend.model("slow"), stream: true });
    for await (const { type } of stream) if (type === "content_block_delta") break;
    await untilAborted(before);
  });

  test("errors", async () => {
    const native = backend.speaks("messages");
    const fails = async (kind, status, type, more) => {
      const error = await failure(kind, status, async () => all(create("Hello", { stream: true, ...more })));
      assert.equal(error.error.type, "error");
      // The backend's own errors in the client's language are passed as they are.
      if (type) assert.equal(error.error.error.type, type);
      return error;
    };
    await fails(Anthropic.NotFoundError, 404, "not_found_error", { model: "none" });
    const busy = { model: backend.model("busy") };
    await fails(Anthropic.InternalServerError, native ? 503 : 529, native ? null : "overloaded_error", busy);
    const limited = { model: backend.model("limited") };
    await fails(Anthropic.RateLimitError, 429, native ? null : "rate_limit_error", limited);
    const long = { model: backend.model("short"), messages: [user("word ".repeat(2000))], max_tokens: 10 };
    // Claude Code compacts at these words, which vLLM does not say by itself.
    const error = await fails(Anthropic.BadRequestError, 400, "invalid_request_error", long);
    assert.match(error.error.error.message, /^prompt is too long: 201 tokens > 200 maximum/);
    const wrong = new Anthropic({ ...options, apiKey: "sk-wrong" });
    const denied = await failure(Anthropic.AuthenticationError, 401, () => wrong.messages.create({
      ...request, messages: [user("x")],
    }));
    assert.equal(denied.error.error.type, "authentication_error");
    await failure(Anthropic.BadRequestError, 400, () => sdk.post("/v1/messages", { body: request }));
    await assert.rejects(all(create("Hello", { model: backend.model("broken"), stream: true })), Anthropic.APIError);
  });

  test("models", async () => {
    const models = await all(sdk.models.list({ limit: 5 }));
    assert.ok(models.some(({ id, type }) => id === backend.model() && type === "model"));
    assert.ok((await sdk.models.retrieve(backend.model())).display_name);
  });
});
