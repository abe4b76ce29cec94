package bus

import (
	"math"
	"strings"

	"flashgate/internal/sale"
)

// scanOwn reads a body that is in Encode's own form, letter by letter, as nearly all are:
// at an eighth of the price of reading any JSON. ok is false for everything else, bodies
// that are wrong among them: what they are is for the general way to say.
func scanOwn(body string) (b *sale.Batch, ok bool) {
	s := scanner{rest: body}
	s.literal(`{"v":1,"batch_id":"`)
	b = &sale.Batch{ID: sale.ID(s.number())}
	s.literal(`","sale_id":"`)
	b.SaleID = s.text()
	s.literal(`,"epoch":`)
	b.Epoch = s.number()
	s.literal(`,"orders":[`)
	b.Orders = make([]sale.Order, 0, strings.Count(s.rest, orderHead)) // no string holds its quotes as they are
	for more := true; more; more = s.next(',') {
		o := sale.Order{SaleID: b.SaleID}
		s.literal(orderHead)
		o.ID = sale.ID(s.number())
		s.literal(`","user_id":"`)
		o.UserID = s.text()
		s.literal(`,"request_key":"`)
		o.RequestKey = s.text()
		s.literal(`,"quantity":`)
		quantity := s.number()
		if quantity > sale.MaxQuantity {
			return nil, false
		}
		o.Quantity = int(quantity)
		s.literal(`,"amount_cents":`)
		o.AmountCents = s.number()
		s.literal(`,"created_ms":`)
		if s.number() != o.CreatedAt().UnixMilli() {
			return nil, false
		}
		s.literal(`}`)
		b.Orders = append(b.Orders, o)
	}
	s.literal(`]}`)
	return b, !s.failed && s.rest == ""
}

const orderHead = `{"order_id":"`

// scanner takes a body from its front. Once it has failed, it takes nothing any more.
type scanner struct {
	rest   string
	failed bool
}

func (s *scanner) fail() {
	s.rest, s.failed = "", true
}

// literal takes these very letters.
func (s *scanner) literal(want string) {
	rest, ok := strings.CutPrefix(s.rest, want)
	if !ok {
		s.fail()
		return
	}
	s.rest = rest
}

// next takes c, if it is next.
func (s *scanner) next(c byte) bool {
	if s.rest == "" || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// number takes a decimal number as it is written, not negative and within 64 bits.
func (s *scanner) number() (n int64) {
	i := 0
	for ; i < len(s.rest) && s.rest[i] >= '0' && s.rest[i] <= '9'; i++ {
		digit := int64(s.rest[i] - '0')
		if n > (math.MaxInt64-digit)/10 {
			s.fail()
			return 0
		}
		n = n*10 + digit
	}
	if i == 0 || i > 1 && s.rest[0] == '0' {
		s.fail()
		return 0
	}
	s.rest = s.rest[i:]
	return n
}

// text takes the rest of a string, to and with its closing quote; one in which anything
// is escaped, or should be, is not taken.
func (s *scanner) text() (text string) {
	for i := range len(s.rest) {
		switch c := s.rest[i]; {
		case c == '"':
			text, s.rest = s.rest[:i], s.rest[i+1:]
			return text
		case c == '\\', c < ' ':
			s.fail()
			return ""
		}
	}
	s.fail()
	return ""
}
