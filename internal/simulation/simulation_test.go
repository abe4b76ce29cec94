package simulation

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// plantedHistories is within how many a planted bug is found: most take a few dozen, the
// rarest some thousands.
const plantedHistories = 20_000

// A history leaves much garbage, and none of it for long.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

// TestSimulation plays histories of the protocol as it is: nothing may be found. With
// HISTORIES=n it plays so many, with SEED=n the one of that seed.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), number64(t, "HISTORIES", histories)
	if seed := number64(t, "SEED", 0); seed > 0 {
		first, n = seed, 1
	}
	began := time.Now()
	var next, found atomic.Uint64
	next.Store(first)
	var players sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		players.Go(func() {
			p := NewPlayer(nil)
			for seed := next.Add(1) - 1; seed < first+n && found.Load() == 0; seed = next.Add(1) - 1 {
				if b := p.Play(seed); b != nil {
					found.Add(1)
					t.Errorf("%v\n%s\nplay it again: SEED=%d go test -run 'TestSimulation$' ./internal/simulation", b, strings.Join(b.Timeline, "\n"), seed)
				}
			}
		})
	}
	players.Wait()
	took := time.Since(began)
	t.Logf("%d histories in %v, %.0f a minute", n, took.Round(time.Millisecond), float64(n)/took.Minutes())
}

func number64(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err, name)
	return n
}

// TestSimulationFindsPlantedBugs: each mistake in the protocol breaks an invariant within
// so many histories.
func TestSimulationFindsPlantedBugs(t *testing.T) {
	for i := range Bugs {
		bug := &Bugs[i]
		t.Run(bug.Name, func(t *testing.T) {
			t.Parallel()
			p := NewPlayer(bug)
			for seed := uint64(1); seed <= number64(t, "HISTORIES", plantedHistories); seed++ {
				if b := p.Play(seed); b != nil {
					t.Log(b)
					if os.Getenv("SEED") != "" {
						t.Log(strings.Join(b.Timeline, "\n"))
					}
					return
				}
			}
			t.Error("not found")
		})
	}
}

// TestSimulationOfSoldOut: what finds the mistakes in a sold-out lease finds nothing in
// the lease as it is.
func TestSimulationOfSoldOut(t *testing.T) {
	for name, focus := range map[string]func(*plan){"sold out": sellingOut, "failing over": sellingOutAnew, "standing still": sellingOutLate} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewPlayer(&Bug{Name: "none", focus: focus})
			first, n := uint64(1), number64(t, "HISTORIES", histories/10)
			if seed := number64(t, "SEED", 0); seed > 0 {
				first, n = seed, 1
			}
			for seed := first; seed < first+n; seed++ {
				if b := p.Play(seed); b != nil {
					t.Fatalf("%v\n%s", b, strings.Join(b.Timeline, "\n"))
				}
			}
		})
	}
}

// TestHistoryPlaysAgain: a seed is a history, or what is found could not be looked at.
func TestHistoryPlaysAgain(t *testing.T) {
	one, other := NewPlayer(nil), NewPlayer(nil)
	for seed := uint64(1); seed <= 50; seed++ {
		first, again := one.play(seed, true), other.play(seed, true)
		require.NotEmpty(t, first.trace)
		require.Equal(t, first.trace, again.trace)
	}
}

func BenchmarkHistory(b *testing.B) {
	p := NewPlayer(nil)
	seed := uint64(0)
	for b.Loop() {
		seed++
		if breach := p.Play(seed); breach != nil {
			b.Fatal(breach)
		}
	}
}
