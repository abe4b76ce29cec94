package system

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/uuid"
	"github.com/redis/rueidis"

	"flashgate/bench/load"
	"flashgate/internal/rig"
)

// The bus of runs that have one of their own. It is the same for all of them, since
// a topic cannot be taken away again; a lock keeps two from using it at one time.
const (
	ownTopic         = "flashgate-bench-orders"
	ownProducerGroup = "flashgate-bench-gateway"
	ownConsumerGroup = "flashgate-bench-worker"
	ownLock          = "flashgate-bench " // and the database of the config
)

const (
	ownTimeoutSeconds = 60 // to drop a database with some million orders
	unlinkSales       = 50 // of which the keys go at one time

	accessDenied = 1044 // MySQL: this user may not create such a database
)

// own is a part of the real engines that is the run's own: what others sold before, or
// sell meanwhile, is not in its figures, and it leaves nothing behind.
type own struct {
	dsn string

	mu    sync.Mutex
	sales []string
}

// note remembers a sale, whose keys have to go.
func (w *own) note(sale string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sales = append(w.sales, sale)
}

// env is what the run's processes have in their environment.
func (w *own) env() []string {
	if w == nil {
		return os.Environ()
	}
	return append(os.Environ(), EnvMySQLDSN+"="+w.dsn)
}

// withOwn calls use, in which a system has a database and a topic of its own, if the
// options want that and the engines are real ones: a reconciler that finds what earlier
// runs sold begins by reconciling it, beside those that are measured. Where the ledger's
// user may not create a database, those of the config are used.
func withOwn(ctx context.Context, o *Options, p *load.Progress, use func() error) (err error) {
	if !o.Own || o.Start != StartDaemons {
		return use()
	}
	config, err := ReadDocument(o.ConfigFile())
	if err != nil {
		return err
	}
	dsn, err := mysql.ParseDSN(secret(o.ConfigFile(), EnvMySQLDSN))
	if err != nil || config.Get(keyDSNVariable) != EnvMySQLDSN {
		p.Step("the ledger of %s is used: its DSN does not come by %s", o.ConfigFile(), EnvMySQLDSN)
		return use()
	}
	db, err := sql.Open("mysql", dsn.FormatDSN())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	unlock, err := lock(ctx, db, ownLock+dsn.DBName)
	if err != nil {
		return err
	}
	defer unlock()

	// The rig's user may create databases for tests.
	name := rig.TestDatabasePrefix + "bench_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+name+" CHARACTER SET utf8mb4"); err != nil {
		if refused := (*mysql.MySQLError)(nil); errors.As(err, &refused) && refused.Number == accessDenied {
			p.Step("the ledger of %s is used: its user may create none of the run's own", o.ConfigFile())
			return use()
		}
		return fmt.Errorf("a database of the run's own: %w", err)
	}
	dsn.DBName = name
	mine := &own{dsn: dsn.FormatDSN()}
	o.own = mine
	defer func() {
		o.own = nil
		p.Step("removing database %s and the keys of %d sales", name, len(mine.sales))
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), ownTimeoutSeconds*time.Second)
		defer cancel()
		_, dropped := db.ExecContext(stopping, "DROP DATABASE "+name)
		err = errors.Join(err, dropped, unlink(stopping, config.List(keyRedis), mine.sales))
	}()
	return use()
}

// lock takes the bus of such runs for this one, until unlock.
func lock(ctx context.Context, db *sql.DB, name string) (unlock func(), err error) {
	conn, err := db.Conn(ctx) // the lock is the connection's
	if err != nil {
		return nil, fmt.Errorf("the ledger: %w", err)
	}
	var got int
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, 0)", name).Scan(&got); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if got != 1 {
		return nil, errors.Join(errors.New("another run of the driver is using these engines: wait for its end, or give --own=false"), conn.Close())
	}
	return func() {
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK(?)", name) // gone with the connection at the latest
		_ = conn.Close()
	}, nil
}

// unlink removes what sales have in Redis.
func unlink(ctx context.Context, addresses, sales []string) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: addresses, DisableCache: true})
	if err != nil {
		return fmt.Errorf("Redis: %w", err)
	}
	defer client.Close()
	for len(sales) > 0 {
		n := min(len(sales), unlinkSales)
		var commands rueidis.Commands
		for _, sale := range sales[:n] {
			commands = append(commands, client.B().Unlink().Key(keysOf(sale)...).Build())
		}
		for _, r := range client.DoMulti(ctx, commands...) {
			if err := r.Error(); err != nil {
				return fmt.Errorf("removing the keys of sales: %w", err)
			}
		}
		sales = sales[n:]
	}
	return nil
}
