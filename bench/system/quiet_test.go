package system

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/bench/load"
)

// A load waits for a daemon that is busy, and no longer than its context lasts.
func TestQuietWaitsForABusyDaemon(t *testing.T) {
	d, err := startDaemon("/bin/sh", []string{"-c", "while :; do :; done"}, os.Environ(), t.TempDir(), "busy", "", "")
	require.NoError(t, err)
	defer func() {
		require.NoError(t, d.cmd.Process.Kill())
		<-d.ended
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s := &System{daemons: []*Daemon{d}, Progress: &load.Progress{}}
	require.ErrorIs(t, s.Quiet(ctx), context.DeadlineExceeded)
}
