-- +goose Up
-- One row a run and sale of the reconciler, and what it found. Nothing was ever written
-- to the tables that these replace. cause is why it ran: schedule, once, or early and why;
-- kinds counts by kind of difference (JSON); unlisted are those without an item.
DROP TABLE IF EXISTS reconcile_items;
DROP TABLE IF EXISTS reconcile_reports;

CREATE TABLE IF NOT EXISTS reconcile_reports (
    id            INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    sale_id       TEXT     NOT NULL,
    cause         TEXT     NOT NULL,
    holder        TEXT     NOT NULL,
    dry_run       BOOLEAN  NOT NULL,
    unfinished    BOOLEAN  NOT NULL,
    ledger_orders INTEGER  NOT NULL,
    redis_records INTEGER  NOT NULL,
    younger       INTEGER  NOT NULL,
    open_batches  INTEGER  NOT NULL,
    found         INTEGER  NOT NULL,
    repaired      INTEGER  NOT NULL,
    remaining     INTEGER  NOT NULL,
    helped        INTEGER  NOT NULL,
    unlisted      INTEGER  NOT NULL,
    kinds         TEXT     NOT NULL,
    note          TEXT     NOT NULL DEFAULT '',
    started_at    DATETIME NOT NULL,
    finished_at   DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS reconcile_reports_sale ON reconcile_reports (sale_id);
CREATE INDEX IF NOT EXISTS reconcile_reports_started ON reconcile_reports (started_at);

-- outcome is REPAIRED, LEFT (why says why) or HELPED; of a dry run it is LEFT.
CREATE TABLE IF NOT EXISTS reconcile_items (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    report_id INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    order_id  INTEGER NOT NULL,
    batch_id  INTEGER NOT NULL,
    user_id   TEXT    NOT NULL,
    units     INTEGER NOT NULL,
    outcome   TEXT    NOT NULL,
    detail    TEXT    NOT NULL,
    plan      TEXT    NOT NULL,
    why       TEXT    NOT NULL
);
CREATE INDEX IF NOT EXISTS reconcile_items_report ON reconcile_items (report_id);

-- Repairs are logged beside what locked the units: kind is that of the difference.
ALTER TABLE inventory_log ADD COLUMN order_id INTEGER NULL;
ALTER TABLE inventory_log ADD COLUMN before_state TEXT NOT NULL DEFAULT '';
ALTER TABLE inventory_log ADD COLUMN after_state TEXT NOT NULL DEFAULT '';

CREATE INDEX IF NOT EXISTS dead_batches_batch ON dead_batches (batch_id);

-- +goose Down
DROP INDEX dead_batches_batch;
ALTER TABLE inventory_log DROP COLUMN after_state;
ALTER TABLE inventory_log DROP COLUMN before_state;
ALTER TABLE inventory_log DROP COLUMN order_id;
DROP TABLE reconcile_items;
DROP TABLE reconcile_reports;
