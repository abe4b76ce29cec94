package stock

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

var watchCases = []testCase{
	{"server tells a sale that was loaded from one that was reconciled", func(t *testing.T, f *fixture) {
		process, mark, err := f.Server(t.Context(), f.sale.ID, "")
		require.NoError(t, err)
		require.NotEmpty(t, process)
		require.Empty(t, mark)
		_, mark, err = f.Server(t.Context(), f.sale.ID, "another process")
		require.NoError(t, err)
		require.Empty(t, mark, "a run under a process that is gone vouches for nothing")
		for _, reconciled := range []string{process, ""} {
			_, mark, err = f.Server(t.Context(), f.sale.ID, reconciled)
			require.NoError(t, err)
			require.Equal(t, process, mark)
		}
	}},
	{"server tells that the process is another one", func(t *testing.T, f *fixture) {
		f.setMeta(t, "server", "the master before")
		process, mark, err := f.Server(t.Context(), f.sale.ID, "")
		require.NoError(t, err)
		require.Equal(t, "the master before", mark)
		_, mark, err = f.Server(t.Context(), f.sale.ID, process)
		require.NoError(t, err)
		require.Equal(t, process, mark)
	}},
	{"oldest finds the oldest open batch in slices", func(t *testing.T, f *fixture) {
		f = loadedFixture(t, f.Store, 1000)
		find := func(slices int) sale.ID {
			t.Helper()
			var oldest sale.ID
			for cursor := uint64(0); ; {
				found, next, err := f.OldestOpen(t.Context(), f.sale.ID, cursor, slices)
				require.NoError(t, err)
				if found != 0 && (oldest == 0 || found < oldest) {
					oldest = found
				}
				if cursor = next; cursor == 0 {
					return oldest
				}
			}
		}
		require.Zero(t, find(1))
		void := f.batch(f.order("void", "", 1))
		f.mustRelease(t, void, StateVoid)
		first := f.batch(f.order("first", "", 1))
		f.reserve(t, first)
		for i := range 3 * oldestCount {
			b := f.batch(f.order(fmt.Sprint("u", i), "", 1))
			_, err := f.Reserve(t.Context(), b, f.terms, time.Minute, make([]Outcome, 1))
			require.NoError(t, err)
		}
		require.Equal(t, first.ID, find(1))
		require.Equal(t, first.ID, find(100), "a tombstone is not open")
		f.mustConfirm(t, first, StateConfirmed)
		require.Equal(t, first.ID, find(1))
		_, err := f.Settle(t.Context(), f.sale.ID, []sale.ID{first.ID}, f.noneActive(t))
		require.NoError(t, err)
		require.Greater(t, find(1), first.ID)
	}},
}

// setMeta writes a field of meta behind the scripts' backs.
func (f *fixture) setMeta(t *testing.T, field, value string) {
	t.Helper()
	key := keysOf(f.sale.ID, wholeSale, keyMeta)[0]
	require.NoError(t, f.client.Do(t.Context(), f.client.B().Hset().Key(key).FieldValue().FieldValue(field, value).Build()).Error())
}
