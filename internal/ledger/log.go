package ledger

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"gorm.io/gorm/logger"
)

// maxLoggedBytes bounds a statement in the log; the longest would be megabytes.
const maxLoggedBytes = 500

// queryLog is GORM's logger: it says nothing but which statements were slow. Errors
// are logged once, by who handles them.
type queryLog struct {
	slow time.Duration
	to   *slog.Logger
}

func (q *queryLog) LogMode(logger.LogLevel) logger.Interface { return q }
func (q *queryLog) Info(context.Context, string, ...any)     {}
func (q *queryLog) Warn(context.Context, string, ...any)     {}
func (q *queryLog) Error(context.Context, string, ...any)    {}

func (q *queryLog) Trace(ctx context.Context, begin time.Time, statement func() (string, int64), err error) {
	took := time.Since(begin)
	if took < q.slow || errors.Is(err, context.Canceled) {
		return
	}
	text, rows := statement()
	q.to.WarnContext(ctx, "slow ledger query", "took", took, "rows", rows, "statement", clip(text, maxLoggedBytes))
}

// ParamsFilter keeps values, which name users, out of the log.
func (q *queryLog) ParamsFilter(_ context.Context, query string, _ ...any) (string, []any) {
	return query, nil
}
