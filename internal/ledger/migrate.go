package ledger

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/glebarez/sqlite"
	"github.com/pressly/goose/v3"
	"gorm.io/gorm"
)

//go:embed migrations
var migrations embed.FS

// migrateLocker is goose's lock.SessionLocker.
type migrateLocker interface {
	SessionLock(ctx context.Context, conn *sql.Conn) error
	SessionUnlock(ctx context.Context, conn *sql.Conn) error
}

// Migrate brings the schema up to this program's version and returns the files it
// applied, none when there was nothing to do. Of several at once one works and the
// others wait for it.
func (l *Ledger) Migrate(ctx context.Context) (applied []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.options.MigrateTimeout)
	defer cancel()
	provider, err := l.migrator(goose.WithSessionLocker(l.engine.lockMigrate(l)))
	if err != nil {
		return nil, err
	}
	results, err := provider.Up(ctx)
	for _, r := range results {
		applied = append(applied, path.Base(r.Source.Path))
	}
	if err != nil {
		return applied, fmt.Errorf("migrate the ledger: %w", err)
	}
	return applied, nil
}

func (l *Ledger) migrator(options ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations/"+l.engine.name)
	if err != nil {
		panic("BUG: no migrations for " + l.engine.name)
	}
	dialect := map[string]goose.Dialect{"mysql": goose.DialectMySQL, "sqlite": goose.DialectSQLite3}[l.engine.name]
	provider, err := goose.NewProvider(dialect, l.pools[0], files,
		append(options, goose.WithDisableGlobalRegistry(true), goose.WithSlog(l.options.Logger))...)
	if err != nil {
		return nil, fmt.Errorf("read the ledger's migrations: %w", err)
	}
	return provider, nil
}

// Ping says whether the ledger can be used: it answers, and its schema is this
// program's or a later one.
func (l *Ledger) Ping(ctx context.Context) error {
	provider, err := l.migrator()
	if err != nil {
		return err
	}
	sources := provider.ListSources()
	want := sources[len(sources)-1].Version
	var have int64
	err = l.read(ctx, func(db *gorm.DB) error {
		return db.Raw("SELECT COALESCE(MAX(version_id), 0) FROM goose_db_version WHERE is_applied").Find(&have).Error
	})
	switch {
	case err != nil && l.engine.noTable(err):
		return errors.New("the ledger has no schema: run flashgate migrate")
	case err != nil:
		return fmt.Errorf("ledger: %w", err)
	case have < want:
		return fmt.Errorf("the ledger's schema is at version %d of %d: run flashgate migrate", have, want)
	}
	return nil
}

// mysqlMigration holds a named lock of the server on the connection that migrates;
// it goes when that connection does.
type mysqlMigration struct{ wait int }

func mysqlMigrateLock(l *Ledger) migrateLocker {
	return mysqlMigration{wait: int(l.options.MigrateTimeout.Seconds())}
}

// The name is the server's, not the database's, and at most 64 characters. (MySQL has
// given up SHA1 and MD5.)
const mysqlMigrateLockName = "SHA2(CONCAT('flashgate migrate ', DATABASE()), 224)"

func (m mysqlMigration) SessionLock(ctx context.Context, conn *sql.Conn) error {
	var got sql.NullInt64
	err := conn.QueryRowContext(ctx, "SELECT GET_LOCK("+mysqlMigrateLockName+", ?)", m.wait).Scan(&got)
	if err == nil && got.Int64 != 1 {
		err = errors.New("another migration is under way")
	}
	return err
}

func (m mysqlMigration) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "DO RELEASE_LOCK("+mysqlMigrateLockName+")")
	return err
}

// sqliteMigration is an exclusive transaction on a file beside the ledger: goose
// needs the ledger's own connection for its transactions.
type sqliteMigration struct {
	dsn  string
	pool *sql.DB
	tx   *sql.Tx
}

func sqliteMigrateLock(l *Ledger) migrateLocker {
	return &sqliteMigration{dsn: fmt.Sprintf("%s?_txlock=exclusive&_pragma=busy_timeout(%d)",
		sqliteDSN(l.options.DSN+"-migrate"), l.options.MigrateTimeout.Milliseconds())}
}

func (m *sqliteMigration) SessionLock(ctx context.Context, _ *sql.Conn) (err error) {
	if m.pool, err = sql.Open(sqlite.DriverName, m.dsn); err != nil {
		return err
	}
	if m.tx, err = m.pool.BeginTx(ctx, nil); err != nil {
		return errors.Join(err, m.pool.Close())
	}
	return nil
}

func (m *sqliteMigration) SessionUnlock(context.Context, *sql.Conn) error {
	return errors.Join(m.tx.Rollback(), m.pool.Close())
}
