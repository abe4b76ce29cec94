package system

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// maxScenarioBytes of a sale's id are the scenario's name: with time, chance and a number
// it stays within the 64 that an id may have.
const maxScenarioBytes = 24

// Sale is what a run sells, one unit to a user.
type Sale struct {
	ID       string
	Total    int       // units
	StartsAt time.Time // zero = now
}

// NewSaleID is a sale's id that no other run has. What an id may not hold of the
// scenario's name becomes a dash.
func NewSaleID(scenario string) string {
	scenario = strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return '-'
		}
		return r
	}, scenario[:min(len(scenario), maxScenarioBytes)])
	return fmt.Sprintf("bench-%s-%s-%s", scenario, time.Now().UTC().Format("20060102-150405"), uuid.NewString()[:8])
}

// NewSales are n sales of one scenario, each of total units. The first has id; "" = a
// new one.
func NewSales(id string, n, total int) []Sale {
	sales := []Sale{{ID: id, Total: total}}
	for i := 1; i < n; i++ {
		sales = append(sales, Sale{ID: fmt.Sprintf("%s-%d", id, i+1), Total: total})
	}
	return sales
}

// Open makes a sale and waits until every gateway shows it.
func (s *System) Open(ctx context.Context, sale Sale) error {
	s.own.note(sale.ID)
	starts, status := "now", "OPEN"
	if !sale.StartsAt.IsZero() {
		starts, status = sale.StartsAt.UTC().Format(time.RFC3339Nano), "UPCOMING"
	}
	_, err := s.run(ctx, "sale", "create", "--id", sale.ID, "--title", "Load test "+sale.ID,
		"--total", strconv.Itoa(sale.Total), "--price-cents", "9900", "--currency", "CNY",
		"--per-user-limit", "1", "--starts-at", starts,
		"--ends-at", time.Now().Add(saleDuration).UTC().Format(time.RFC3339))
	if err != nil {
		return err
	}
	if _, err := s.run(ctx, "sale", "open", sale.ID); err != nil {
		return err
	}
	return s.awaitSale(ctx, sale.ID, status, int64(sale.Total), openTimeoutSeconds*time.Second)
}

// Restock gives a sale, of which so many units are sold, a total that leaves some, and
// waits until every gateway shows them.
func (s *System) Restock(ctx context.Context, sale *Sale, sold, left int) error {
	sale.Total = sold + left
	if _, err := s.run(ctx, "sale", "restock", sale.ID, "--total", strconv.Itoa(sale.Total)); err != nil {
		return err
	}
	return s.awaitSale(ctx, sale.ID, "OPEN", int64(left), openTimeoutSeconds*time.Second)
}

// awaitSale waits until every gateway shows the sale in this state.
func (s *System) awaitSale(ctx context.Context, id, status string, stockLeft int64, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, addr := range s.Gateways {
		err := await(ctx, func() error {
			var page struct {
				Status    string `json:"status"`
				StockLeft int64  `json:"stock_left"`
			}
			if err := s.get(addr, "/v1/sales/"+id, "", &page); err != nil {
				return err
			}
			if page.Status != status || page.StockLeft != stockLeft {
				return fmt.Errorf("gateway %s: sale %s is %s with %d units left, and should be %s with %d",
					addr, id, page.Status, page.StockLeft, status, stockLeft)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
