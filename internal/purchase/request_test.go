package purchase

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
)

func TestAWaitThatEndsFirstSaysWhatIsTrue(t *testing.T) {
	past := time.Now().Add(-time.Second)
	t.Run("nobody had begun", func(t *testing.T) {
		q := NewRequest(sale.Order{}, past)
		require.Equal(t, Answer{Code: sale.CodeUnavailable}, q.Wait())
		require.False(t, q.Take(), "a withdrawn request cannot be taken")
	})
	t.Run("a flusher had", func(t *testing.T) {
		q := NewRequest(sale.Order{}, past)
		require.True(t, q.Take())
		require.Equal(t, Answer{Code: sale.CodeOutcomeUnknown}, q.Wait())
		require.NotSame(t, q, NewRequest(sale.Order{}, past), "the flusher holds it still")
		q.Answer(Answer{OrderID: 1}) // to nobody, and without blocking
	})
	t.Run("the answer was there", func(t *testing.T) {
		q := NewRequest(sale.Order{}, time.Now().Add(time.Hour))
		require.True(t, q.Take())
		q.Answer(Answer{OrderID: 1})
		require.Equal(t, Answer{OrderID: 1}, q.Wait())
	})
}

func TestAnsweringTwiceIsABug(t *testing.T) {
	q := NewRequest(sale.Order{}, time.Now().Add(time.Hour))
	require.Panics(t, func() { q.Answer(Answer{}) }, "before it was taken")
	require.True(t, q.Take())
	q.Answer(Answer{})
	require.Panics(t, func() { q.Answer(Answer{}) }, "twice")
}
