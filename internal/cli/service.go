package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"flashgate/internal/config"
	"flashgate/internal/engines"
	"flashgate/internal/operator"
	"flashgate/internal/stock"
)

// withService runs a one-off command on the operators' service: of the running process
// when that one has the embedded engines, of the engines themselves otherwise.
func withService(ctx context.Context, c *config.Config, do func(operator.Service) error) error {
	log := quiet(c)
	n := engines.Needs{Config: c, Log: log}
	if c.Engines == config.Embedded {
		return withEmbedded(ctx, n, do)
	}
	l, err := engines.Ledger(n)
	if err != nil {
		return err
	}
	err = withStock(ctx, n, func(s *stock.Store) error {
		if err := l.Ping(ctx); err != nil {
			return fmt.Errorf("the ledger is not there: %w", err)
		}
		b, err := engines.Bus(n, nil, 0)
		if err != nil {
			return err
		}
		return closeAfter(b, do(newAdmin(c, l, s, newReconciler(c, l, s, b, holder("command"), log, nil))))
	})
	return errors.Join(err, l.Close())
}

// quiet logs only what went wrong: a command's own output is what counts.
func quiet(c *config.Config) *slog.Logger {
	return slog.New(levelAtLeast{slog.LevelError, logger(c).Handler()})
}

func withEmbedded(ctx context.Context, n engines.Needs, do func(operator.Service) error) error {
	if _, err := config.EnsureEnvFile(n.Config.DataDir); err != nil {
		return err
	}
	e, err := engines.OpenEmbedded(ctx, n)
	var running *engines.ErrRunning
	if errors.As(err, &running) && running.Operators != "" {
		token, err := n.Config.AdminToken()
		if err != nil {
			return err
		}
		return do(&operator.Client{Base: "http://" + running.Operators, Token: token})
	}
	if err != nil {
		return err
	}
	r := newReconciler(n.Config, e.Ledger, e.Stock, e.Bus, embeddedHolder, n.Log, nil)
	err = loadAll(ctx, e, r)
	if err == nil {
		err = do(newAdmin(n.Config, e.Ledger, e.Stock, r))
	}
	return errors.Join(err, e.Close())
}

// commandWaitSeconds is how long a command waits for Redis before it says so.
const commandWaitSeconds = 5

func withStock(ctx context.Context, n engines.Needs, do func(*stock.Store) error) error {
	waiting, cancel := context.WithTimeout(ctx, commandWaitSeconds*time.Second)
	defer cancel()
	var last error
	quiet := n
	quiet.Log = slog.New(slog.DiscardHandler)
	s, err := engines.AwaitStock(waiting, quiet, func(err error) { last = err })
	if err != nil {
		return fmt.Errorf("no Redis (is it up? `make up` starts the engines): %w", errors.Join(last, ctx.Err()))
	}
	defer s.Close()
	return do(s)
}

// levelAtLeast raises a handler's level.
type levelAtLeast struct {
	least slog.Level
	slog.Handler
}

func (h levelAtLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= h.least && h.Handler.Enabled(ctx, l)
}
