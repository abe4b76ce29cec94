package scenario

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/bench/load"
)

func drawWave(t *rapid.T) Wave {
	w := Wave{
		Peak: float64(rapid.IntRange(100, 5_000).Draw(t, "peak")),
		Lead: time.Duration(rapid.IntRange(100, 3_000).Draw(t, "lead")) * time.Millisecond,
		Half: time.Duration(rapid.IntRange(100, 3_000).Draw(t, "half")) * time.Millisecond,
		Tail: time.Duration(rapid.IntRange(0, 5_000).Draw(t, "tail")) * time.Millisecond,
	}
	w.Quiet = w.Peak / float64(rapid.IntRange(2, 50).Draw(t, "calm"))
	return w
}

// TestAWaveIsAsHighAsItIsTold: arrivals come in order, and in the opening second there
// are as many as the peak says.
func TestAWaveIsAsHighAsItIsTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWave(t)
		require.NoError(t, w.Check())
		quiet, opening, last := 0, 0, time.Duration(0)
		for _, at := range w.arrivals() {
			require.GreaterOrEqual(t, at, last)
			last = at
			switch {
			case at < w.Lead:
				quiet++
			case at < w.Lead+openingSecond:
				opening++
			}
		}
		require.InDelta(t, w.Peak, opening, 2)
		require.InDelta(t, w.Quiet*w.Lead.Seconds(), quiet, 2)
		require.Less(t, last, w.Lead+openingSecond+w.Tail)
	})
}

// TestMixedPlansItsShares: page reads are the share told, at each gateway of two; who
// is early comes back.
func TestMixedPlansItsShares(t *testing.T) {
	m := Mixed{Wave: Wave{Peak: 10_000, Quiet: 1_000, Lead: time.Second, Half: time.Second, Tail: 2 * time.Second}, PageReads: 90, Units: 20}
	arrivals := m.arrivals()
	who, shoppers := m.plan(arrivals)
	reads, early := [2]int{}, map[int]bool{}
	asked := map[int]bool{}
	for i, s := range who {
		switch {
		case s == pageRead:
			reads[i%2]++
		case arrivals[i] < m.Lead:
			require.False(t, early[s])
			early[s] = true
		default:
			require.False(t, asked[s], "asks once after the opening")
			asked[s] = true
		}
	}
	require.InDelta(t, 0.45, float64(reads[0])/float64(len(who)), 0.001)
	require.InDelta(t, 0.45, float64(reads[1])/float64(len(who)), 0.001)
	require.Len(t, asked, shoppers)
	for s := range early {
		require.True(t, asked[s])
	}
}

// TestMixedCatches plants one wrong answer in sound ones.
func TestMixedCatches(t *testing.T) {
	m := Mixed{Wave: Wave{Peak: 200, Quiet: 20, Lead: 2 * time.Second, Half: time.Second, Tail: time.Second}, PageReads: 50, Units: 50}
	arrivals := m.arrivals()
	who, shoppers := m.plan(arrivals)
	total := shoppers / 2
	ks := load.NewKinds()
	yes, no, early, page := ks.Number(202, "", nil), ks.Number(409, "SOLD_OUT", nil), ks.Number(409, "NOT_STARTED", nil), ks.Number(200, "", nil)
	sound := func() *load.Recording {
		rec := &load.Recording{Answers: make([]load.Answer, len(who)), Kinds: ks}
		for i, s := range who {
			a := load.Answer{Status: 409, Kind: no, DoneNanos: int64(arrivals[i])}
			switch {
			case s == pageRead:
				a.Status, a.Kind = 200, page
			case arrivals[i] < m.Lead:
				a.Kind = early
			case s < total:
				a.Status, a.Kind, a.Order = 202, yes, int64(s+1)
			}
			rec.Answers[i] = a
		}
		return rec
	}
	find := func(what func(i, s int) bool) int {
		for i, s := range who {
			if what(i, s) {
				return i
			}
		}
		t.Fatal("no such request")
		return 0
	}
	late := func(s int) int {
		return find(func(i, w int) bool { return w == s && arrivals[i] >= m.Lead })
	}
	require.Empty(t, m.check(sound(), arrivals, who, total))
	for rule, plant := range map[string]func(*load.Recording){
		ruleNotBefore: func(r *load.Recording) {
			r.Answers[find(func(i, s int) bool { return s != pageRead && arrivals[i] < time.Second })].Kind = no
		},
		rulePage: func(r *load.Recording) {
			r.Answers[find(func(_, s int) bool { return s == pageRead })].Status = 503
		},
		RuleOversell: func(r *load.Recording) {
			r.Answers[late(total)] = load.Answer{Status: 202, Kind: yes, Order: 9999, DoneNanos: int64(arrivals[late(total)])}
		},
		ruleSellAll: func(r *load.Recording) {
			r.Answers[late(0)] = load.Answer{Status: 409, Kind: no, DoneNanos: int64(arrivals[late(0)])}
		},
		RuleSoldOut: func(r *load.Recording) { // long after the opening
			r.Answers[late(shoppers-1)].Kind = early
		},
		RuleAnswered: func(r *load.Recording) {
			r.Answers[late(shoppers-1)] = load.Answer{Kind: load.KindNoAnswer}
		},
	} {
		rec := sound()
		plant(rec)
		bs := m.check(rec, arrivals, who, total)
		require.Len(t, bs, 1, rule)
		require.Equal(t, rule, bs[0].Rule)
	}
}
