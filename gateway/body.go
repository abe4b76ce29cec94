package gateway

import (
	"bytes"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"flashgate/internal/sale"
)

var (
	mediaJSON = []byte("application/json")
	identity  = []byte("identity")
)

// readQuantity reads a purchase's body: 413, 415, then 400. tooLarge says that the
// server has stopped reading it.
func readQuantity(request *fasthttp.Request, tooLarge bool) (int, refusal) {
	if tooLarge {
		return 0, refuse(sale.CodeTooLarge)
	}
	if encoding := request.Header.ContentEncoding(); len(encoding) > 0 && !bytes.EqualFold(encoding, identity) {
		return 0, refuse(sale.CodeMediaType)
	}
	body := request.Body()
	if len(body) == 0 {
		return 1, refusal{}
	}
	media, _, _ := bytes.Cut(request.Header.ContentType(), []byte{';'})
	if !bytes.EqualFold(bytes.TrimSpace(media), mediaJSON) {
		return 0, refuse(sale.CodeMediaType)
	}
	n, fault := parseQuantity(body)
	if fault != "" {
		return 0, refuseWith(sale.CodeInvalid, fault)
	}
	return n, refusal{}
}

const faultFraming = "the request has both a Content-Length and a Transfer-Encoding"

var (
	headerLength   = []byte("Content-Length")
	headerTransfer = []byte("Transfer-Encoding")
)

// twoLengths reports whether a chunked request also states a length. A proxy that goes
// by the other of the two would see requests where there are none (RFC 9112 §6.3), so
// the connection does not go on after it.
func twoLengths(header *fasthttp.RequestHeader) bool {
	// -1 is chunked; 0 may have been, with an empty body.
	if n := header.ContentLength(); n != -1 && n != 0 {
		return false
	}
	length, chunked := false, false
	for line := range bytes.SplitSeq(header.RawHeaders(), []byte{'\n'}) {
		name, _, _ := bytes.Cut(line, []byte{':'})
		length = length || bytes.EqualFold(name, headerLength)
		chunked = chunked || bytes.EqualFold(name, headerTransfer)
	}
	return length && chunked
}

// The faults of a body, as the shopper reads them.
const (
	faultSyntax    = `body: want one JSON object, such as {"quantity":1}`
	faultField     = `body: "quantity" is the only field`
	faultDuplicate = `body: "quantity" is given twice`
	faultQuantity  = `body: "quantity" must be a whole number from 1 to 10000`
)

// parseQuantity reads {"quantity":N}, 1 ≤ N ≤ sale.MaxQuantity; {} is 1, as an
// empty body is. It is stricter than JSON: no other field, none twice, the field's
// name and the number written plainly. It allocates nothing.
func parseQuantity(body []byte) (quantity int, fault string) {
	b := skipSpace(body)
	if len(b) == 0 || b[0] != '{' {
		return 0, faultSyntax
	}
	b = skipSpace(b[1:])
	quantity = 1
	for given := false; ; given = true {
		if !given && len(b) > 0 && b[0] == '}' {
			break
		}
		if len(b) == 0 || b[0] != '"' {
			return 0, faultSyntax
		}
		rest, ok := bytes.CutPrefix(b, []byte(`"quantity"`))
		if !ok {
			return 0, faultField
		}
		if given {
			return 0, faultDuplicate
		}
		if b = skipSpace(rest); len(b) == 0 || b[0] != ':' {
			return 0, faultSyntax
		}
		if quantity, b = parseNumber(skipSpace(b[1:])); quantity == 0 {
			return 0, faultQuantity
		}
		b = skipSpace(b)
		if len(b) > 0 && b[0] == ',' {
			b = skipSpace(b[1:])
			continue
		}
		if len(b) == 0 || b[0] != '}' {
			return 0, faultSyntax
		}
		break
	}
	if len(skipSpace(b[1:])) > 0 {
		return 0, faultSyntax
	}
	return quantity, ""
}

// parseNumber reads digits up to sale.MaxQuantity; 0 means that there are none.
func parseNumber(b []byte) (n int, rest []byte) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		if n = n*10 + int(b[i]-'0'); n > sale.MaxQuantity || n == 0 {
			return 0, b
		}
	}
	// What follows ends the number, or it is a fraction, an exponent or no number.
	if i < len(b) && b[i] != '}' && b[i] != ',' && !isSpace(b[i]) {
		return 0, b
	}
	return n, b[i:]
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func skipSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	return b
}

const (
	headerKey      = "Idempotency-Key"
	faultKeyTwice  = "Idempotency-Key is given twice"
	faultKeyLength = "Idempotency-Key: want at most 64 bytes"
	faultKeyText   = "Idempotency-Key: want UTF-8 without control characters"
)

// readKey reads the Idempotency-Key; "" means none.
func readKey(header *fasthttp.RequestHeader) (key []byte, r refusal) {
	keys := header.PeekAll(headerKey)
	if len(keys) == 0 {
		return nil, refusal{}
	}
	if len(keys) > 1 {
		return nil, refuseWith(sale.CodeInvalid, faultKeyTwice)
	}
	key = keys[0]
	if len(key) > sale.MaxRequestKeyBytes {
		return nil, refuseWith(sale.CodeInvalid, faultKeyLength)
	}
	if !plainText(key) {
		return nil, refuseWith(sale.CodeInvalid, faultKeyText)
	}
	return key, refusal{}
}

// plainText reports whether b is UTF-8 without control characters (Unicode's Cc).
func plainText(b []byte) bool {
	for i := 0; i < len(b); {
		if c := b[i]; c < utf8.RuneSelf {
			if c < 0x20 || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 || r >= 0x80 && r < 0xa0 {
			return false
		}
		i += size
	}
	return true
}
