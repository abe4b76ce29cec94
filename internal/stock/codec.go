package stock

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"flashgate/internal/sale"
)

// The packed forms, which lua/prelude.lua describes. Go makes and reads them; Lua
// cuts them apart and compares them.
const (
	stateHeld      = 'H'
	stateReturned  = 'R'
	batchReserved  = 'R'
	batchConfirmed = 'C'
	batchVoid      = 'V'

	// uuidKey is the length byte of a request key that is a canonical lower-case UUID,
	// kept as its 16 bytes: 20 bytes of memory less for every order.
	uuidKey   = 0x80 | uuidBytes
	uuidBytes = 16
	uuidChars = 36

	idBytes    = 8
	entryBytes = 2 + idBytes + 1 // an entry without its key
)

// errPacked means that Redis holds something these scripts did not write.
var errPacked = errors.New("stock: malformed packed record")

// appendOrder packs an order as a batch holds it: length of user, user, entry.
func appendOrder(b []byte, o *sale.Order) ([]byte, error) {
	if o.UserID == "" || len(o.UserID) > sale.MaxUserIDBytes {
		return b, fmt.Errorf("%w: order %v: user id of %d bytes, want 1–%d", ErrUnfit, o.ID, len(o.UserID), sale.MaxUserIDBytes)
	}
	b = append(b, byte(len(o.UserID)))
	b = append(b, o.UserID...)
	return appendEntry(b, o)
}

// appendEntry packs what a record and a batch hold of an order besides its user.
func appendEntry(b []byte, o *sale.Order) ([]byte, error) {
	if o.Quantity < 1 || o.Quantity > sale.MaxQuantity {
		return b, fmt.Errorf("%w: order %v: quantity %d, want 1–%d", ErrUnfit, o.ID, o.Quantity, sale.MaxQuantity)
	}
	if len(o.RequestKey) > sale.MaxRequestKeyBytes {
		return b, fmt.Errorf("%w: order %v: request key of %d bytes, want at most %d", ErrUnfit, o.ID, len(o.RequestKey), sale.MaxRequestKeyBytes)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(o.Quantity))
	b = o.ID.AppendBinary(b)
	if isUUID(o.RequestKey) {
		b = append(b, uuidKey)
		for _, part := range uuidParts {
			b, _ = hex.AppendDecode(b, []byte(o.RequestKey[part.from:part.to]))
		}
		return b, nil
	}
	b = append(b, byte(len(o.RequestKey)))
	return append(b, o.RequestKey...), nil
}

// appendRow packs an order of the ledger as load takes it: length of user, user, record.
func appendRow(b []byte, o *LoadedOrder) ([]byte, error) {
	start := len(b)
	b, err := appendOrder(b, &o.Order)
	if err != nil {
		return b, err
	}
	// The record's state stands between the user and the entry.
	at := start + 1 + len(o.UserID)
	state := byte(stateHeld)
	if o.Returned {
		state = stateReturned
	}
	b = append(b, 0)
	copy(b[at+1:], b[at:])
	b[at] = state
	return o.BatchID.AppendBinary(b), nil
}

// packRecord packs a record as a buyer's value holds it.
func packRecord(r *Record) (string, error) {
	b := []byte{stateHeld}
	if r.Returned {
		b[0] = stateReturned
	}
	b, err := appendEntry(b, &sale.Order{ID: r.OrderID, RequestKey: r.RequestKey, Quantity: r.Quantity})
	return string(r.BatchID.AppendBinary(b)), err
}

// packOrders packs orders as a batch holds them.
func packOrders(orders []sale.Order) (string, error) {
	b := make([]byte, 0, len(orders)*(1+uuidChars+entryBytes+uuidChars))
	var err error
	for i := range orders {
		if b, err = appendOrder(b, &orders[i]); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

// appendAsks appends, for each order, its user and the record that it gets in a batch,
// which are made out of the packed orders.
func appendAsks(args []string, orders []sale.Order, packed, batchID string) []string {
	var records strings.Builder
	records.Grow(len(packed) + len(orders)*len(batchID)) // and no more: a record lacks its user
	first := len(args)
	for i := range orders {
		user := orders[i].UserID
		entry := packed[1+len(user):]
		entry = entry[:entryBytes+int(entry[entryBytes-1]&0x7f)]
		packed = packed[1+len(user)+len(entry):]
		records.WriteByte(stateHeld)
		records.WriteString(entry)
		records.WriteString(batchID)
		args = append(args, user, entry)
	}
	rest := records.String()
	for i := first + 1; i < len(args); i += 2 {
		size := 1 + len(args[i]) + len(batchID)
		args[i], rest = rest[:size], rest[size:]
	}
	return args
}

func packID(id sale.ID) string {
	var b [idBytes]byte
	return string(id.AppendBinary(b[:0]))
}

// readEntry reads the entry that b starts with into o, and returns what follows.
func readEntry(b string, o *sale.Order) (string, error) {
	if len(b) < entryBytes {
		return "", errPacked
	}
	size := int(b[entryBytes-1] & 0x7f)
	if len(b) < entryBytes+size {
		return "", errPacked
	}
	o.Quantity = int(b[0])<<8 | int(b[1])
	o.ID = sale.IDFromBinary(b[2:])
	token := b[entryBytes : entryBytes+size]
	switch b[entryBytes-1] {
	case uuidKey:
		o.RequestKey = uuidString(token)
	case byte(size):
		o.RequestKey = token
	default:
		return "", errPacked
	}
	return b[entryBytes+size:], nil
}

// readRecord reads the record that b starts with, and returns what follows.
func readRecord(b, user string) (r Record, rest string, err error) {
	if b == "" || b[0] != stateHeld && b[0] != stateReturned {
		return r, "", errPacked
	}
	var o sale.Order
	if rest, err = readEntry(b[1:], &o); err != nil || len(rest) < idBytes {
		return r, "", errPacked
	}
	r = Record{
		OrderID: o.ID, BatchID: sale.IDFromBinary(rest), UserID: user, RequestKey: o.RequestKey,
		Quantity: o.Quantity, Returned: b[0] == stateReturned,
	}
	return r, rest[idBytes:], nil
}

// appendRecords reads all records of a buyer's value.
func appendRecords(records []Record, b, user string) ([]Record, error) {
	for b != "" {
		r, rest, err := readRecord(b, user)
		if err != nil {
			return records, fmt.Errorf("%w: of user %q", err, user)
		}
		records, b = append(records, r), rest
	}
	return records, nil
}

// readBatch reads a field of the batches hash.
func readBatch(saleID, id, value string) (BatchRecord, error) {
	var r BatchRecord
	if len(id) != idBytes || value == "" {
		return r, errPacked
	}
	r.ID = sale.IDFromBinary(id)
	rest := value[1:]
	switch value[0] {
	case batchReserved:
		r.State = StateReserved
	case batchConfirmed:
		r.State = StateConfirmed
	case batchVoid:
		ms, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return r, fmt.Errorf("%w: batch %v", errPacked, r.ID)
		}
		r.State, r.VoidedAt = StateVoid, time.UnixMilli(ms).UTC()
		return r, nil
	default:
		return r, fmt.Errorf("%w: batch %v", errPacked, r.ID)
	}
	for rest != "" {
		size := int(rest[0])
		if len(rest) < 1+size {
			return r, fmt.Errorf("%w: batch %v", errPacked, r.ID)
		}
		o := sale.Order{SaleID: saleID, UserID: rest[1 : 1+size]}
		var err error
		if rest, err = readEntry(rest[1+size:], &o); err != nil {
			return r, fmt.Errorf("%w: batch %v", err, r.ID)
		}
		r.Orders = append(r.Orders, o)
	}
	return r, nil
}

// uuidParts are where the digits of a UUID stand, between the dashes.
var uuidParts = [...]struct{ from, to int }{{0, 8}, {9, 13}, {14, 18}, {19, 23}, {24, uuidChars}}

// isUUID reports whether s is a UUID in the one form that uuidString writes.
func isUUID(s string) bool {
	if len(s) != uuidChars {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}

func uuidString(raw string) string {
	b := make([]byte, 0, uuidChars)
	for _, part := range uuidParts {
		if part.from > 0 {
			b = append(b, '-')
		}
		n := (part.to - part.from) / 2
		b, raw = hex.AppendEncode(b, []byte(raw[:n])), raw[n:]
	}
	return string(b)
}
