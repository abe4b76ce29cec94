package gateway

import (
	"strconv"
	"time"

	"flashgate/internal/sale"
)

// Codes of the HTTP layer alone: no other part of the program can meet them.
const (
	codeHeaderTooLarge sale.Code = "HEADER_TOO_LARGE"
	codeRequestTimeout sale.Code = "REQUEST_TIMEOUT"
)

// problem is what HTTP makes of a code (RFC 9457).
type problem struct {
	code   sale.Code
	status int
	title  string
	detail string // unless the refusal brings its own
	retry  bool   // carries Retry-After

	slot  int    // of its counter in metrics
	plain []byte // the body of a refusal that brings nothing of its own
}

// retryAfterSeconds is how long a shopper who got 503 is asked to wait: long
// enough for a breaker's probe or a failover step, short enough to stay in the sale.
const retryAfterSeconds = 1

// problems is the one map from code to HTTP.
var problems = index([]problem{
	{code: sale.CodeInvalid, status: 400, title: "Invalid request", detail: "the request is malformed"},
	{code: sale.CodeUnauthenticated, status: 401, title: "Not authenticated", detail: "a valid bearer token is needed"},
	{code: sale.CodeBlocked, status: 403, title: "Blocked", detail: "an operator has blocked you; waiting does not help"},
	{code: sale.CodeTicket, status: 403, title: "Ticket required", detail: "this sale wants a ticket: POST /v1/sales/{id}/ticket, and send it as Purchase-Ticket"},
	{code: sale.CodeChallenge, status: 403, title: "Challenge failed", detail: "the proof was not accepted"},
	{code: sale.CodeNotFound, status: 404, title: "Not found", detail: "there is nothing at this path"},
	{code: sale.CodeSaleNotFound, status: 404, title: "Sale not found", detail: "there is no sale with this id"},
	{code: sale.CodeOrderNotFound, status: 404, title: "Order not found", detail: "you have no order with this id"},
	{code: sale.CodeMethod, status: 405, title: "Method not allowed", detail: "see the Allow header"},
	{code: codeRequestTimeout, status: 408, title: "Request timeout", detail: "the request did not arrive whole in time"},
	{code: sale.CodeSoldOut, status: 409, title: "Sold out", detail: "fewer units are left than were asked for"},
	{code: sale.CodeLimitReached, status: 409, title: "Limit reached", detail: "this would be more units than one user may hold"},
	{code: sale.CodeNotStarted, status: 409, title: "Not started", detail: "the sale has not begun"},
	{code: sale.CodeEnded, status: 409, title: "Ended", detail: "the sale is over"},
	{code: sale.CodePaused, status: 409, title: "Paused", detail: "the sale is paused"},
	{code: sale.CodeConflict, status: 409, title: "Conflict", detail: "the change contradicts what is stored"},
	{code: sale.CodeTooLarge, status: 413, title: "Body too large", detail: "the body is larger than this route takes"},
	{code: sale.CodeMediaType, status: 415, title: "Unsupported media type", detail: "the body must be application/json, without a content encoding"},
	{code: sale.CodeKeyReused, status: 422, title: "Idempotency key reused", detail: "this Idempotency-Key belongs to a purchase of another quantity"},
	{code: sale.CodeRateLimited, status: 429, title: "Too many requests", detail: "wait, then try again", retry: true},
	{code: codeHeaderTooLarge, status: 431, title: "Header too large", detail: "the request line and header are larger than the gateway takes"},
	{code: sale.CodeInternal, status: 500, title: "Internal error", detail: "the gateway failed; it has been logged"},
	{code: sale.CodeUnavailable, status: 503, title: "Unavailable", detail: "nothing was reserved; try again", retry: true},
	{code: sale.CodeOutcomeUnknown, status: 503, title: "Outcome unknown", detail: "units may have been reserved; ask again with the same Idempotency-Key to find out", retry: true},
})

func index(table []problem) map[sale.Code]*problem {
	m := make(map[sale.Code]*problem, len(table))
	for i := range table {
		p := &table[i]
		p.slot = i
		var after time.Duration
		if p.retry {
			after = retryAfterSeconds * time.Second
		}
		p.plain = p.append(nil, refusal{retryAfter: after})
		m[p.code] = p
	}
	return m
}

// problemOf is the problem of a code; one that HTTP does not know is INTERNAL.
func problemOf(code sale.Code) *problem {
	if p, ok := problems[code]; ok {
		return p
	}
	return problems[sale.CodeInternal]
}

// Problem appends the application/problem+json body of a code to dst, and returns
// the HTTP status that goes with it. An empty detail stands for the code's own.
func Problem(dst []byte, code sale.Code, detail string) (status int, body []byte) {
	p := problemOf(code)
	if detail == "" {
		return p.status, append(dst, p.plain...)
	}
	return p.status, p.append(dst, refusal{detail: detail})
}

func (p *problem) append(dst []byte, r refusal) []byte {
	if r.detail == "" {
		r.detail = p.detail
	}
	dst = append(dst, `{"type":"urn:flashgate:problem:`...)
	dst = append(dst, p.code...)
	dst = append(dst, `","title":"`...)
	dst = append(dst, p.title...)
	dst = append(dst, `","status":`...)
	dst = strconv.AppendInt(dst, int64(p.status), 10)
	dst = append(dst, `,"code":"`...)
	dst = append(dst, p.code...)
	dst = append(dst, `","detail":`...)
	dst = appendJSONString(dst, r.detail)
	if r.limit != "" {
		dst = append(dst, `,"limit":`...)
		dst = appendJSONString(dst, r.limit)
	}
	if r.retryAfter > 0 {
		dst = append(dst, `,"retry_after":`...)
		dst = strconv.AppendInt(dst, wholeSeconds(r.retryAfter), 10)
	}
	return append(dst, '}')
}

// wholeSeconds rounds up: a client that comes back too early is refused again.
func wholeSeconds(d time.Duration) int64 {
	return max(1, int64((d+time.Second-1)/time.Second))
}

// refusal is a handler's no. The zero value is none.
type refusal struct {
	code       sale.Code
	detail     string        // "" = the problem's own
	limit      string        // of a 429: which
	retryAfter time.Duration // 0 = the default of problems that carry one
}

func refuse(code sale.Code) refusal { return refusal{code: code} }

func refuseWith(code sale.Code, detail string) refusal { return refusal{code: code, detail: detail} }

var (
	problemType      = []byte("application/problem+json")
	headerRetryAfter = []byte("Retry-After")
)

// problem answers the call with a refusal; it allocates nothing.
func (c *call) problem(r refusal) *problem {
	p := problemOf(r.code)
	c.head(p.status, problemType)
	response := &c.ctx.Response
	if p.retry && r.retryAfter == 0 {
		r.retryAfter = retryAfterSeconds * time.Second
	}
	if p.retry {
		c.buf = strconv.AppendInt(c.buf[:0], wholeSeconds(r.retryAfter), 10)
		response.Header.SetBytesKV(headerRetryAfter, c.buf)
	}
	if p.status == 401 {
		response.Header.Set("WWW-Authenticate", `Bearer`)
	}
	if r.detail == "" && r.limit == "" && r.retryAfter <= retryAfterSeconds*time.Second {
		response.SetBodyRaw(p.plain)
		return p
	}
	c.buf = p.append(c.buf[:0], r)
	response.SetBody(c.buf)
	return p
}
