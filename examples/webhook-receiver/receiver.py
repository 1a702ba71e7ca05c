#!/usr/bin/env python3
"""A webhook receiver for LLMProxy's usage records: python3 receiver.py

POST /llm-usage   accepts a record or an array of records, signed as in Standard Webhooks
GET  /totals      usage by user and model, and the missing records

Environment
  WEBHOOK_SECRET  the secret of the signatures; several, separated by spaces, to replace one
  DATABASE        a SQLite file; default usage.db
  HOST, PORT      the address to listen on; default 127.0.0.1 and 3001
"""

import base64
import hashlib
import hmac
import json
import os
import sqlite3
import sys
import time
from contextlib import closing

from flask import Flask, jsonify, request

TOLERANCE = 300  # seconds by which the time of a request may differ

TABLES = """
CREATE TABLE IF NOT EXISTS usage_records (
    record_id TEXT PRIMARY KEY,
    process TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    timestamp TEXT NOT NULL,
    user_id TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    total_tokens INTEGER NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS usage_records_sequence ON usage_records (process, sequence);
"""

COLUMNS = ("record_id", "process", "sequence", "timestamp", "user_id", "model",
           "prompt_tokens", "completion_tokens", "total_tokens")

TOTALS = """
SELECT user_id, model, count(*) AS requests, sum(prompt_tokens) AS prompt_tokens,
       sum(completion_tokens) AS completion_tokens, sum(total_tokens) AS total_tokens
FROM usage_records GROUP BY user_id, model ORDER BY user_id, model
"""

# The records of each run of a gateway are numbered from 1. A receiver that is added later does not get
# the first ones; after that, a number that never arrives is a lost record. While several requests are in
# flight (`concurrency`), or dead letters wait for a replay, a gap may still be closed.
GAPS = """
SELECT process, sequence + 1 AS first, next - 1 AS last FROM (
    SELECT process, sequence, lead(sequence) OVER (PARTITION BY process ORDER BY sequence) AS next
    FROM usage_records
) WHERE next > sequence + 1 ORDER BY process, first
"""


def key(secret):
    prefix = "whsec_"
    return base64.b64decode(secret[len(prefix):]) if secret.startswith(prefix) else secret.encode()


KEYS = [key(secret) for secret in os.environ.get("WEBHOOK_SECRET", "").split()]
DATABASE = os.environ.get("DATABASE", "usage.db")

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024 * 1024


def connect():
    db = sqlite3.connect(DATABASE, timeout=10)
    db.row_factory = sqlite3.Row
    return db


def signed(headers, body):
    """Whether the signature is valid and recent."""
    identity, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if len(stamp) > 20 or not (stamp.isascii() and stamp.isdigit()):
        return False
    if abs(time.time() - int(stamp)) > TOLERANCE:
        return False
    content = f"{identity}.{stamp}.".encode() + body
    good = False
    for secret in KEYS:
        digest = hmac.new(secret, content, hashlib.sha256).digest()
        wanted = b"v1," + base64.b64encode(digest)
        for given in headers.get("webhook-signature", "").split():
            good |= hmac.compare_digest(wanted, given.encode())
    return good


def store(records):
    """Stores the new records, all or none, and returns them."""
    places = ", ".join("?" * (len(COLUMNS) + 1))
    insert = f"INSERT OR IGNORE INTO usage_records ({', '.join(COLUMNS)}, record) VALUES ({places})"
    new = []
    with closing(connect()) as db, db:
        for record in records:
            row = [record[column] for column in COLUMNS]
            if db.execute(insert, (*row, json.dumps(record))).rowcount:
                new.append(record)
    return new


@app.post("/llm-usage")
def receive():
    body = request.get_data()
    if not signed(request.headers, body):
        # The gateway retries: the secret may be fixed meanwhile.
        return jsonify(error="the signature is wrong or too old"), 401
    try:
        told = json.loads(body)
        records = told if isinstance(told, list) else [told]
        new = store(records)
    except (ValueError, KeyError, TypeError, AttributeError, sqlite3.IntegrityError) as e:
        # The gateway moves such a record to the dead letters.
        return jsonify(error=f"not a usage record: {e!r}"), 422
    # Other database errors become 500, and the gateway retries.
    tokens = sum(record["total_tokens"] for record in new)
    print(f"{len(records)} records, {len(new)} of them new, {tokens} tokens", flush=True)
    return "", 204


@app.get("/totals")
def totals():
    with closing(connect()) as db:
        rows = [dict(row) for row in db.execute(TOTALS)]
        gaps = [dict(row) for row in db.execute(GAPS)]
    return jsonify(totals=rows, missing=gaps)


def main():
    if not KEYS:
        sys.exit("WEBHOOK_SECRET is not set")
    with closing(connect()) as db:
        db.executescript(TABLES)
    app.run(os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "3001")))


if __name__ == "__main__":
    main()
