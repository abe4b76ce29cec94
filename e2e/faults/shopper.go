package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// What shoppers do.
const (
	requestTimeoutMillis = 4_000 // a patient client; the gateway answers within 3 s
	hastyTimeoutMillis   = 150   // one that hangs up before it knows
	retryMillis          = 250   // between two tries, and up to twice as much; grows by half
	retryMaxMillis       = 2_000 // up to this
	lookMillis           = 600   // between two looks at an order, and up to twice as much
	loadMillis           = 10_000
	resolveSeconds       = 180 // after all is healed, for every key to have a definite answer
	stormMillis          = 500
	stormOf              = 3 // one shopper of so many comes at the very start
)

// offer is a sale of a round.
type offer struct {
	id         string
	total      int64
	limit      int // units a user
	priceCents int64
}

// want is one purchase that a shopper means to make.
type want struct {
	offer    *offer
	key      string
	quantity int
	quits    bool // walks away from an unknown outcome
}

// shopper is one user.
type shopper struct {
	user   string
	token  string
	wants  []want
	comes  time.Duration // after the round's beginning
	random *rand.Rand
	crowd  *crowd
}

// crowd is what shoppers share.
type crowd struct {
	gateways []string
	client   *http.Client
	history  *history
}

func newCrowd(gateways []string, h *history) *crowd {
	return &crowd{gateways: gateways, history: h, client: &http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     10 * time.Second,
	}}}
}

// newShoppers makes the shoppers of a round; everything about them is the seed's.
func (s *Site) newShoppers(seed uint64, n int, offers []*offer, c *crowd) ([]*shopper, error) {
	shoppers := make([]*shopper, n)
	for i := range shoppers {
		r := rand.New(rand.NewPCG(seed, 1000+uint64(i)))
		p := &shopper{user: fmt.Sprintf("u%d-%d", seed, i), random: r, crowd: c}
		var err error
		if p.token, err = s.token(p.user); err != nil {
			return nil, err
		}
		p.comes = time.Duration(r.IntN(loadMillis*9/10)) * time.Millisecond
		if i%stormOf == 0 {
			p.comes = time.Duration(r.IntN(stormMillis)) * time.Millisecond
		}
		keyless := make(map[*offer]bool)
		for range 1 + r.IntN(2) {
			o := offers[r.IntN(len(offers))]
			w := want{offer: o, quantity: 1 + r.IntN(min(2, o.limit)), quits: r.IntN(8) == 0}
			switch r.IntN(4) {
			case 0:
				w.key = "k-" + strconv.Itoa(r.IntN(1_000_000))
			case 1: // none: one purchase a sale
				if keyless[o] {
					w.key = "second"
				}
				keyless[o] = true
			default:
				id, err := uuid.NewRandomFromReader(randomBytes{r})
				if err != nil {
					return nil, err
				}
				w.key = id.String()
			}
			p.wants = append(p.wants, w)
		}
		shoppers[i] = p
	}
	return shoppers, nil
}

// randomBytes reads a seeded source.
type randomBytes struct{ r *rand.Rand }

func (b randomBytes) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b.r.Uint32())
	}
	return len(p), nil
}

// shop is a shopper's round. open ends when the load does: then what is undecided is
// asked until it is known, within ctx. It returns the wants that never were.
func (p *shopper) shop(open, ctx context.Context) []want {
	if !pause(ctx, p.comes) {
		return p.wants
	}
	var undecided []want
	for _, w := range p.wants {
		order, decided := p.get(open, ctx, w)
		if !decided {
			undecided = append(undecided, w)
		}
		if order != "" {
			p.look(open, w, order)
		}
	}
	return undecided
}

// get buys: it asks until the answer is definite, with one key, as clients should.
// Some ask twice at once, and some hang up early.
func (p *shopper) get(open, ctx context.Context, w want) (order string, decided bool) {
	wait := retryMillis
	for ctx.Err() == nil {
		timeout := requestTimeoutMillis * time.Millisecond
		if open.Err() == nil && p.random.IntN(12) == 0 {
			timeout = hastyTimeoutMillis * time.Millisecond
		}
		gateway := p.random.IntN(len(p.crowd.gateways))
		var twin sync.WaitGroup
		if open.Err() == nil && p.random.IntN(8) == 0 {
			twin.Go(func() { p.post(ctx, w, buy, w.quantity, 1-gateway, requestTimeoutMillis*time.Millisecond) })
		}
		a := p.post(ctx, w, buy, w.quantity, gateway, timeout)
		twin.Wait()
		seen := a.outcome()
		switch {
		case seen == accepted:
			return a.got.OrderID, true
		case seen == refused && (a.status == 409 || a.status == 422):
			return "", true
		}
		if seen == unknown && w.quits && open.Err() == nil {
			return "", true // walks away: nobody is owed an answer
		}
		pause(ctx, time.Duration(wait+p.random.IntN(wait))*time.Millisecond)
		wait = min(wait*3/2, retryMaxMillis)
	}
	return "", false
}

// look polls an order till the load ends, lists all, and now and then sends the
// purchase once more, or under a changed quantity.
func (p *shopper) look(open context.Context, w want, order string) {
	for looks := 0; looks < 6; looks++ {
		if !pause(open, time.Duration(lookMillis+p.random.IntN(lookMillis))*time.Millisecond) {
			return
		}
		gateway := p.random.IntN(len(p.crowd.gateways))
		switch p.random.IntN(8) {
		case 0:
			p.post(open, w, buy, w.quantity, gateway, requestTimeoutMillis*time.Millisecond)
		case 1:
			p.post(open, w, reuse, w.quantity+1, gateway, requestTimeoutMillis*time.Millisecond)
		case 2:
			p.list(open, w.offer.id, gateway)
		default:
			p.poll(open, w, order, gateway)
		}
	}
}

// post sends a purchase.
func (p *shopper) post(ctx context.Context, w want, d deed, quantity, gateway int, timeout time.Duration) answer {
	a := answer{deed: d, sale: w.offer.id, user: p.user, key: w.key, quantity: quantity, gateway: gateway}
	p.ask(ctx, &a, http.MethodPost, "/v1/sales/"+w.offer.id+"/purchases", fmt.Sprintf(`{"quantity":%d}`, quantity), timeout, &a.got)
	a.order = a.got.OrderID
	p.crowd.history.add(&a)
	return a
}

func (p *shopper) poll(ctx context.Context, w want, order string, gateway int) answer {
	a := answer{deed: poll, sale: w.offer.id, user: p.user, key: w.key, quantity: w.quantity, order: order, gateway: gateway}
	p.ask(ctx, &a, http.MethodGet, "/v1/orders/"+order+"?sale_id="+w.offer.id, "", requestTimeoutMillis*time.Millisecond, &a.got)
	p.crowd.history.add(&a)
	return a
}

func (p *shopper) list(ctx context.Context, sale string, gateway int) {
	a := answer{deed: list, sale: sale, user: p.user, gateway: gateway}
	var body struct{ Orders []shown }
	p.ask(ctx, &a, http.MethodGet, "/v1/orders?sale_id="+sale, "", requestTimeoutMillis*time.Millisecond, &body)
	a.listed = body.Orders
	p.crowd.history.add(&a)
}

// ask sends one request and notes what came back.
func (p *shopper) ask(ctx context.Context, a *answer, method, path, body string, timeout time.Duration, into any) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a.from = p.crowd.history.now()
	defer func() { a.to = p.crowd.history.now() }()
	r, err := http.NewRequestWithContext(ctx, method, p.crowd.gateways[a.gateway]+path, strings.NewReader(body))
	if err != nil {
		a.failure = err.Error()
		return
	}
	r.Header.Set("Authorization", "Bearer "+p.token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
		// What broke off is asked again here, not by the client unseen.
		r.GetBody = nil
	}
	if a.key != "" && method == http.MethodPost {
		r.Header.Set("Idempotency-Key", a.key)
	}
	resp, err := p.crowd.client.Do(r)
	if err != nil {
		a.failure = err.Error()
		return
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err == nil && int64(len(text)) < resp.ContentLength {
		err = errors.New("broken off")
	}
	if err != nil {
		a.failure = err.Error() // an answer that did not arrive whole is none
		return
	}
	a.replayed = resp.Header.Get("Idempotent-Replayed") == "true"
	if resp.StatusCode < 300 {
		if err := json.Unmarshal(text, into); err != nil {
			a.failure = err.Error()
			return
		}
	} else {
		var problem struct{ Code string }
		if err := json.Unmarshal(text, &problem); err != nil {
			a.failure = err.Error()
			return
		}
		a.code = problem.Code
	}
	a.status = resp.StatusCode
}

// status is a sale's, as a gateway shows it.
func (c *crowd) status(ctx context.Context, gateway int, sale string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeoutMillis*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.gateways[gateway]+"/v1/sales/"+sale, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.client.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var page struct{ Status string }
	err = json.NewDecoder(resp.Body).Decode(&page)
	return page.Status, err
}
