package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"flashgate/internal/sale"
)

// bodyVersion is the version of the message body that this program writes and reads.
const bodyVersion = 1

// maxIDDigits bounds what an encoded number takes, sign included.
const maxIDDigits = 20

// Encode writes b as a message body:
//
//	{"v":1,"batch_id":"…","sale_id":"…","epoch":n,"orders":[{"order_id":"…","user_id":"…",
//	 "request_key":"…","quantity":n,"amount_cents":n,"created_ms":n},…]}
//
// Ids are decimal strings, amount_cents is in cents, created_ms in Unix milliseconds.
// A batch that Decode would refuse is refused here, so no gateway sends poison.
func Encode(b *sale.Batch) ([]byte, error) {
	if err := validate(b); err != nil {
		return nil, fmt.Errorf("encode batch %s: %w", b.ID, err)
	}
	body := make([]byte, 0, encodedSize(b))
	body = append(body, `{"v":`...)
	body = strconv.AppendInt(body, bodyVersion, 10)
	body = append(body, `,"batch_id":"`...)
	body = strconv.AppendInt(body, int64(b.ID), 10)
	body = append(body, `","sale_id":`...)
	body = appendString(body, b.SaleID)
	body = append(body, `,"epoch":`...)
	body = strconv.AppendInt(body, b.Epoch, 10)
	body = append(body, `,"orders":[`...)
	for i := range b.Orders {
		o := &b.Orders[i]
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"order_id":"`...)
		body = strconv.AppendInt(body, int64(o.ID), 10)
		body = append(body, `","user_id":`...)
		body = appendString(body, o.UserID)
		body = append(body, `,"request_key":`...)
		body = appendString(body, o.RequestKey)
		body = append(body, `,"quantity":`...)
		body = strconv.AppendInt(body, int64(o.Quantity), 10)
		body = append(body, `,"amount_cents":`...)
		body = strconv.AppendInt(body, o.AmountCents, 10)
		body = append(body, `,"created_ms":`...)
		body = strconv.AppendInt(body, o.CreatedAt().UnixMilli(), 10)
		body = append(body, '}')
	}
	return append(body, `]}`...), nil
}

// encodedSize is enough for a batch without escapes, so that Encode allocates once.
func encodedSize(b *sale.Batch) int {
	const envelope, perOrder = 64, 96 // bytes of keys and punctuation, rounded up
	n := envelope + 2*maxIDDigits + len(b.SaleID)
	for i := range b.Orders {
		n += perOrder + 4*maxIDDigits + len(b.Orders[i].UserID) + len(b.Orders[i].RequestKey)
	}
	return n
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. s is valid UTF-8: only quotes,
// backslashes and control characters need escaping (RFC 8259 section 7).
func appendString(body []byte, s string) []byte {
	body = append(body, '"')
	copied := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		body = append(body, s[copied:i]...)
		copied = i + 1
		if c < ' ' {
			body = append(body, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		} else {
			body = append(body, '\\', c)
		}
	}
	body = append(body, s[copied:]...)
	return append(body, '"')
}

// message and messageOrder are the body as it is read. A pointer tells a missing
// field from one that is legitimately zero.
type message struct {
	Version int            `json:"v"`
	BatchID sale.ID        `json:"batch_id"`
	SaleID  string         `json:"sale_id"`
	Epoch   *int64         `json:"epoch"`
	Orders  []messageOrder `json:"orders"`
}

type messageOrder struct {
	OrderID       sale.ID `json:"order_id"`
	UserID        string  `json:"user_id"`
	RequestKey    *string `json:"request_key"`
	Quantity      int     `json:"quantity"`
	AmountCents   *int64  `json:"amount_cents"`
	CreatedMillis int64   `json:"created_ms"`
}

// Decode reads a message body. An error says what is wrong with it, and means that
// trying again will not help.
func Decode(body []byte) (*sale.Batch, error) {
	if !utf8.Valid(body) {
		return nil, errors.New("decode message: not UTF-8")
	}
	b, ok := scanOwn(string(body))
	if !ok {
		var err error
		if b, err = decodeJSON(body); err != nil {
			return nil, fmt.Errorf("decode message: %w", err)
		}
	}
	if err := validate(b); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return b, nil
}

// decodeJSON reads a body in whichever form of JSON.
func decodeJSON(body []byte) (*sale.Batch, error) {
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		// Another version may not fit this one's fields: then say that.
		var other struct {
			Version int `json:"v"`
		}
		if json.Unmarshal(body, &other) != nil || other.Version == bodyVersion {
			return nil, err
		}
		m.Version = other.Version
	}
	if m.Version != bodyVersion {
		return nil, fmt.Errorf("version %d, this program reads %d", m.Version, bodyVersion)
	}
	if m.Epoch == nil {
		return nil, errors.New("epoch is missing")
	}
	b := &sale.Batch{ID: m.BatchID, SaleID: m.SaleID, Epoch: *m.Epoch, Orders: make([]sale.Order, len(m.Orders))}
	for i := range m.Orders {
		o := &m.Orders[i]
		switch {
		case o.RequestKey == nil:
			return nil, fmt.Errorf("order %d: request_key is missing", i)
		case o.AmountCents == nil:
			return nil, fmt.Errorf("order %d: amount_cents is missing", i)
		case o.CreatedMillis != o.OrderID.Time().UnixMilli():
			return nil, fmt.Errorf("order %d: created_ms %d is missing or is not the time in its id", i, o.CreatedMillis)
		}
		b.Orders[i] = sale.Order{
			ID: o.OrderID, SaleID: m.SaleID, UserID: o.UserID, RequestKey: *o.RequestKey,
			Quantity: o.Quantity, AmountCents: *o.AmountCents,
		}
	}
	return b, nil
}

// validate says what no message may carry.
func validate(b *sale.Batch) error {
	switch {
	case b.ID <= 0:
		return errors.New("batch_id is missing or not positive")
	case !sale.ValidID(b.SaleID):
		return fmt.Errorf("sale_id %q is no sale id", b.SaleID)
	case b.Epoch < 0:
		return fmt.Errorf("epoch %d is negative", b.Epoch)
	case len(b.Orders) == 0:
		return errors.New("no orders")
	}
	for i := range b.Orders {
		if err := validateOrder(&b.Orders[i], b.SaleID); err != nil {
			return fmt.Errorf("order %d: %w", i, err)
		}
	}
	return nil
}

func validateOrder(o *sale.Order, saleID string) error {
	switch {
	case o.ID <= 0:
		return errors.New("order_id is missing or not positive")
	case o.SaleID != saleID:
		return fmt.Errorf("sale_id %q is not the batch's", o.SaleID)
	case o.UserID == "" || len(o.UserID) > sale.MaxUserIDBytes:
		return fmt.Errorf("user_id has %d bytes, want 1–%d", len(o.UserID), sale.MaxUserIDBytes)
	case !utf8.ValidString(o.UserID):
		return errors.New("user_id is not UTF-8")
	case len(o.RequestKey) > sale.MaxRequestKeyBytes:
		return fmt.Errorf("request_key has %d bytes, want at most %d", len(o.RequestKey), sale.MaxRequestKeyBytes)
	case !utf8.ValidString(o.RequestKey):
		return errors.New("request_key is not UTF-8")
	case o.Quantity < 1 || o.Quantity > sale.MaxQuantity:
		return fmt.Errorf("quantity %d, want 1–%d", o.Quantity, sale.MaxQuantity)
	case o.AmountCents < 0:
		return fmt.Errorf("amount_cents %d is negative", o.AmountCents)
	}
	return nil
}
