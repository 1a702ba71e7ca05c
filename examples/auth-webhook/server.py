#!/usr/bin/env python3
"""A service that looks up API keys: python3 server.py [PORT]

Request   POST /check with {"api_key": "sk-...", "timestamp": 1790000000}
Response  200 with the fields of the key, 404 if the key is not known
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "Bearer " + os.environ.get("WEBHOOK_TOKEN", "webhook-secret")
KEYS = {
    "sk-example-good-0001": {"user_id": "user_001", "name": "first", "metadata": {"tier": "vip"}},
    "sk-example-disabled-1": {"user_id": "user_002", "status": "disabled"},
}


class Check(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # sends a response in one piece

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/check" or self.headers.get("Authorization") != TOKEN:
            # Not 401, 403 or 404, which mean to the gateway that the key is not known.
            return self.answer(400, {"message": "not for you"})
        known = KEYS.get(json.loads(body).get("api_key"))
        if known is None:
            return self.answer(404, {"code": 1, "message": "no such key"})
        self.answer(200, {"code": 0, **known})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    print(f"listening on 127.0.0.1:{port}", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Check).serve_forever()
