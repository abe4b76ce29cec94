package purchase

import (
	"context"
	"sync"
	"time"

	"flashgate/internal/sale"
	"flashgate/internal/stock"
)

// replay answers the requests whose key has an order in another batch.
//
// A CONFIRMED batch is confirmed again, which waits for the replicas: the gateway
// that confirmed it may have died between the two. One that this gateway knows to be
// on the replicas is not. A RESERVED one is still open,
// so its replays ask again in the background until it is not.
func (p *Protocol) replay(ctx context.Context, s *sale.Sale, r *run) {
	if len(r.replays) > 0 {
		var wg sync.WaitGroup
		slots := make(chan struct{}, maxReplayConfirms)
		for id, replays := range r.replays {
			if p.confirmed.has(id, r.batch.Epoch) {
				for _, t := range replays {
					t.request.Answer(t.answer)
				}
				continue
			}
			slots <- struct{}{}
			wg.Add(1)
			go func() {
				defer wg.Done()
				p.replayConfirmed(ctx, r.batch.Epoch, s.ID, id, replays)
				<-slots
			}()
		}
		wg.Wait()
	}
	if len(r.open) > 0 {
		p.await(ctx, s, append([]*Request(nil), r.open...), awaitMinMillis*time.Millisecond)
	}
}

func (p *Protocol) replayConfirmed(ctx context.Context, epoch int64, saleID string, batch sale.ID, replays []replay) {
	b := sale.Batch{ID: batch, SaleID: saleID, Epoch: epoch}
	requests := make([]*Request, len(replays))
	for i, t := range replays {
		requests[i] = t.request
		// The records that may name the batch, should it be settled meanwhile.
		o := t.request.Order
		o.ID = t.answer.OrderID
		b.Orders = append(b.Orders, o)
	}
	state, err := p.confirm(ctx, &b, deadline(requests))
	for _, t := range replays {
		switch {
		case err != nil:
			t.request.Answer(Answer{Code: sale.CodeOutcomeUnknown})
		case state == stock.StateVoid:
			t.request.Answer(Answer{Code: sale.CodeUnavailable})
		default:
			t.answer.Settled = state == stock.StateSettled
			t.request.Answer(t.answer)
		}
	}
}

// await asks again, after a pause, for requests that met an open reservation. The
// number of goroutines here is bounded by the requests that the gateway admits.
func (p *Protocol) await(ctx context.Context, s *sale.Sale, requests []*Request, pause time.Duration) {
	p.waits.Add(1)
	go func() {
		defer p.waits.Done()
		limit := deadline(requests)
		for len(requests) > 0 {
			if time.Until(limit) <= pause || !sleep(ctx, pause) {
				answerAll(requests, Answer{Code: sale.CodeOutcomeUnknown})
				return
			}
			pause = min(2*pause, awaitMaxMillis*time.Millisecond)
			requests = p.again(ctx, s, requests)
		}
	}()
}

// again runs requests once more and returns those that are still open.
func (p *Protocol) again(ctx context.Context, s *sale.Sale, requests []*Request) []*Request {
	r := &run{requests: requests}
	if !p.reserve(ctx, s, r) {
		return nil
	}
	open := r.open
	r.open = nil
	p.replay(ctx, s, r)
	p.handOver(ctx, r)
	return open
}
