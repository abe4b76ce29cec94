-- +goose Up
-- What a sale owes is read by sale: one that Redis has not loaded, with a million batches
-- to settle, must not stand in front of the others.
DROP INDEX IF EXISTS consumed_batches_owed;
CREATE INDEX IF NOT EXISTS consumed_batches_owed ON consumed_batches (settled_at, sale_id, consumed_at);

-- +goose Down
DROP INDEX IF EXISTS consumed_batches_owed;
CREATE INDEX IF NOT EXISTS consumed_batches_owed ON consumed_batches (settled_at, consumed_at);
