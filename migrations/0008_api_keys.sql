-- API keys: who calls, and in which role. Only a hash of a key's secret is stored.
CREATE TABLE api_keys (
    key_id        text        PRIMARY KEY CHECK (key_id ~ '^[0-9a-f]{12}$'),
    secret_sha256 bytea       NOT NULL CHECK (octet_length(secret_sha256) = 32),
    principal     text        NOT NULL,
    role          text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at    timestamptz,
    revoked_at    timestamptz
);

COMMENT ON COLUMN api_keys.key_id IS 'the part of the key that names it; not a secret';
COMMENT ON COLUMN api_keys.secret_sha256 IS
    'SHA-256 of the 256 random bits of the secret, as text. A secret of that length cannot be found by guessing, so the '
    'hash needs no salt';
COMMENT ON COLUMN api_keys.role IS 'customer, service, operator or auditor; a program refuses a role that it does not know';

-- A new random value with each change of api_keys, in the same transaction: a process reads the keys again when it finds
-- another value than before. It is not a number, because a number would be repeated after a restore.
CREATE TABLE api_key_version (version uuid NOT NULL);
CREATE UNIQUE INDEX api_key_version_is_one_row ON api_key_version ((true));
INSERT INTO api_key_version VALUES (gen_random_uuid());
