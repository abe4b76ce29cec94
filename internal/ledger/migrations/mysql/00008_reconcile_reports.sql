-- +goose Up
-- One row a run and sale of the reconciler, and what it found.
CREATE TABLE IF NOT EXISTS reconcile_reports (
    id          BIGINT        NOT NULL AUTO_INCREMENT,
    sale_id     VARBINARY(64) NOT NULL,
    dry_run     BOOLEAN       NOT NULL,
    compared    BIGINT        NOT NULL,
    found       BIGINT        NOT NULL,
    repaired    BIGINT        NOT NULL,
    remaining   BIGINT        NOT NULL,
    note        VARCHAR(1000) NOT NULL DEFAULT '',
    started_at  DATETIME(3)   NOT NULL,
    finished_at DATETIME(3)   NOT NULL,
    PRIMARY KEY (id),
    KEY reconcile_reports_sale (sale_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

CREATE TABLE IF NOT EXISTS reconcile_items (
    id        BIGINT        NOT NULL AUTO_INCREMENT,
    report_id BIGINT        NOT NULL,
    kind      VARCHAR(32)   NOT NULL,
    order_id  BIGINT        NULL,
    batch_id  BIGINT        NULL,
    units     BIGINT        NOT NULL,
    repaired  BOOLEAN       NOT NULL,
    detail    VARCHAR(1000) NOT NULL DEFAULT '',
    PRIMARY KEY (id),
    KEY reconcile_items_report (report_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE reconcile_items;
DROP TABLE reconcile_reports;
