package bus

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

// A write that fails reaches its sender before local runs, and those after it go through.
func TestEmbeddedWriteFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bus.db")
	b, err := OpenEmbedded(Options{File: file, Check: answering(Unknown), CheckAfter: time.Hour, Logger: quiet()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })

	limit := func(pages string) {
		_, err := b.store.db.ExecContext(t.Context(), "PRAGMA max_page_count = "+pages)
		require.NoError(t, err)
	}
	limit("8") // a full disk
	full := func() error {
		for range 200 {
			called := false
			if err := b.Send(t.Context(), newBatch(50), func() Decision { called = true; return Unknown }); err != nil {
				require.False(t, called)
				return err
			}
		}
		return nil
	}
	require.ErrorContains(t, full(), "full")
	limit("100000")
	send(t, b, newBatch(50), Unknown)
}

// The end is not what a promise rests on: a commit that cannot be written is found by
// the check-back.
func TestEmbeddedEndFails(t *testing.T) {
	open := embeddedPlace(t)
	b := open(t, Options{Check: answering(Unknown), Logger: quiet()}).(embeddedBus)
	sent := newBatch(1)
	require.NoError(t, b.Send(t.Context(), sent, func() Decision {
		require.NoError(t, b.Close())
		return Commit
	}))
	again := open(t, Options{Check: answering(Commit), Logger: quiet()})
	in := newInbox()
	consume(t, again, in.handle, nil)
	eventually(t, "delivered", func() bool { return in.get(sent.ID) != nil })
}

// A half message whose local transaction may be under way is not asked about before its
// time; one of an earlier process has nobody behind it, and is asked about at once.
func TestEmbeddedChecksAfterBound(t *testing.T) {
	checked := make(chan sale.ID, 1_000)
	options := Options{
		File: filepath.Join(t.TempDir(), "bus.db"), Logger: quiet(), CheckAfter: time.Hour, CheckInterval: time.Hour,
		Check: func(_ context.Context, b *sale.Batch) Decision { checked <- b.ID; return Unknown },
	}
	b, err := OpenEmbedded(options)
	require.NoError(t, err)
	sent := newBatch(1)
	send(t, b, sent, Unknown)
	require.NoError(t, b.checkRound(t.Context()))
	require.Empty(t, checked)
	require.NoError(t, b.Close())

	again, err := OpenEmbedded(options)
	require.NoError(t, err)
	require.Equal(t, sent.ID, <-checked)
	require.NoError(t, again.Close())
}
