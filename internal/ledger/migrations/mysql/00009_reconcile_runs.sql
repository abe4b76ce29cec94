-- +goose Up
-- One row a run and sale of the reconciler, and what it found. Nothing was ever written
-- to the tables that these replace. cause is why it ran: schedule, once, or early and why;
-- kinds counts by kind of difference (JSON); unlisted are those without an item.
DROP TABLE IF EXISTS reconcile_items;
DROP TABLE IF EXISTS reconcile_reports;

CREATE TABLE IF NOT EXISTS reconcile_reports (
    id            BIGINT         NOT NULL AUTO_INCREMENT,
    sale_id       VARBINARY(64)  NOT NULL,
    cause         VARCHAR(200)   NOT NULL,
    holder        VARBINARY(128) NOT NULL,
    dry_run       BOOLEAN        NOT NULL,
    unfinished    BOOLEAN        NOT NULL,
    ledger_orders BIGINT         NOT NULL,
    redis_records BIGINT         NOT NULL,
    younger       BIGINT         NOT NULL,
    open_batches  BIGINT         NOT NULL,
    found         BIGINT         NOT NULL,
    repaired      BIGINT         NOT NULL,
    remaining     BIGINT         NOT NULL,
    helped        BIGINT         NOT NULL,
    unlisted      BIGINT         NOT NULL,
    kinds         TEXT           NOT NULL,
    note          VARCHAR(1000)  NOT NULL DEFAULT '',
    started_at    DATETIME(3)    NOT NULL,
    finished_at   DATETIME(3)    NOT NULL,
    PRIMARY KEY (id),
    KEY reconcile_reports_sale (sale_id),
    KEY reconcile_reports_started (started_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- outcome is REPAIRED, LEFT (why says why) or HELPED; of a dry run it is LEFT.
CREATE TABLE IF NOT EXISTS reconcile_items (
    id        BIGINT        NOT NULL AUTO_INCREMENT,
    report_id BIGINT        NOT NULL,
    kind      VARCHAR(32)   NOT NULL,
    order_id  BIGINT        NOT NULL,
    batch_id  BIGINT        NOT NULL,
    user_id   VARBINARY(64) NOT NULL,
    units     BIGINT        NOT NULL,
    outcome   VARCHAR(16)   NOT NULL,
    detail    VARCHAR(1000) NOT NULL,
    plan      VARCHAR(1000) NOT NULL,
    why       VARCHAR(1000) NOT NULL,
    PRIMARY KEY (id),
    KEY reconcile_items_report (report_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- Repairs are logged beside what locked the units: kind is that of the difference.
ALTER TABLE inventory_log MODIFY kind VARCHAR(32) NOT NULL;
-- A run of the reconciler on a sale is a lease that names both.
ALTER TABLE leases MODIFY name VARBINARY(96) NOT NULL;

-- MySQL cannot add a column only where it is missing; a migration that died here has it.
SET @add_columns = IF((SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()
    AND table_name = 'inventory_log' AND column_name = 'before_state') > 0, 'DO 0',
    'ALTER TABLE inventory_log ADD COLUMN order_id BIGINT NULL, ADD COLUMN before_state VARCHAR(200) NOT NULL DEFAULT '''', ADD COLUMN after_state VARCHAR(200) NOT NULL DEFAULT ''''');
PREPARE add_columns FROM @add_columns;
EXECUTE add_columns;
DEALLOCATE PREPARE add_columns;

SET @add_index = IF((SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE()
    AND table_name = 'dead_batches' AND index_name = 'dead_batches_batch') > 0, 'DO 0',
    'CREATE INDEX dead_batches_batch ON dead_batches (batch_id)');
PREPARE add_index FROM @add_index;
EXECUTE add_index;
DEALLOCATE PREPARE add_index;

-- +goose Down
DROP INDEX dead_batches_batch ON dead_batches;
ALTER TABLE inventory_log DROP COLUMN order_id, DROP COLUMN before_state, DROP COLUMN after_state;
DROP TABLE reconcile_items;
DROP TABLE reconcile_reports;
