package reconciler

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
)

const (
	// runLeasePrefix and a sale's id name the lease of a run on that sale.
	runLeasePrefix = "reconcile/"
	// defaultRunWaitSeconds is how long a run waits for another one on the same sale: a
	// sale of 1,000,000 orders takes a minute or two.
	defaultRunWaitSeconds = 120
	// runLeaseLook is how often a run that waits looks.
	runLeaseLook = 100 * time.Millisecond
	// runLeaseRenewals is how many chances a holder has to renew within the lease's time.
	runLeaseRenewals = 3
)

// runHolder names one run among all: two runs of one process exclude each other too.
func (r *Reconciler) runHolder() string {
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails: it ends the program instead
	return r.o.Holder + "#" + hex.EncodeToString(random)
}

// enclosure is a sale's lease while it is held and renewed.
type enclosure struct {
	ctx     context.Context // ends when the lease is lost, with ErrFenced as its cause
	fence   ledger.Fence
	release func()
}

// enclose takes the lease of a sale, waiting for another run to end, and keeps it.
func (r *Reconciler) enclose(ctx context.Context, saleID, holder string) (*enclosure, error) {
	name := runLeasePrefix + saleID
	token, err := r.awaitLease(ctx, name, holder)
	if err != nil {
		return nil, err
	}
	fence := ledger.Fence{Lease: name, Holder: holder, Token: token}
	inner, end := context.WithCancelCause(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.keepLease(inner, end, fence)
	}()
	return &enclosure{ctx: inner, fence: fence, release: func() {
		end(nil)
		<-stopped
		releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.StepTimeout)
		defer cancel()
		if err := r.o.Ledger.Release(releasing, name, holder); err != nil {
			r.o.Log.Warn("a reconcile's lease was not given back; it lapses by itself", "lease", name, "err", err)
		}
	}}, nil
}

func (r *Reconciler) awaitLease(ctx context.Context, name, holder string) (int64, error) {
	tick := time.NewTicker(runLeaseLook)
	defer tick.Stop()
	for began := time.Now(); ; {
		token, ok, err := r.o.Ledger.Acquire(ctx, name, holder, r.o.LeaseTTL)
		if err != nil || ok {
			return token, err
		}
		if time.Since(began) > r.o.RunWait {
			other, until, err := r.o.Ledger.LeaseHolder(ctx, name)
			if err != nil {
				return 0, err
			}
			return 0, &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf(
				"another reconcile has the sale: %s, its lease runs until %s", other, until.Format(time.RFC3339))}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// keepLease renews until ctx ends, and ends it when the lease has gone to another or
// could not be renewed in its time.
func (r *Reconciler) keepLease(ctx context.Context, end context.CancelCauseFunc, f ledger.Fence) {
	tick := time.NewTicker(max(r.o.LeaseTTL/runLeaseRenewals, time.Millisecond))
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asked := time.Now()
		token, ok, err := r.o.Ledger.Acquire(ctx, f.Lease, f.Holder, r.o.LeaseTTL)
		switch {
		case err == nil && ok && token == f.Token:
			renewed = asked
		case err == nil, time.Since(renewed) > r.o.LeaseTTL:
			end(fmt.Errorf("%w: %s", ledger.ErrFenced, f.Lease))
			return
		}
	}
}
