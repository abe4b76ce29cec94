package faults

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"flashgate/internal/failpoint"
	"flashgate/internal/rig"
)

const (
	sigStop     = syscall.SIGSTOP
	sigContinue = syscall.SIGCONT

	// restartSeconds bounds the restart of an engine or an orderly one of a daemon.
	restartSeconds = 180
)

// inject lets a fault happen and heals it when its time is over, or ctx ends. What it
// notes goes to the round's timeline.
func (s *Site) inject(ctx context.Context, r *round, f *fault) error {
	// While nodes vote on a master, nobody is one.
	var target string
	err := await(ctx, restartSeconds*time.Second, func(ctx context.Context) (err error) {
		target, err = s.resolve(ctx, r, strings.TrimPrefix(f.target, "link "))
		return err
	})
	if err != nil {
		return err
	}
	r.note("%s begins, on %s", f, target)
	defer r.note("%s is over", f)
	wait := func() { pause(ctx, f.lasts) }
	// Healing must not be cut short.
	whole := context.WithoutCancel(ctx)

	switch f.kind {
	case "kill":
		d := s.daemon(target)
		d.kill()
		wait()
		return d.start()
	case "stop":
		d := s.daemon(target)
		d.signal(sigStop)
		wait()
		d.signal(sigContinue)
	case "blackout":
		return s.blackout(whole, f, wait)
	case "restart":
		d := s.daemon(target)
		if err := d.stop(); err != nil {
			return err
		}
		wait()
		return d.start()
	case "failpoint":
		return s.failAt(ctx, r, f)
	case "engine-kill", "failover", "replica-kill":
		p := s.engine(target)
		if err := p.Kill(whole); err != nil {
			return err
		}
		wait()
		return p.Start()
	case "flush":
		return s.flush(whole, r, target)
	case "wipe":
		return s.wipe(whole, r, target, wait)
	case "lost-tail":
		return s.loseTail(ctx, r, f, target)
	case "engine-stop":
		p := s.engine(target)
		if err := p.Signal(sigStop); err != nil {
			return err
		}
		wait()
		return p.Signal(sigContinue)
	case "cut":
		s.network.cut(target)
		wait()
		return s.network.mend(target)
	case "delay", "half-open", "throttle", "reset":
		name, attributes := "timeout", map[string]int{"timeout": 0}
		switch f.kind {
		case "delay":
			name, attributes = "latency", map[string]int{"latency": f.number, "jitter": f.number / 2}
		case "throttle":
			name, attributes = "bandwidth", map[string]int{"rate": f.number}
		case "reset":
			name, attributes = "reset_peer", map[string]int{"timeout": resetAfterMillis}
		}
		if err := s.network.poison(target, name, attributes); err != nil {
			return err
		}
		wait()
		s.network.cure(whole, target)
	case "clock":
		file := filepath.Join(s.daemon(target).points, failpoint.ClockFile)
		if err := os.WriteFile(file, []byte(seconds(f.number)), 0o644); err != nil {
			return err
		}
		wait()
		return os.Remove(file)
	case "poison":
		return s.poison(ctx, r, f)
	case "resend":
		return s.resend(ctx, r, f)
	case "restock":
		return s.restock(ctx, r, f)
	default:
		panic("BUG: no such fault: " + f.kind)
	}
	return nil
}

// resolve names the node that "owner-N", "owner-bus-N" and "replica-N" mean now.
func (s *Site) resolve(ctx context.Context, r *round, target string) (string, error) {
	if number, replica := strings.CutPrefix(target, "replica-"); replica {
		master, err := s.resolve(ctx, r, "owner-"+number)
		if err != nil {
			return "", err
		}
		p, err := s.replicaOf(ctx, master)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("redis-%d", slices.Index(s.redis, p)), nil
	}
	number, owner := strings.CutPrefix(target, "owner-")
	if !owner {
		return target, nil
	}
	number, bus := strings.CutPrefix(number, "bus-")
	offer, err := strconv.Atoi(number)
	if err != nil {
		return "", err
	}
	node, err := s.owner(ctx, r.offers[offer].id)
	if bus {
		return fmt.Sprintf("bus-%d", node), err
	}
	return fmt.Sprintf("redis-%d", node), err
}

func (s *Site) daemon(name string) *daemon {
	for _, d := range s.daemons {
		if d.name == name {
			return d
		}
	}
	panic("BUG: no daemon is called " + name)
}

// engine is a process of the rig by the name its proxy has.
func (s *Site) engine(name string) *rig.Process {
	if number, ok := strings.CutPrefix(name, "redis-"); ok {
		if i, err := strconv.Atoi(number); err == nil {
			return s.redis[i]
		}
	}
	for _, process := range []string{"rocketmq-" + name, name} {
		if p := s.rig.Process(process); p != nil {
			return p
		}
	}
	panic("BUG: no engine is called " + name)
}

// failAt arms a failpoint, and starts the process again if it has ended there.
func (s *Site) failAt(ctx context.Context, r *round, f *fault) error {
	d := s.daemon(f.target)
	gone := d.expectEnd()
	if err := d.arm(f.point, f.action); err != nil {
		return err
	}
	select {
	case <-gone:
		r.note("%s: passed", f)
		r.passed.Add(1)
	case <-time.After(f.lasts):
		if !d.disarm(f.point) {
			r.note("%s: passed", f)
			r.passed.Add(1)
			if strings.HasPrefix(f.action, failpoint.Kill) {
				<-gone
			}
		}
	}
	if !closed(gone) {
		d.mu.Lock()
		d.own = true
		d.mu.Unlock()
		return nil
	}
	return d.start()
}

// enginesOfASite is how many processes its engines are: name server, broker, MariaDB and
// Redis's nodes.
const enginesOfASite = 3 + redisNodes

// blackout is kill -9 of all there is. The daemons come back first, each says what it
// lacks, and then the engines do, in an order of the seed's.
func (s *Site) blackout(ctx context.Context, f *fault, wait func()) error {
	var killing errGroup
	for _, d := range s.daemons {
		killing.do(func() error { d.kill(); return nil })
	}
	engines := append([]*rig.Process{s.engine("namesrv"), s.engine("broker"), s.engine("mariadb")}, s.redis...)
	for _, p := range engines {
		killing.do(func() error { return p.Kill(ctx) })
	}
	if err := killing.wait(); err != nil {
		return err
	}
	wait()
	for _, d := range s.daemons {
		if err := d.start(); err != nil {
			return err
		}
	}
	err := await(ctx, restartSeconds*time.Second, func(ctx context.Context) error {
		for _, d := range s.daemons {
			lacks, err := d.lacks(ctx)
			if err == nil && len(lacks) == 0 {
				err = fmt.Errorf("%s is ready without engines", d.name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	for i := range engines {
		err = errors.Join(err, engines[(i+f.number)%len(engines)].Start())
	}
	return err
}

// poison sends what no worker can read.
func (s *Site) poison(ctx context.Context, r *round, f *fault) error {
	bodies := []string{"", "{}", "not JSON", `{"v":99}`, `{"v":1,"batch_id":"1","sale_id":"none","epoch":1,"orders":[]}`, "\xff\xfe"}
	body := bodies[f.number%len(bodies)]
	// One of no sale: well formed, and at fault all the same.
	if f.number%2 == 1 {
		body = fmt.Sprintf(`{"v":1,"batch_id":"%d","sale_id":"no-such-sale","epoch":1,"orders":[{"order_id":"1","user_id":"u","request_key":"","quantity":1,"amount_cents":1,"created_ms":%d}]}`,
			time.Now().UnixNano(), int64(1_735_689_600_000))
	}
	err := s.rig.Send(ctx, topic, f.number, []byte(body))
	if err == nil {
		r.poisoned.Add(1)
		return nil
	}
	r.note("%s: not sent: %v", f, err)
	r.maybePoisoned.Add(1)
	return nil
}

// resend sends a batch that is in the ledger once more: late, and out of order.
func (s *Site) resend(ctx context.Context, r *round, f *fault) error {
	body, err := s.anyBatch(ctx, r)
	if err != nil || body == nil {
		r.note("%s: nothing to send: %v", f, err)
		return nil
	}
	for range 2 {
		if err := s.rig.Send(ctx, topic, f.number, body); err != nil {
			r.note("%s: not sent: %v", f, err)
			return nil
		}
	}
	return nil
}

// anyBatch is the message of a batch of the round that the ledger has; nil: there is none.
func (s *Site) anyBatch(ctx context.Context, r *round) ([]byte, error) {
	type order struct {
		OrderID     string `json:"order_id"`
		UserID      string `json:"user_id"`
		RequestKey  string `json:"request_key"`
		Quantity    int    `json:"quantity"`
		AmountCents int64  `json:"amount_cents"`
		CreatedMS   int64  `json:"created_ms"`
	}
	for _, o := range r.offers {
		var batch int64
		var orders []order
		err := s.rows(ctx, func(r *sql.Rows) error {
			var id int64
			var e order
			err := r.Scan(&batch, &id, &e.UserID, &e.RequestKey, &e.Quantity, &e.AmountCents)
			e.OrderID, e.CreatedMS = strconv.FormatInt(id, 10), id>>22+1_735_689_600_000
			orders = append(orders, e)
			return err
		}, `SELECT batch_id, id, user_id, request_key, quantity, amount_cents FROM orders
			WHERE batch_id = (SELECT MIN(batch_id) FROM orders WHERE sale_id = ?) ORDER BY id`, o.id)
		if err != nil {
			return nil, err
		}
		if len(orders) > 0 {
			return json.Marshal(map[string]any{
				"v": 1, "batch_id": strconv.FormatInt(batch, 10), "sale_id": o.id, "epoch": 1, "orders": orders,
			})
		}
	}
	return nil, nil
}

// restock is an operator's: a raise that may or may not come through.
func (s *Site) restock(ctx context.Context, r *round, f *fault) error {
	number, err := strconv.Atoi(strings.TrimPrefix(f.target, "offer-"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, restartSeconds*time.Second)
	defer cancel()
	_, err = s.run(ctx, "sale", "restock", r.offers[number].id, "--add", strconv.Itoa(f.number))
	r.note("%s: %v", f, err)
	return nil
}
