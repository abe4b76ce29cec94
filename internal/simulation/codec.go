package simulation

import (
	"encoding/binary"

	"flashgate/internal/sale"
)

// The packed forms of lua/prelude.lua, without its short form of UUIDs: the keys here
// are none. A test holds them against internal/stock.

// record is one order in its buyer's value.
type record struct {
	held     bool
	order    sale.ID
	batch    sale.ID
	user     string
	key      string
	quantity int
}

func packID(id sale.ID) string { return string(id.AppendBinary(nil)) }

func appendEntry(b []byte, o *sale.Order) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(o.Quantity))
	b = o.ID.AppendBinary(b)
	b = append(b, byte(len(o.RequestKey)))
	return append(b, o.RequestKey...)
}

func packEntry(o *sale.Order) string { return string(appendEntry(nil, o)) }

// packOrders packs orders as a batch holds them.
func packOrders(orders []sale.Order) string {
	var b []byte
	for i := range orders {
		b = append(b, byte(len(orders[i].UserID)))
		b = append(b, orders[i].UserID...)
		b = appendEntry(b, &orders[i])
	}
	return string(b)
}

// packRow packs an order of the ledger as load takes it.
func packRow(o *row) string {
	b := append([]byte{byte(len(o.UserID))}, o.UserID...)
	if o.active {
		b = append(b, 'H')
	} else {
		b = append(b, 'R')
	}
	return string(o.batch.AppendBinary(appendEntry(b, &o.Order)))
}

const entryBytes = 2 + 8 + 1 // without its key

// readEntry reads an entry, and returns what follows it.
func readEntry(b string, o *sale.Order) string {
	o.Quantity = int(b[0])<<8 | int(b[1])
	o.ID = sale.IDFromBinary(b[2:])
	end := entryBytes + int(b[entryBytes-1])
	o.RequestKey = b[entryBytes:end]
	return b[end:]
}

// readRecord reads the record that b starts with, and returns what follows.
func readRecord(b, user string) (record, string) {
	var o sale.Order
	rest := readEntry(b[1:], &o)
	return record{
		held: b[0] == 'H', order: o.ID, batch: sale.IDFromBinary(rest), user: user, key: o.RequestKey, quantity: o.Quantity,
	}, rest[8:]
}

// readOrders reads the orders of a batch.
func readOrders(b string) []sale.Order {
	var orders []sale.Order
	for b != "" {
		size := 1 + int(b[0])
		o := sale.Order{SaleID: saleID, UserID: b[1:size]}
		b = readEntry(b[size:], &o)
		o.AmountCents = int64(o.Quantity) * priceCents
		orders = append(orders, o)
	}
	return orders
}
