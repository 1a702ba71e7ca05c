#!/bin/sh
# Creates the two keys of this example through the admin API. If they exist, it prints the error (409).
set -eu

ADMIN=http://${ADMIN_LISTEN:-127.0.0.1:8002}
TOKEN=${ADMIN_TOKEN:-change-me-please}

create() {
    curl -sS -X POST "$ADMIN/admin/v1/keys" -H "X-Admin-Token: $TOKEN" \
        -H 'Content-Type: application/json' -d "$1"
    echo
}

# Without "key" the gateway generates one. The key is shown only in this response.
create '{"key": "sk-example-good-0001", "name": "first", "user_id": "user_001"}'
create '{"key": "sk-example-disabled-1", "user_id": "user_002", "status": "disabled"}'
