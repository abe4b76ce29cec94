package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"flashgate/internal/bus"
	"flashgate/internal/ledger"
	"flashgate/internal/purchase"
	"flashgate/internal/stock"
)

// Embedded is all three engines in one process: miniredis runs the same scripts, the
// ledger and the bus are SQLite files of the data folder. Redis starts empty each
// time; whoever opens this loads it from the two others.
type Embedded struct {
	Ledger *ledger.Ledger
	Stock  *stock.Store
	Bus    *bus.Embedded

	redis *miniredis.Miniredis
	lock  *os.File
	dir   string
}

// ErrRunning says that another process has the data folder open, and where that one's
// operators' port is.
type ErrRunning struct {
	Dir       string
	Operators string // host:port; "" when it has none
}

func (e *ErrRunning) Error() string {
	return fmt.Sprintf("another flashgate has %s open: stop it, or use another data_dir", e.Dir)
}

// operatorsFile is where a running process says how to reach it.
const operatorsFile = "operators"

// OpenEmbedded opens the data folder for this process alone, and migrates the ledger.
// Error: *ErrRunning.
func OpenEmbedded(ctx context.Context, n Needs) (_ *Embedded, err error) {
	e := &Embedded{dir: n.Config.DataDir}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return nil, err
	}
	if e.lock, err = awaitLock(ctx, e.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()

	o := ledgerOptions(n)
	o.Driver, o.DSN = ledger.DriverSQLite, filepath.Join(e.dir, "ledger.db")
	if e.Ledger, err = ledger.Open(o); err != nil {
		return nil, err
	}
	if _, err := e.Ledger.Migrate(ctx); err != nil {
		return nil, err
	}
	e.redis = miniredis.NewMiniRedis()
	if err := e.redis.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("embedded Redis: %w", err)
	}
	r := &n.Config.Redis
	e.Stock, err = stock.Open(stock.Options{
		Addresses: []string{e.redis.Addr()}, DialTimeout: r.DialTimeout, CallTimeout: r.CallTimeout, MaxWaitConnections: r.WaitConnections,
		Registerer: n.Registerer,
	})
	if err != nil {
		return nil, err
	}
	b := busOptions(n, purchase.Checker(e.Stock, n.Log))
	b.File = filepath.Join(e.dir, "bus.db")
	e.Bus, err = bus.OpenEmbedded(b)
	return e, err
}

// A command that has the folder open is done soon; a daemon, which says where it can
// be reached, is not.
const (
	lockWaitSeconds = 5
	lockPollMillis  = 50
)

func awaitLock(ctx context.Context, dir string) (*os.File, error) {
	limit := time.Now().Add(lockWaitSeconds * time.Second)
	for {
		f, err := lock(dir)
		var running *ErrRunning
		if !errors.As(err, &running) || running.Operators != "" || time.Now().After(limit) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPollMillis * time.Millisecond):
		}
	}
}

// lock takes the folder for as long as the process lives, however it dies.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		address, err := os.ReadFile(filepath.Join(dir, operatorsFile))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return nil, &ErrRunning{Dir: dir, Operators: strings.TrimSpace(string(address))}
	}
	// What a killed process announced is no more.
	if err := os.Remove(filepath.Join(dir, operatorsFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Announce tells other processes where this one's operators' port is.
func (e *Embedded) Announce(address string) error {
	return os.WriteFile(filepath.Join(e.dir, operatorsFile), []byte(address+"\n"), 0o600)
}

// Close closes what is open, the lock last.
func (e *Embedded) Close() error {
	var errs []error
	if e.Bus != nil {
		errs = append(errs, e.Bus.Close())
	}
	if e.Stock != nil {
		e.Stock.Close()
	}
	if e.redis != nil {
		e.redis.Close()
	}
	if e.Ledger != nil {
		errs = append(errs, e.Ledger.Close())
	}
	if err := os.Remove(filepath.Join(e.dir, operatorsFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, e.lock.Close())...)
}
