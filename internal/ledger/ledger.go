// Package ledger is the system of record in MySQL, MariaDB or SQLite, through GORM:
// sales, their inventory, the orders, and what is still owed to Redis.
package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"gorm.io/gorm"

	"flashgate/internal/sale"
)

// The values of Options.Driver.
const (
	DriverMySQL  = "mysql" // MySQL 8.0+ and MariaDB 10.6+
	DriverSQLite = "sqlite"
)

// Options say which database, and within which bounds. A zero takes the default.
type Options struct {
	Driver string // DriverMySQL or DriverSQLite
	// DSN is go-sql-driver's form for MySQL, and a file for SQLite. The settings that
	// exactness rests on (UTC, strict mode, found rows) are set over it.
	DSN string

	MaxOpen         int           // connections, at least 2; default 16. SQLite has one writer whatever it says
	MaxConnLifetime time.Duration // default 30 min, below the usual wait_timeout of servers and proxies

	Timeout        time.Duration // of a call; default 5 s
	ApplyTimeout   time.Duration // of Apply with its retries; default 30 s
	MigrateTimeout time.Duration // of Migrate, waiting for another one included; default 5 min

	SlowQuery  time.Duration         // a statement that takes longer is logged; default 500 ms
	Logger     *slog.Logger          // default slog.Default()
	Registerer prometheus.Registerer // nil: no metrics
}

func (o *Options) setDefaults() {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	if o.MaxOpen <= 0 {
		o.MaxOpen = 16
	}
	o.MaxOpen = max(o.MaxOpen, 2) // Migrate holds its lock on one and works on another
	set(&o.MaxConnLifetime, 30*time.Minute)
	set(&o.Timeout, 5*time.Second)
	set(&o.ApplyTimeout, 30*time.Second)
	set(&o.MigrateTimeout, 5*time.Minute)
	set(&o.SlowQuery, 500*time.Millisecond)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Ledger is one process's connection to the ledger. Its methods may be called side
// by side. Each has a deadline, its own or its caller's, whichever is sooner. A
// refusal is a *sale.Error; any other error is a fault of the engine, after which a
// change may or may not have happened: all changes can be asked for again.
type Ledger struct {
	engine  *engine
	writes  *gorm.DB
	reads   *gorm.DB // the same pool on MySQL
	pools   []*sql.DB
	options Options
	metrics *metrics

	orderInsert *preparedInsert
}

// Open opens the ledger. It does not connect to MySQL, so that daemons start in any
// order: Ping says whether the ledger can be used. An error is a fault of options, or
// of the SQLite file.
func Open(options Options) (*Ledger, error) {
	options.setDefaults()
	l := &Ledger{options: options}
	var err error
	switch options.Driver {
	case DriverMySQL:
		err = l.openMySQL()
	case DriverSQLite:
		err = l.openSQLite()
	default:
		err = fmt.Errorf("driver %q: want %q or %q", options.Driver, DriverMySQL, DriverSQLite)
	}
	if err == nil {
		l.orderInsert = &preparedInsert{
			head:    "INSERT INTO orders (" + strings.Join(orderColumns, ", ") + ") VALUES ",
			columns: len(orderColumns),
			sizes:   l.engine.insertSizes,
		}
		l.metrics, err = newMetrics(options.Registerer, l.pools[0])
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return l, nil
}

// Close closes the connections. Idempotent.
func (l *Ledger) Close() error {
	var errs []error
	for _, pool := range l.pools {
		errs = append(errs, pool.Close())
	}
	return errors.Join(errs...)
}

func (l *Ledger) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.options.Timeout)
}

// read runs f on the reading pool within the deadline of a call. Queries end in Find:
// GORM's Scan writes each statement out for its logger, values and all.
func (l *Ledger) read(ctx context.Context, f func(db *gorm.DB) error) error {
	ctx, cancel := l.deadline(ctx)
	defer cancel()
	return f(l.reads.WithContext(ctx))
}

// change runs f in a transaction within the deadline of a call, again when it was
// the victim of a deadlock.
func (l *Ledger) change(ctx context.Context, f func(tx *gorm.DB) error) error {
	return l.changeWithin(ctx, l.options.Timeout, retryable, f)
}

// changeWithin is change with a time-out of its own, again after the errors that retry names.
func (l *Ledger) changeWithin(ctx context.Context, timeout time.Duration, retry func(error) bool, f func(tx *gorm.DB) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := l.transaction(ctx, f)
		if err == nil || !retry(err) || attempt == maxAttempts || pause(ctx, attempt) != nil {
			return err
		}
	}
}

// transaction runs f in one transaction, READ COMMITTED on MySQL: gap locks would
// have workers wait for each other's inserts, and a read after a lock must see what
// the lock's last holder committed.
func (l *Ledger) transaction(ctx context.Context, f func(tx *gorm.DB) error) error {
	return l.writes.WithContext(ctx).Transaction(f, l.engine.txOptions)
}

// now is the process's clock as the ledger stores it. Leases and nodes, which several
// machines compare, go by the clock of the database instead.
func now() moment { return moment{time.Now()} }

func notFound(code sale.Code, format string, args ...any) error {
	return &sale.Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}
