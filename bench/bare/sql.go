package bare

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/glebarez/go-sqlite"  // the embedded ledger's driver
	_ "github.com/go-sql-driver/mysql" // the real one's
	"github.com/google/uuid"

	"flashgate/bench/report"
	"flashgate/bench/usage"
)

// The table has the columns and the indexes of the ledger's orders: what a row costs is
// mostly its indexes.
const ordersTable = `CREATE TABLE %s (
	id BIGINT NOT NULL PRIMARY KEY, sale_id VARBINARY(64) NOT NULL, user_id VARBINARY(64) NOT NULL,
	request_key VARBINARY(64) NOT NULL, dedup_key VARBINARY(64), quantity INT NOT NULL, amount_cents BIGINT NOT NULL,
	status VARCHAR(16) NOT NULL, reason VARCHAR(64) NOT NULL, batch_id BIGINT NOT NULL,
	created_at DATETIME(3) NOT NULL, persisted_at DATETIME(3) NOT NULL, UNIQUE (sale_id, user_id, dedup_key))`

var ordersIndexes = []string{"sale_id", "user_id", "batch_id"}

const ordersColumns = 12

// RowsATransaction is what a worker commits at one time under load: some 40 batches
// of 50 orders.
const RowsATransaction = 2_048

// database is how rows are inserted by the ledger's workers.
type database struct {
	driver, dsn string
	writers     int // transactions side by side
	rows        int // of one INSERT
}

const databaseStopSeconds = 30 // to drop the table

// SQL inserts rows into a table like the ledger's, in bulk, as prepared statements of
// many rows, RowsATransaction a transaction. No dsn = SQLite, in dir.
func SQL(ctx context.Context, o Options, dsn, dir string) (rep *report.Report, err error) {
	rep = report.New("bare bulk insert", "")
	d := database{driver: "mysql", dsn: dsn, writers: 4, rows: 512}
	var engines []usage.Process
	if dsn == "" {
		// The driver's binding is quadratic in the number of values; one writes at a time.
		d = database{driver: "sqlite", dsn: filepath.Join(dir, "bare.db") + "?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)", writers: 1, rows: 32}
		rep.Set("engine", "SQLite")
	} else {
		engines = usage.Engines()
		rep.Set("engine", "MySQL or MariaDB")
	}
	db, err := sql.Open(d.driver, d.dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(d.writers)
	db.SetMaxIdleConns(d.writers)
	table := "bench_bare_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseStopSeconds*time.Second)
		defer cancel()
		if _, dropped := db.ExecContext(stopping, "DROP TABLE IF EXISTS "+table); err == nil {
			err = dropped
		}
	}()
	if _, err := db.ExecContext(ctx, fmt.Sprintf(ordersTable, table)); err != nil {
		return nil, err
	}
	for _, column := range ordersIndexes {
		if _, err := db.ExecContext(ctx, fmt.Sprintf("CREATE INDEX %s_%s ON %s (%s)", table, column, table, column)); err != nil {
			return nil, err
		}
	}
	row := "(?" + strings.Repeat(",?", ordersColumns-1) + ")"
	insert, err := db.PrepareContext(ctx, "INSERT INTO "+table+" VALUES "+row+strings.Repeat(","+row, d.rows-1))
	if err != nil {
		return nil, err
	}
	defer func() { _ = insert.Close() }()

	now := time.Now().UTC().Format("2006-01-02 15:04:05.000")
	calls := max(1, o.Calls/RowsATransaction)
	err = measure(ctx, rep, o.Progress, d.writers, calls, RowsATransaction, "rows", engines, func(ctx context.Context, call int) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		statement := tx.StmtContext(ctx, insert)
		defer func() { _ = statement.Close() }()
		args := make([]any, 0, d.rows*ordersColumns)
		for n := 0; n < RowsATransaction; n += d.rows {
			args = args[:0]
			for r := range d.rows {
				id := int64(call*RowsATransaction + n + r + 1)
				key := uuid.NewString()
				args = append(args, id, "bench", uuid.NewString(), key, key, 1, 9900, "PENDING_PAYMENT", "", id/50, now, now)
			}
			if _, err := statement.ExecContext(ctx, args...); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
	return rep, err
}
