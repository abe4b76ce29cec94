package sale

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func demo() Sale {
	at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	return Sale{
		ID: "phone", Title: "Phone", PriceCents: 199900, Currency: "CNY", Total: 1000, PerUserLimit: 1,
		StartsAt: at, EndsAt: at.Add(time.Hour), Status: Opened,
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	good := demo()
	require.NoError(t, good.Validate())
	for _, c := range []struct {
		name  string
		spoil func(*Sale)
		says  string
	}{
		{"id with a slash", func(s *Sale) { s.ID = "a/b" }, "sale id"},
		{"id of 65", func(s *Sale) { s.ID = fmt.Sprintf("%065d", 1) }, "sale id"},
		{"no title", func(s *Sale) { s.Title = "" }, "title"},
		{"a title that moves a terminal's cursor", func(s *Sale) { s.Title = "\x1b[2J" }, "control"},
		{"a title that is no text", func(s *Sale) { s.Title = "\xff" }, "UTF-8"},
		{"no units", func(s *Sale) { s.Total = 0 }, "total"},
		{"more units than Lua counts", func(s *Sale) { s.Total = MaxTotal + 1 }, "total"},
		{"negative price", func(s *Sale) { s.PriceCents = -1 }, "price"},
		{"lower-case currency", func(s *Sale) { s.Currency = "cny" }, "currency"},
		{"limit of 0", func(s *Sale) { s.PerUserLimit = 0 }, "per-user limit"},
		{"ends when it starts", func(s *Sale) { s.EndsAt = s.StartsAt }, "ends_at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := demo()
			c.spoil(&s)
			err := s.Validate()
			require.ErrorContains(t, err, c.says)
			require.Equal(t, CodeInvalid, CodeOf(err))
		})
	}
}

func TestPhaseAt(t *testing.T) {
	s := demo()
	paused := demo()
	paused.Status = Paused
	for _, c := range []struct {
		name  string
		sale  Sale
		at    time.Time
		stock int64
		want  Phase
	}{
		{"before the start", s, s.StartsAt.Add(-time.Millisecond), 10, PhaseUpcoming},
		{"at the start", s, s.StartsAt, 10, PhaseOpen},
		{"without stock", s, s.StartsAt, 0, PhaseSoldOut},
		{"below zero", s, s.StartsAt, -3, PhaseSoldOut},
		{"a millisecond before the end", s, s.EndsAt.Add(-time.Millisecond), 10, PhaseOpen},
		{"at the end", s, s.EndsAt, 10, PhaseEnded},
		{"paused", paused, s.StartsAt, 10, PhasePaused},
		{"paused and ended", paused, s.EndsAt, 10, PhaseEnded},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, c.sale.PhaseAt(c.at, c.stock)) })
	}
}

func TestCodeOf(t *testing.T) {
	require.Equal(t, CodeSoldOut, CodeOf(fmt.Errorf("wrapped: %w", &Error{Code: CodeSoldOut})))
	require.Equal(t, CodeInternal, CodeOf(errors.New("anything")))
}

func TestOnlyCancelledAndRefundedOrdersHoldNothing(t *testing.T) {
	for _, s := range []OrderStatus{PendingPayment, Paid, Shipped, Completed} {
		require.True(t, s.Active(), s)
	}
	require.False(t, Cancelled.Active())
	require.False(t, Refunded.Active())
}
