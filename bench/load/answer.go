package load

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

// An Answer is what one request got. Its zero value says that the request was
// never sent, so a record that nobody wrote is seen as missing.
type Answer struct {
	Order     int64  // id of the order in a 202, or 0
	DoneNanos int64  // when it came, from the start of the load
	TookNanos int64  // from when it was sent (or due, in an open loop) to the last byte read
	Kind      uint8  // index into kinds
	Replayed  bool   // it carried Idempotent-Replayed: true
	Status    uint16 // HTTP status, or 0 when there was no answer
}

// A Kind is a class of answers: a status and a word, which is the problem's code
// in a refusal and the order's status where an order was looked at.
type Kind struct {
	Status int    `json:"status"` // 0 = no answer
	Code   string `json:"code"`   // "" where the status says all
	Sample string `json:"-"`      // the first such body, for the reader of a failed run
}

func (k Kind) String() string {
	switch {
	case k.Status == 0:
		return k.Code
	case k.Code == "":
		return strconv.Itoa(k.Status)
	default:
		return strconv.Itoa(k.Status) + " " + k.Code
	}
}

// The kinds that are there before any answer came.
const (
	KindNotSent  uint8 = iota // the run ended first
	KindNoAnswer              // the connection failed, or the time was up
	kindOther                 // more kinds came than are told apart
)

const (
	maxKinds = 64 // the API documents about twenty; the rest is room for surprises

	maxSampleBytes = 300
	maxFaults      = 5 // transport errors kept word for word
)

// Kinds gives answers' kinds their numbers, and counts them while a load runs.
type Kinds struct {
	counts [maxKinds]atomic.Int64

	mu     sync.Mutex
	known  []Kind
	Faults []string
}

// NewKinds has no answer yet.
func NewKinds() *Kinds {
	return &Kinds{known: []Kind{
		KindNotSent:  {Code: "not sent"},
		KindNoAnswer: {Code: "no answer"},
		kindOther:    {Code: "other answers"},
	}}
}

// Number is a kind's number; body is kept as its sample when it is new.
func (ks *Kinds) Number(status int, code string, body []byte) uint8 {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	for i, k := range ks.known {
		if k.Status == status && k.Code == code {
			return uint8(i)
		}
	}
	if len(ks.known) == maxKinds {
		return kindOther
	}
	sample := string(body[:min(len(body), maxSampleBytes)])
	ks.known = append(ks.known, Kind{Status: status, Code: code, Sample: sample})
	return uint8(len(ks.known) - 1)
}

// At is the kind of a number.
func (ks *Kinds) At(i uint8) Kind {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	return ks.known[i]
}

func (ks *Kinds) fault(err error) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if text := err.Error(); len(ks.Faults) < maxFaults && !slices.Contains(ks.Faults, text) {
		ks.Faults = append(ks.Faults, text)
	}
}

// total is the number of answers so far, those that failed to come included.
func (ks *Kinds) total() (n int64) {
	for i := range ks.counts {
		n += ks.counts[i].Load()
	}
	return n
}

// Count is a kind with how often it came.
type Count struct {
	Kind
	Count int64 `json:"count"`
}

// List is every kind that came, the most frequent first.
func (ks *Kinds) List() []Count {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	var out []Count
	for i, k := range ks.known {
		if n := ks.counts[i].Load(); n > 0 {
			out = append(out, Count{Kind: k, Count: n})
		}
	}
	slices.SortStableFunc(out, func(a, b Count) int { return int(b.Count - a.Count) })
	return out
}

// A Reader reads answers for one connection, without a lock once it has met a kind.
type Reader struct {
	Kinds   *Kinds
	met     []metKind
	refusal refusal // the last one: most are like it, to the byte
}

type refusal struct {
	status int
	body   []byte
	number uint8
}

type metKind struct {
	status int
	code   string
	number uint8
}

// refused is the kind of a refusal: its status and its problem's code.
func (r *Reader) refused(status int, body []byte) uint8 {
	if last := &r.refusal; last.status != status || !bytes.Equal(last.body, body) {
		*last = refusal{status, append(last.body[:0], body...), r.kindOf(status, member(body, `"code"`), body)}
	}
	return r.refusal.number
}

func (r *Reader) kindOf(status int, code, body []byte) uint8 {
	for i := range r.met {
		if m := &r.met[i]; m.status == status && m.code == string(code) {
			return m.number
		}
	}
	n := r.Kinds.Number(status, string(code), body)
	r.met = append(r.met, metKind{status: status, code: string(code), number: n})
	return n
}

// ReadPurchase reads the answer to a purchase. It looks for two members by name
// and decodes no more: the driver shares the machine with what it measures.
func ReadPurchase(r *Reader, resp *fasthttp.Response) (Answer, error) {
	a, body := Answer{Status: uint16(resp.StatusCode())}, resp.Body()
	if resp.StatusCode() != http.StatusAccepted {
		a.Kind = r.refused(resp.StatusCode(), body)
		return a, nil
	}
	a.Kind = r.kindOf(http.StatusAccepted, nil, body)
	a.Replayed = string(resp.Header.Peek("Idempotent-Replayed")) == "true"
	var err error
	a.Order, err = readOrderID(body)
	return a, err
}

// ReadOrder reads the answer to a look at one order: its kind is 200 and the
// order's status.
func ReadOrder(r *Reader, resp *fasthttp.Response) (Answer, error) {
	a, body := Answer{Status: uint16(resp.StatusCode())}, resp.Body()
	if resp.StatusCode() != http.StatusOK {
		a.Kind = r.refused(resp.StatusCode(), body)
		return a, nil
	}
	a.Kind = r.kindOf(http.StatusOK, member(body, `"status"`), body)
	var err error
	a.Order, err = readOrderID(body)
	return a, err
}

// ReadStatus tells answers apart by their status alone.
func ReadStatus(r *Reader, resp *fasthttp.Response) (Answer, error) {
	return Answer{
		Status: uint16(resp.StatusCode()),
		Kind:   r.kindOf(resp.StatusCode(), nil, resp.Body()),
	}, nil
}

func readOrderID(body []byte) (int64, error) {
	n, err := strconv.ParseInt(string(member(body, `"order_id"`)), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("an order without a readable order_id: %.300q", body)
	}
	return n, nil
}

// member is the string value of a JSON object's member, or nil; name has its
// quotes. Escapes are not undone: ids and codes have none.
func member(body []byte, name string) []byte {
	at := bytes.Index(body, []byte(name))
	if at < 0 {
		return nil
	}
	rest := bytes.TrimLeft(body[at+len(name):], " \t\r\n")
	if len(rest) == 0 || rest[0] != ':' {
		return nil
	}
	rest = bytes.TrimLeft(rest[1:], " \t\r\n")
	if len(rest) == 0 || rest[0] != '"' {
		return nil
	}
	value, _, found := bytes.Cut(rest[1:], []byte{'"'})
	if !found {
		return nil
	}
	return value
}
