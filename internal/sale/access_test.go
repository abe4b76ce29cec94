package sale

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rulebook is rules by their ids, the first of which is 1; after readable it fails.
type rulebook struct {
	rules    []AccessRule
	readable int
}

func (r *rulebook) AccessSince(_ context.Context, id int64, limit int) ([]AccessRule, error) {
	if int(id) >= r.readable && r.readable < len(r.rules) {
		return nil, errors.New("away")
	}
	rest := r.rules[id:]
	return rest[:min(limit, len(rest))], nil
}

func TestAccessBook(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	source := &rulebook{}
	add := func(user string, access Access, until time.Time) {
		source.rules = append(source.rules, AccessRule{
			ID: int64(len(source.rules) + 1), Kind: AccessUser, Value: user, Access: access, Until: until,
		})
	}
	var book AccessBook
	holds := func(now time.Time, changes bool, users ...string) {
		t.Helper()
		source.readable = len(source.rules)
		changed, err := book.Read(t.Context(), source, now)
		require.NoError(t, err)
		require.Equal(t, changes, changed)
		got := []string{}
		for _, r := range book.Rules() {
			got = append(got, r.Value)
		}
		require.ElementsMatch(t, users, got)
	}
	holds(now, false)
	add("mallory", AccessBlock, time.Time{})
	add("eve", AccessBlock, now.Add(time.Minute))
	add("past", AccessBlock, now)
	holds(now, true, "mallory", "eve")
	holds(now.Add(time.Minute-1), false, "mallory", "eve")
	holds(now.Add(time.Minute), true, "mallory")
	add("eve", AccessAllow, time.Time{})
	add("mallory", AccessLift, time.Time{})
	holds(now, true, "eve")
	require.Equal(t, AccessAllow, book.Rules()[0].Access)

	// Page by page, and on from where it failed.
	for i := range 2 * accessPage {
		add("user-"+strconv.Itoa(i), AccessBlock, time.Time{})
	}
	source.readable = accessPage
	changed, err := book.Read(t.Context(), source, now)
	require.ErrorContains(t, err, "away")
	require.True(t, changed)
	require.Equal(t, accessPage+1, len(book.Rules()), "one page, and eve")
	source.readable = len(source.rules)
	changed, err = book.Read(t.Context(), source, now)
	require.NoError(t, err)
	require.True(t, changed)
	require.Equal(t, 2*accessPage+1, len(book.Rules()))
}
