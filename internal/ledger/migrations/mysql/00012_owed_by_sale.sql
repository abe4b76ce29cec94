-- +goose Up
-- What a sale owes is read by sale: one that Redis has not loaded, with a million batches
-- to settle, must not stand in front of the others. The name stays, so that this can
-- run again after it was cut short.
ALTER TABLE consumed_batches
    DROP INDEX consumed_batches_owed,
    ADD INDEX consumed_batches_owed (settled_at, sale_id, consumed_at);

-- +goose Down
ALTER TABLE consumed_batches
    DROP INDEX consumed_batches_owed,
    ADD INDEX consumed_batches_owed (settled_at, consumed_at);
