package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/glebarez/sqlite"
	driver "github.com/go-sql-driver/mysql"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
)

const (
	// LockWaitSeconds bounds the wait for one row lock. The lock of a sale is held for
	// milliseconds; MySQL's default of 50 s is beyond every deadline here.
	lockWaitSeconds = 5
	// DialTimeoutSeconds bounds a connection attempt to a host that does not answer.
	dialTimeoutSeconds = 3
	// SQLiteReaders is the number of connections that read beside the one writer.
	sqliteReaders = 4
)

// engine is what the SQL of MySQL and SQLite does not have in common.
type engine struct {
	name      string
	txOptions *sql.TxOptions
	// snapshotOptions begin a transaction that reads, all of it as of its first statement.
	snapshotOptions *sql.TxOptions
	now             string                       // the database's time
	after           func(d time.Duration) string // the database's time, d later
	lastID          string                       // the id that this connection's last INSERT made
	insertIgnore    string                       // insert, skipping rows whose key is there
	forUpdate       string                       // ends a SELECT that locks its rows
	useIndex        func(index string) string    // follows a table's name
	thenJoin        string                       // a join in which the left table is read first
	bytes           func(s string) any           // a value of a byte string column
	insertSizes     []int                        // rows in one INSERT, descending to 1
	// lockMigrate lets one Migrate at a time in.
	lockMigrate func(ctx context.Context, l *Ledger) (unlock func() error, err error)
	noTable     func(err error) bool // the error of a table that is not there
}

var mysqlEngine = engine{
	name:            "mysql",
	txOptions:       &sql.TxOptions{Isolation: sql.LevelReadCommitted},
	snapshotOptions: &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
	now:             "UTC_TIMESTAMP(3)",
	after: func(d time.Duration) string {
		return fmt.Sprintf("UTC_TIMESTAMP(3) + INTERVAL %d MICROSECOND", d.Microseconds())
	},
	lastID:       "LAST_INSERT_ID()",
	insertIgnore: "INSERT IGNORE",
	forUpdate:    " FOR UPDATE",
	useIndex:     func(index string) string { return " FORCE INDEX (" + index + ")" },
	thenJoin:     " STRAIGHT_JOIN ",
	// Bytes, not a string: a string literal must be valid in the connection's
	// character set, and an Idempotency-Key may hold any bytes.
	bytes: func(s string) any { return octets(s) },
	// The largest is well below the protocol's 65,535 placeholders at 12 columns a row.
	insertSizes: []int{512, 64, 8, 1},
	lockMigrate: lockMySQLMigration,
	noTable:     func(err error) bool { return mysqlNumber(err) == 1146 },
}

var sqliteEngine = engine{
	name: "sqlite",
	now:  "strftime('%Y-%m-%d %H:%M:%f', 'now')",
	after: func(d time.Duration) string {
		return fmt.Sprintf("strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', '%+.3f seconds')", d.Seconds())
	},
	lastID:       "last_insert_rowid()",
	insertIgnore: "INSERT OR IGNORE",
	forUpdate:    "", // every transaction is the only writer from its first statement
	useIndex:     func(index string) string { return " INDEXED BY " + index },
	thenJoin:     " CROSS JOIN ",
	bytes:        func(s string) any { return s },
	// The driver's binding is quadratic in the number of values.
	insertSizes: []int{32, 8, 1},
	lockMigrate: lockSQLiteMigration,
	noTable:     func(err error) bool { return strings.Contains(err.Error(), "no such table") },
}

func (l *Ledger) openMySQL() error {
	config, err := driver.ParseDSN(l.options.DSN)
	if err != nil {
		return fmt.Errorf("mysql DSN: %w", err) // says which part, and not the password
	}
	if config.DBName == "" {
		return fmt.Errorf("mysql DSN: no database named")
	}
	config.ParseTime = true
	config.Loc = time.UTC
	// An UPDATE counts the rows it found, as SQLite does, not those it changed.
	config.ClientFoundRows = true
	// One round trip a statement in place of three.
	config.InterpolateParams = true
	if config.Timeout == 0 {
		config.Timeout = dialTimeoutSeconds * time.Second
	}
	// The context ends a call; these end a wait for a peer that is gone.
	if config.ReadTimeout == 0 {
		config.ReadTimeout = l.options.MigrateTimeout
	}
	if config.WriteTimeout == 0 {
		config.WriteTimeout = l.options.ApplyTimeout
	}
	if config.Params == nil {
		config.Params = map[string]string{}
	}
	config.Params["time_zone"] = "'+00:00'"
	// Without strict mode a value that is too long is cut and stored.
	config.Params["sql_mode"] = "'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
	config.Params["innodb_lock_wait_timeout"] = fmt.Sprint(lockWaitSeconds)

	// The driver would write every lost connection to stderr; its errors say as much.
	config.Logger = &driver.NopLogger{}

	connector, err := driver.NewConnector(config)
	if err != nil {
		return fmt.Errorf("mysql DSN: %w", err)
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(l.options.MaxOpen)
	pool.SetMaxIdleConns(l.options.MaxOpen)
	pool.SetConnMaxLifetime(l.options.MaxConnLifetime)
	l.pools = append(l.pools, pool)
	l.engine = &mysqlEngine

	l.writes, err = l.gorm(mysql.New(mysql.Config{
		Conn: pool,
		// Both would need, or follow from, a connection at once.
		SkipInitializeWithVersion: true,
		DisableWithReturning:      true,
	}))
	l.reads = l.writes
	return err
}

// openSQLite opens one connection that writes and a few that only read: with one
// writer, SQLITE_BUSY can come from other processes alone.
func (l *Ledger) openSQLite() (err error) {
	if l.options.DSN == "" || strings.HasPrefix(l.options.DSN, ":memory:") {
		return fmt.Errorf("sqlite: want a file, got %q", l.options.DSN)
	}
	l.engine = &sqliteEngine
	open := func(connections int, settings string) (*gorm.DB, error) {
		pool, err := sql.Open(sqlite.DriverName, sqliteDSN(l.options.DSN)+
			fmt.Sprintf("?_pragma=busy_timeout(%d)&", l.options.Timeout.Milliseconds())+settings)
		if err != nil {
			return nil, err
		}
		pool.SetMaxOpenConns(connections)
		pool.SetMaxIdleConns(connections)
		l.pools = append(l.pools, pool)
		db, err := l.gorm(&sqlite.Dialector{Conn: pool})
		if err != nil {
			return nil, fmt.Errorf("sqlite file %s: %w", l.options.DSN, err)
		}
		return db, nil
	}
	// FULL: a commit that was answered survives the loss of power too.
	l.writes, err = open(1, "_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate")
	if err == nil {
		l.reads, err = open(sqliteReaders, "_pragma=query_only(1)")
	}
	return err
}

// sqliteDSN is the URI of a file: a path may hold what means something in a URI.
func sqliteDSN(path string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath()
}

func (l *Ledger) gorm(dialector gorm.Dialector) (*gorm.DB, error) {
	return gorm.Open(dialector, &gorm.Config{
		SkipDefaultTransaction: true,
		DisableAutomaticPing:   true,
		Logger:                 &queryLog{slow: l.options.SlowQuery, to: l.options.Logger},
	})
}

// exec runs hot statements past GORM, which would parse and build them anew each
// time, on the connection that tx holds.
func exec(ctx context.Context, tx *gorm.DB, query string, args ...any) (rows int64, err error) {
	started := time.Now()
	result, err := tx.Statement.ConnPool.ExecContext(ctx, query, args...)
	if err == nil {
		rows, err = result.RowsAffected()
	}
	tx.Logger.Trace(ctx, started, func() (string, int64) { return query, rows }, err)
	return rows, err
}

// insert writes rows of len(columns) values each, which args holds one after the
// other, in as few statements as the engine takes. verb is INSERT, or insertIgnore.
func (e *engine) insert(ctx context.Context, tx *gorm.DB, verb, table string, columns []string, args []any) (inserted int64, err error) {
	width := len(columns)
	if len(args)%width != 0 {
		panic(fmt.Sprintf("BUG: %d values in rows of %d for %s", len(args), width, table))
	}
	row := "(?" + strings.Repeat(",?", width-1) + ")"
	head := verb + " INTO " + table + " (" + strings.Join(columns, ", ") + ") VALUES "
	for len(args) > 0 {
		rows := min(len(args)/width, e.insertSizes[0])
		query := head + row + strings.Repeat(","+row, rows-1)
		n, err := exec(ctx, tx, query, args[:rows*width]...)
		if err != nil {
			return inserted, err
		}
		inserted += n
		args = args[rows*width:]
	}
	return inserted, nil
}

// in is "(?, ?, …)" for n values.
func in(n int) string { return "(?" + strings.Repeat(",?", n-1) + ")" }
