package faults

import (
	"context"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What the environment may say.
const (
	envSeed   = "SEED"   // of the first round; the next ones count up from it
	envRounds = "ROUNDS" // how many; with neither, the fixed seeds and a new one
	envKinds  = "KINDS"  // kinds of fault to draw from, comma-separated
	envWait   = "WAIT"   // redis.wait_replicas, 1 if unset; with 0 a 202 is no promise, and those that turned out otherwise are counted
)

// fixedSeeds are played by every run that is given no seed, beside a new one. In the one
// a gateway dies between confirm and answer, its Redis master and a worker die too, and
// messages come twice; in the other MariaDB stands still, both gateways and both workers
// die, a Redis master does and another one loses all it had, and poison is sent.
var fixedSeeds = []uint64{16, 37}

// maxBreachesShown is how many breaches of a round are printed: what breaks one thing
// often breaks hundreds. The file of evidence has them all.
const maxBreachesShown = 20

// TestE2EFaults plays rounds: shoppers buy while things go wrong, and no invariant may
// be broken when all has come to rest.
func TestE2EFaults(t *testing.T) {
	seeds, only := seedsOf(t), list0(os.Getenv(envKinds))
	wait := 1
	if os.Getenv(envWait) == "0" {
		wait = 0
	}
	site := start(t, Options{WaitReplicas: wait})
	ctx := interruptible(t)
	var tally Tally
	for i, seed := range seeds {
		result, err := site.Round(ctx, seed, only)
		t.Logf("%s", result.Line(i+1))
		require.NoError(t, err, "seed %d", seed)
		tally.Add(result)
		for n, b := range result.Breaches {
			if n == maxBreachesShown {
				t.Errorf("and %d more", len(result.Breaches)-n)
				break
			}
			t.Errorf("seed %d, round %d: %s", seed, i+1, b)
		}
		if t.Failed() {
			t.Logf("timeline of seed %d:\n%s\nSEED=%d ROUNDS=1 make e2e plays it again", seed, strings.Join(result.Timeline, "\n"), seed)
			break
		}
	}
	t.Logf("%s", tally.String())
}

// cleanUpSeconds is what is left of a test's time to end all that was started.
const cleanUpSeconds = 90

// interruptible ends early enough, and when the test is interrupted, to leave no engine
// behind.
func interruptible(t *testing.T) context.Context {
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-cleanUpSeconds*time.Second))
		t.Cleanup(cancel)
	}
	return ctx
}

func list0(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func seedsOf(t *testing.T) []uint64 {
	fresh := uint64(rand.Uint32())
	first, given := os.LookupEnv(envSeed)
	if given && first != "" {
		var err error
		fresh, err = strconv.ParseUint(first, 10, 64)
		require.NoError(t, err, envSeed)
	}
	rounds, counted := os.LookupEnv(envRounds)
	if counted && rounds != "" {
		n, err := strconv.Atoi(rounds)
		require.NoError(t, err, envRounds)
		seeds := make([]uint64, n)
		for i := range seeds {
			seeds[i] = fresh + uint64(i)
		}
		return seeds
	}
	if given && first != "" {
		return []uint64{fresh}
	}
	return append(append([]uint64{}, fixedSeeds...), fresh)
}

// start starts a site for a test, in .run/faults.
func start(t *testing.T, o Options) *Site {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	o.Root, o.Dir, o.Log = root, filepath.Join(root, ".run", "faults"), testLog{t}
	began := time.Now()
	site, err := Start(interruptible(t), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, site.Close()) })
	t.Logf("engines and daemons are ready after %s", time.Since(began).Round(time.Millisecond))
	return site
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
