#!/bin/sh
# Makes the two keys of this example by the admin API. Run again it says that they are there (409).
set -eu

ADMIN=http://${ADMIN_LISTEN:-127.0.0.1:8002}
TOKEN=${ADMIN_TOKEN:-change-me-please}

create() {
    curl -sS -X POST "$ADMIN/admin/v1/keys" -H "X-Admin-Token: $TOKEN" \
        -H 'Content-Type: application/json' -d "$1"
    echo
}

# Without "key" the gateway makes one. Either way it is told in this answer and never again.
create '{"key": "sk-example-good-0001", "name": "first", "user_id": "user_001"}'
create '{"key": "sk-example-disabled-1", "user_id": "user_002", "status": "disabled"}'
