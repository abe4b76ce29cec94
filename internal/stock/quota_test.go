package stock

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestQuota(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			s, name := e.open(t), newSaleID(t)
			ask := func(member string, rate float64, burst, want int64) (int64, int) {
				t.Helper()
				granted, gateways, err := s.Quota(t.Context(), member, name, rate, burst, want)
				require.NoError(t, err)
				return granted, gateways
			}
			// One token an hour: nothing comes back while the test runs.
			const never = 1.0 / 3600
			granted, gateways := ask("a", never, 100, 30)
			require.EqualValues(t, 30, granted, "a full bucket")
			require.Equal(t, 1, gateways)
			granted, gateways = ask("b", never, 100, 30)
			require.EqualValues(t, 30, granted, "there is enough: no even parts")
			require.Equal(t, 2, gateways)
			granted, _ = ask("a", never, 100, 100)
			require.EqualValues(t, 20, granted, "half of the 40 that are left")
			granted, _ = ask("b", never, 100, 0)
			require.Zero(t, granted, "a heartbeat")
			granted, _ = ask("b", never, 100, 100)
			require.EqualValues(t, 10, granted)
			for granted = 1; granted > 0; {
				granted, _ = ask("b", never, 100, 100)
			}
			granted, _ = ask("a", never, 100, 1)
			require.Zero(t, granted, "none is left")
			require.Eventually(t, func() bool {
				granted, _ := ask("a", 1000, 100, 5)
				return granted == 5
			}, 10*time.Second, 10*time.Millisecond, "a thousand a second")

			require.Eventually(t, func() bool {
				_, gateways := ask("a", never, 100, 0)
				return gateways == 1
			}, 10*time.Second, 100*time.Millisecond, "b has not asked for three seconds")

			granted, _ = ask("a", 1e11, 1e11, 1e9)
			require.Positive(t, granted, "the largest values")
		})
	}
}

// Whoever asks, and however: never more than burst + rate × time.
func TestQuotaIsShared(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			s, name := e.open(t), newSaleID(t)
			const rate, burst = 2000, 50
			begun := time.Now()
			var mu sync.Mutex
			var total int64
			var wg sync.WaitGroup
			for _, member := range []string{"a", "b", "c"} {
				wg.Go(func() {
					for range 60 {
						granted, _, err := s.Quota(t.Context(), member, name, rate, burst, 40)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						total += granted
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			// Redis counts in milliseconds.
			require.LessOrEqual(t, float64(total), burst+rate*(time.Since(begun)+2*time.Millisecond).Seconds())
			require.Positive(t, total)
		})
	}
}
