package load

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// A gateway sends its own share, in order, and then helps with the others': every request
// is taken once, however fast each is.
func TestSharesAreTakenOnce(t *testing.T) {
	for _, requests := range []int{0, 1, 2, 7, 9} {
		left := &shares{taken: make([]atomic.Int64, 3), requests: requests}
		var taken []int
		for _, gateway := range []int{2, 0, 2, 2, 2, 2, 1, 1, 0, 0, 2, 1} {
			if i, ok := left.next(gateway); ok {
				taken = append(taken, i)
			}
		}
		if requests == 9 {
			require.Equal(t, []int{2, 0, 5, 8, 3, 6, 1, 4, 7}, taken)
		}
		slices.Sort(taken)
		require.Len(t, taken, requests)
		for i := range requests {
			require.Equal(t, i, taken[i])
		}
	}
}
