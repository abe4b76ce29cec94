package system

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver that FLASHGATE_MYSQL_DSN is written for

	"flashgate/bench/report"
)

const mysqlTimeoutSeconds = 60 // a count over the orders of one sale, on a busy machine

// checkMySQL counts a sale's rows with plain SQL, past everything of ours.
func checkMySQL(ctx context.Context, bs *report.Breaches, dsn, saleID string, orders, total int) error {
	ctx, cancel := context.WithTimeout(ctx, mysqlTimeoutSeconds*time.Second)
	defer cancel()
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return fmt.Errorf("%s: %w", EnvMySQLDSN, err)
	}
	defer func() { _ = db.Close() }()

	var rows, users, available, locked int64
	err = db.QueryRowContext(ctx,
		`SELECT COUNT(*), COUNT(DISTINCT user_id) FROM orders WHERE sale_id = ? AND status = 'PENDING_PAYMENT'`,
		saleID).Scan(&rows, &users)
	if err != nil {
		return fmt.Errorf("counting the orders in MySQL: %w", err)
	}
	err = db.QueryRowContext(ctx,
		`SELECT available, locked FROM inventory WHERE sale_id = ?`, saleID).Scan(&available, &locked)
	if err != nil {
		return fmt.Errorf("reading the inventory in MySQL: %w", err)
	}
	got := fmt.Sprintf("%d orders of %d users, available %d, locked %d", rows, users, available, locked)
	want := fmt.Sprintf("%d orders of %d users, available %d, locked %d", orders, orders, total-orders, orders)
	if got != want {
		bs.Add(ruleLedger, "%s, and should be %s", got, want)
	}
	return nil
}
