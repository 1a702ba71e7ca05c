// What the checks of each SDK for Node share, as `backends.py` for Python.

import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import { describe } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export const { GATEWAY, SLOW_STATS } = process.env;
export const KEY = "sk-test-0123456789";
// The twenty tokens of an answer that nothing limits.
export const TEXT = "Hello! I am a simulated model, and I count.Hello! I am a simulated model,";
export const REASONING = "The user wants me to think. I think briefly.";
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
export const NAMES = ["get_weather", "get_time"];

// The packages are not beside these files.
export const packages = createRequire(`${process.env.PACKAGES}/`);

export const user = (content) => ({ role: "user", content });

/** A backend that speaks one language, or all. */
class Backend {
  constructor(language) {
    this.language = language;
  }

  /** A model that behaves in a way: `m` answers, `busy` is overloaded, and so on. */
  model(kind = "m") {
    return `${kind}-${this.language}`;
  }

  speaks(language) {
    return [language, "all"].includes(this.language);
  }

  /** The text and the tokens of an answer to a client of this language with five tokens at most. */
  limited(client) {
    // Responses have a least number, to which others are raised.
    return this.language === "responses" && client !== "responses"
      ? ["Hello! I am a simulated model, and I count.Hello! I am", 16]
      : ["Hello! I am a", 5];
  }

  /** Recorded requests of agents, for this backend's model. */
  shapes(folder, beginning) {
    const at = fileURLToPath(new URL(`../fixtures/translate/${folder}`, import.meta.url));
    const files = fs.readdirSync(at).filter((name) => name.startsWith(beginning) && name.endsWith(".request.json"));
    assert.ok(files.length > 0);
    return files.map((name) => {
      const shape = JSON.parse(fs.readFileSync(`${at}/${name}`, "utf8"));
      // A note of how many tools there were.
      delete shape["…tools"];
      delete shape.stream;
      return { ...shape, model: this.model() };
    });
  }
}

/** Makes the checks for each backend. */
export function onEachBackend(name, checks) {
  for (const language of ["chat", "responses", "messages", "all"]) {
    describe(`${name} on ${language}`, () => checks(new Backend(language)));
  }
}

export async function aborted() {
  return (await (await fetch(SLOW_STATS)).json()).aborted;
}

/** Waits until the slow backend has noticed that a client has gone. */
export async function untilAborted(before) {
  for (const end = Date.now() + 20_000; (await aborted()) <= before; await setTimeout(20)) {
    assert.ok(Date.now() < end, "the backend was not told");
  }
}

/** The error of a call, which must be of this class and have this status. */
export async function failure(kind, status, call) {
  let error;
  await assert.rejects(call, (caught) => {
    error = caught;
    assert.ok(caught instanceof kind, `${caught}`);
    assert.equal(caught.status, status);
    assert.match(caught.requestID, /^req_/);
    return true;
  });
  return error;
}

/** All of a stream. */
export async function all(stream) {
  const events = [];
  for await (const event of await stream) events.push(event);
  return events;
}
