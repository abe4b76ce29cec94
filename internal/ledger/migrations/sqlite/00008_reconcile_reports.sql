-- +goose Up
-- One row a run and sale of the reconciler, and what it found.
CREATE TABLE IF NOT EXISTS reconcile_reports (
    id          INTEGER  NOT NULL PRIMARY KEY AUTOINCREMENT,
    sale_id     TEXT     NOT NULL,
    dry_run     BOOLEAN  NOT NULL,
    compared    INTEGER  NOT NULL,
    found       INTEGER  NOT NULL,
    repaired    INTEGER  NOT NULL,
    remaining   INTEGER  NOT NULL,
    note        TEXT     NOT NULL DEFAULT '',
    started_at  DATETIME NOT NULL,
    finished_at DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS reconcile_reports_sale ON reconcile_reports (sale_id);

CREATE TABLE IF NOT EXISTS reconcile_items (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    report_id INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    order_id  INTEGER NULL,
    batch_id  INTEGER NULL,
    units     INTEGER NOT NULL,
    repaired  BOOLEAN NOT NULL,
    detail    TEXT    NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS reconcile_items_report ON reconcile_items (report_id);

-- +goose Down
DROP TABLE reconcile_items;
DROP TABLE reconcile_reports;
