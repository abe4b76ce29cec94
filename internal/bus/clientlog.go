package bus

import (
	"context"
	"log/slog"
	"sync"

	"github.com/apache/rocketmq-client-go/v2/rlog"
)

// clientLog takes what the RocketMQ client logs. Its errors become warnings, for what
// matters we report ourselves, where it is handled; all else is for debugging. Fields
// that hold whole messages are left out: they carry user ids, and at ERROR for
// every half message that was not committed.
type clientLog struct{ log *slog.Logger }

// silenceClient gives the client's logger, one for the process, to log.
var silenceClient = func() func(*slog.Logger) {
	var once sync.Once
	return func(log *slog.Logger) {
		once.Do(func() { rlog.SetLogger(&clientLog{log: log.With("client", "rocketmq")}) })
	}
}()

// notCommitted is what the client reports as an error and is none: a decision other
// than commit.
const notCommitted = "executeLocalTransaction but state unexpected"

func (l *clientLog) write(level slog.Level, text string, fields map[string]any) {
	if text == notCommitted || !l.log.Enabled(context.Background(), level) {
		return
	}
	attributes := make([]slog.Attr, 0, len(fields))
	for key, value := range fields {
		if key != "message" && key != rlog.LogKeyMessages {
			attributes = append(attributes, slog.Any(key, value))
		}
	}
	l.log.LogAttrs(context.Background(), level, text, attributes...)
}

// Debug drops: the client says thousands of things a second here.
func (l *clientLog) Debug(string, map[string]any) {}

// Info implements rlog.Logger.
func (l *clientLog) Info(text string, fields map[string]any) { l.write(slog.LevelDebug, text, fields) }

// Warning implements rlog.Logger.
func (l *clientLog) Warning(text string, fields map[string]any) {
	l.write(slog.LevelDebug, text, fields)
}

// Error implements rlog.Logger.
func (l *clientLog) Error(text string, fields map[string]any) { l.write(slog.LevelWarn, text, fields) }

// Fatal implements rlog.Logger, and ends nothing: only main exits the process.
func (l *clientLog) Fatal(text string, fields map[string]any) { l.write(slog.LevelError, text, fields) }

// Level implements rlog.Logger: the level is that of the slog handler.
func (l *clientLog) Level(string) {}

// OutputPath implements rlog.Logger: the output is that of the slog handler.
func (l *clientLog) OutputPath(string) error { return nil }
