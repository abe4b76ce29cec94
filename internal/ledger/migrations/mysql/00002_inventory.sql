-- +goose Up
-- A sale's units. The row is also the sale's lock: whoever adds orders holds it to the
-- end of the transaction. The checks are the last guard of invariants 1 and 4.
CREATE TABLE IF NOT EXISTS inventory (
    sale_id   VARBINARY(64) NOT NULL,
    total     BIGINT        NOT NULL,
    available BIGINT        NOT NULL,
    locked    BIGINT        NOT NULL,
    sold      BIGINT        NOT NULL,
    version   BIGINT        NOT NULL,
    PRIMARY KEY (sale_id),
    CONSTRAINT inventory_available CHECK (available >= 0),
    CONSTRAINT inventory_locked CHECK (locked >= 0),
    CONSTRAINT inventory_sold CHECK (sold >= 0),
    CONSTRAINT inventory_conserved CHECK (available + locked + sold = total)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- Why the row changed: CREATE and TOTAL carry the total before and after, LOCK the batch.
CREATE TABLE IF NOT EXISTS inventory_log (
    id           BIGINT        NOT NULL AUTO_INCREMENT,
    sale_id      VARBINARY(64) NOT NULL,
    kind         VARCHAR(16)   NOT NULL,
    batch_id     BIGINT        NULL,
    units        BIGINT        NOT NULL,
    total_before BIGINT        NULL,
    total_after  BIGINT        NULL,
    version      BIGINT        NULL,
    reason       VARCHAR(500)  NOT NULL DEFAULT '',
    created_at   DATETIME(3)   NOT NULL,
    PRIMARY KEY (id),
    KEY inventory_log_sale (sale_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE inventory_log;
DROP TABLE inventory;
