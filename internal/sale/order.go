package sale

import "time"

// OrderStatus is where an order stands.
type OrderStatus string

// The states of an order. PROCESSING is never stored: it is what the API says
// of an order that was promised and has not reached the ledger yet.
const (
	Processing     OrderStatus = "PROCESSING"
	PendingPayment OrderStatus = "PENDING_PAYMENT"
	Paid           OrderStatus = "PAID"
	Shipped        OrderStatus = "SHIPPED"
	Completed      OrderStatus = "COMPLETED"
	Cancelled      OrderStatus = "CANCELLED"
	Refunded       OrderStatus = "REFUNDED"
)

// Active reports whether an order in this state holds its units.
func (s OrderStatus) Active() bool { return s != Cancelled && s != Refunded }

// Why an order was cancelled by the ledger itself.
const (
	ReasonDuplicate     = "DUPLICATE"      // its (user, key) is another order's; the reason names that one
	ReasonLimitExceeded = "LIMIT_EXCEEDED" // the user would hold more units than the limit
	ReasonStockRefused  = "STOCK_REFUSED"  // the ledger has no unit left for it
)

// Order is one purchase that was reserved. Its identity is its id: a request key
// may, over its life, name several.
type Order struct {
	ID          ID
	SaleID      string
	UserID      string // the token's sub, verbatim
	RequestKey  string // the Idempotency-Key; "" when the shopper sent none
	Quantity    int    // units, ≥ 1
	AmountCents int64  // quantity × the sale's price
}

// CreatedAt is when the gateway made the order; the id carries it.
func (o *Order) CreatedAt() time.Time { return o.ID.Time() }

// Batch is the unit in which winners travel: one reserve, one half message, one
// confirm, one entry in the ledger's consumed batches. All orders are of one sale.
type Batch struct {
	ID     ID
	SaleID string
	Epoch  int64 // of the sale's Redis data when the batch was reserved
	Orders []Order
}

// Units is the sum of the orders' quantities.
func (b *Batch) Units() int64 {
	var n int64
	for i := range b.Orders {
		n += int64(b.Orders[i].Quantity)
	}
	return n
}
