//go:build failpoints

package failpoint

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHit: a point does what its file says, once, for whoever passes first; one that is
// not armed does nothing.
func TestHit(t *testing.T) {
	dir = t.TempDir()
	t.Cleanup(func() { dir = "" })
	Hit(AfterHalf)
	file := filepath.Join(dir, string(AfterHalf))
	require.NoError(t, os.WriteFile(file, []byte("30ms"), 0o600))
	began := time.Now()
	Hit(AfterReserve)
	require.FileExists(t, file, "another point's")
	Hit(AfterHalf)
	require.GreaterOrEqual(t, time.Since(began), 30*time.Millisecond)
	require.NoFileExists(t, file)
}

// TestNow: the clock is ahead by what its file says.
func TestNow(t *testing.T) {
	dir = t.TempDir()
	t.Cleanup(func() { dir = "" })
	require.NoError(t, os.WriteFile(filepath.Join(dir, ClockFile), []byte("-1h"), 0o600))
	clock.read.Store(0)
	require.WithinDuration(t, time.Now().Add(-time.Hour), Now(), time.Minute)
}
