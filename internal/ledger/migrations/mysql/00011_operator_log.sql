-- +goose Up
-- What operators decided about a task or a dead batch, who and why. body is a mended
-- message, when one was replayed in place of the stored one.
CREATE TABLE IF NOT EXISTS operator_log (
    id         BIGINT       NOT NULL AUTO_INCREMENT,
    subject    VARCHAR(16)  NOT NULL,
    subject_id BIGINT       NOT NULL,
    action     VARCHAR(16)  NOT NULL,
    who        VARCHAR(100) NOT NULL,
    why        VARCHAR(500) NOT NULL,
    body       MEDIUMBLOB   NULL,
    created_at DATETIME(3)  NOT NULL,
    PRIMARY KEY (id),
    KEY operator_log_subject (subject, subject_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4;

-- +goose Down
DROP TABLE operator_log;
