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

// Migrate brings the schema up to this program's version and returns the files it
// applied, none when there was nothing to do. Of several at once one works and the
// others wait for it.
func (l *Ledger) Migrate(ctx context.Context) (applied []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.options.MigrateTimeout)
	defer cancel()
	// Not goose's locker: goose makes its own table before it takes that lock.
	unlock, err := l.engine.lockMigrate(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("wait to migrate the ledger: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := l.dropEmptyVersions(ctx); err != nil {
		return nil, err
	}
	provider, err := l.migrator()
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

// dropEmptyVersions removes goose's table when it has no row at all: what a process
// leaves that died right after making it on MySQL, and what goose refuses to start on.
func (l *Ledger) dropEmptyVersions(ctx context.Context) error {
	var rows int64
	err := l.pools[0].QueryRowContext(ctx, "SELECT COUNT(*) FROM goose_db_version").Scan(&rows)
	if err == nil && rows == 0 {
		_, err = l.pools[0].ExecContext(ctx, "DROP TABLE goose_db_version")
	}
	if err != nil && !l.engine.noTable(err) {
		return fmt.Errorf("migrate the ledger: %w", err)
	}
	return nil
}

func (l *Ledger) migrator() (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations/"+l.engine.name)
	if err != nil {
		panic("BUG: no migrations for " + l.engine.name)
	}
	dialect := map[string]goose.Dialect{"mysql": goose.DialectMySQL, "sqlite": goose.DialectSQLite3}[l.engine.name]
	provider, err := goose.NewProvider(dialect, l.pools[0], files,
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(l.options.Logger))
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

// lockMySQLMigration holds a named lock of the server on a connection of its own; it
// goes when that connection does. The name is the server's, not the database's, and at
// most 64 characters. (MySQL has given up SHA1 and MD5.)
func lockMySQLMigration(ctx context.Context, l *Ledger) (unlock func() error, err error) {
	const name = "SHA2(CONCAT('flashgate migrate ', DATABASE()), 224)"
	conn, err := l.pools[0].Conn(ctx)
	if err != nil {
		return nil, err
	}
	var got sql.NullInt64
	err = conn.QueryRowContext(ctx, "SELECT GET_LOCK("+name+", ?)", int(l.options.MigrateTimeout.Seconds())).Scan(&got)
	if err == nil && got.Int64 != 1 {
		err = errors.New("another migration is under way")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func() error {
		// The caller's context may have ended, and the connection goes back to the pool.
		ctx, cancel := l.deadline(context.WithoutCancel(ctx))
		defer cancel()
		_, err := conn.ExecContext(ctx, "DO RELEASE_LOCK("+name+")")
		return errors.Join(err, conn.Close())
	}, nil
}

// lockSQLiteMigration holds an exclusive transaction on a file beside the ledger: the
// ledger's only writing connection is goose's meanwhile.
func lockSQLiteMigration(ctx context.Context, l *Ledger) (unlock func() error, err error) {
	pool, err := sql.Open(sqlite.DriverName, fmt.Sprintf("%s?_txlock=exclusive&_pragma=busy_timeout(%d)",
		sqliteDSN(l.options.DSN+"-migrate"), l.options.MigrateTimeout.Milliseconds()))
	if err != nil {
		return nil, err
	}
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return func() error {
		err := tx.Rollback()
		if errors.Is(err, sql.ErrTxDone) {
			err = nil // the context ended and took it back
		}
		return errors.Join(err, pool.Close())
	}, nil
}
