package sale

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestIDCarriesTimeNodeAndShard(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMilli(rapid.Int64Range(idEpochMillis, idEpochMillis+1<<41-1).Draw(t, "now"))
		node := rapid.IntRange(0, Nodes-1).Draw(t, "node")
		shard := rapid.IntRange(0, Shards-1).Draw(t, "shard")
		id := NewIDs(node, func() time.Time { return now }).Next(shard)
		if id <= 0 && now.UnixMilli() > idEpochMillis {
			t.Fatalf("id %d is not positive", id)
		}
		if !id.Time().Equal(now) || id.Node() != node || id.Shard() != shard {
			t.Fatalf("%d reads back as %v, node %d, shard %d", id, id.Time(), id.Node(), id.Shard())
		}
		if b := id.AppendBinary(nil); IDFromBinary(string(b)) != id {
			t.Fatalf("binary form %x is another id", b)
		}
	})
}

func TestIDsAreNeverMadeTwice(t *testing.T) {
	for _, clock := range []struct {
		name string
		step time.Duration
	}{{"standing still", 0}, {"going back", -time.Second}, {"running", time.Millisecond}} {
		t.Run(clock.name, func(t *testing.T) {
			var mu sync.Mutex
			now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
			ids := NewIDs(7, func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				now = now.Add(clock.step)
				return now
			})
			const makers, each = 8, 500
			made := make([][]ID, makers)
			var wg sync.WaitGroup
			for m := range made {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range each {
						made[m] = append(made[m], ids.Next(3))
					}
				}()
			}
			wg.Wait()
			seen := make(map[ID]bool)
			for _, of := range made {
				for i, id := range of {
					require.False(t, seen[id], "id %d was made twice", id)
					require.True(t, i == 0 || id > of[i-1], "ids of one maker must grow")
					require.Equal(t, 3, id.Shard())
					seen[id] = true
				}
			}
		})
	}
}

func TestFirstIDAtBoundsByTime(t *testing.T) {
	at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	before := NewIDs(Nodes-1, func() time.Time { return at.Add(-time.Millisecond) }).Next(Shards - 1)
	after := NewIDs(0, func() time.Time { return at }).Next(0)
	require.Less(t, before, FirstIDAt(at))
	require.GreaterOrEqual(t, after, FirstIDAt(at))
}

func TestParseID(t *testing.T) {
	for _, s := range []string{"", "0", "-1", "+1", "007", "1e3", " 1", "9223372036854775808", "x", "1\n"} {
		_, err := ParseID(s)
		require.ErrorIs(t, err, ErrBadID, "%q", s)
	}
	id, err := ParseID("9223372036854775807")
	require.NoError(t, err)
	b, err := json.Marshal(id)
	require.NoError(t, err)
	require.Equal(t, `"9223372036854775807"`, string(b))
	var back ID
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, id, back)
	require.Error(t, json.Unmarshal([]byte(`12`), &back), "a JSON number is no id")
}

func TestShardOfIsTheSameInEveryProcess(t *testing.T) {
	require.Equal(t, 60, ShardOf("alice"))
	require.Equal(t, 1, ShardOf(""))
}
