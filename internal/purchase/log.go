package purchase

import (
	"log/slog"

	"flashgate/internal/sale"
)

// ordersLogged bounds the ids in a log record: a batch has up to a thousand orders.
const ordersLogged = 16

// orderIDs are orders as they are logged: by id alone, and only when they are.
type orderIDs []sale.Order

// LogValue implements slog.LogValuer.
func (o orderIDs) LogValue() slog.Value {
	ids := make([]string, 0, min(len(o), ordersLogged+1))
	for i := range o {
		if i == ordersLogged {
			ids = append(ids, "…")
			break
		}
		ids = append(ids, o[i].ID.String())
	}
	return slog.AnyValue(ids)
}
