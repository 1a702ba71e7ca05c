-- MySQL and MariaDB. The collation of `api_key` is case-sensitive.
CREATE TABLE api_keys (
    api_key     VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
    name        VARCHAR(100),
    user_id     VARCHAR(64) NOT NULL,
    status      VARCHAR(16) NOT NULL DEFAULT 'active',
    balance     DECIMAL(12, 2),
    allowed_ips JSON,
    expires_at  DATETIME,
    metadata    JSON
);

INSERT INTO api_keys VALUES
    ('sk-example-good-0001', 'first', 'user_001', 'active', 1000.50,
     '["0.0.0.0/0", "::/0"]', '2099-12-31 23:59:59', '{"tier": "vip"}'),
    ('sk-example-disabled-1', NULL, 'user_002', 'disabled', NULL, NULL, NULL, NULL);
