CREATE TABLE api_keys (
    api_key     TEXT PRIMARY KEY,
    name        TEXT,
    user_id     TEXT NOT NULL,
    status      TEXT NOT NULL DEFAULT 'active',
    balance     NUMERIC(12, 2),
    allowed_ips TEXT[],
    expires_at  TIMESTAMPTZ,
    metadata    JSONB
);

INSERT INTO api_keys VALUES
    ('sk-example-good-0001', 'first', 'user_001', 'active', 1000.50,
     ARRAY['0.0.0.0/0', '::/0'], '2099-12-31 23:59:59+00', '{"tier": "vip"}'),
    ('sk-example-disabled-1', NULL, 'user_002', 'disabled', NULL, NULL, NULL, NULL);
