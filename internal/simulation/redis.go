package simulation

import (
	"errors"
	"fmt"
	"strings"
	"time"

	scripts "flashgate/lua"
)

// redis is the master that has the sale, and its replica.
type redis struct {
	w      *world
	master *memory
	// tail is what the master held after each write that the replica has not
	// acknowledged: after a failover any of these is what is left. tail[0], at offset
	// base, is what the replica has for certain.
	tail    []*memory
	base    int
	replica bool // one is connected
	// generation counts the masters: an acknowledgement of an earlier one's replica is
	// worth nothing, and its connections are gone.
	generation int
	downUntil  time.Duration
	// stale is the old master after a failover, to which some processes still talk.
	stale *memory
	// sure is since when what was written is not lost any more.
	sure time.Duration
}

const (
	callTimeout = time.Second
	waitTimeout = 500 * time.Millisecond
)

// Errors of Redis beyond those of a call.
var (
	errNotReady      = errors.New("the sale is not loaded")
	errNotReplicated = errors.New("replicas did not acknowledge in time")
	errBatchKnown    = errors.New("batch id is known already")
)

func newRedis(w *world) *redis {
	r := &redis{w: w, master: &memory{process: "process1"}, replica: true}
	r.synced()
	return r
}

// synced makes the master's present state the one that the replica has.
func (r *redis) synced() {
	r.base += len(r.tail)
	r.tail = append(r.tail[:0], r.master.clone())
}

// wrote notes that the master has changed, by one script or command.
func (r *redis) wrote() {
	if r.w.plan.failsOver() {
		r.tail = append(r.tail, r.master.clone())
	}
	r.w.checkRedis()
}

// acknowledge notes that the replica has what the master had at an offset.
func (r *redis) acknowledge(offset int) {
	if known := offset - r.base; known > 0 {
		r.tail = append(r.tail[:0], r.tail[known:]...)
		r.base = offset
	}
}

// serve runs op on a node. With replicated it replies when the replica has what op
// wrote, or says that it does not in time. Like WAIT it vouches for writes: of what
// only read it says nothing.
func (r *redis) serve(stale, replicated bool, op func(*memory) error, reply func(error)) {
	w := r.w
	if w.now < r.downUntil {
		if w.coin() {
			reply(errNotRun)
		}
		return
	}
	m, old := r.master, stale && r.stale != nil
	if old {
		m = r.stale
	}
	before := m.writes
	err := op(m)
	wrote := m.writes > before
	if wrote && !old {
		r.wrote()
	}
	if err != nil || !replicated || !wrote || w.plan.unreplicated || w.faulty.noWait {
		reply(err)
		return
	}
	if old || !r.replica {
		w.after(waitTimeout, func() { reply(errNotReplicated) })
		return
	}
	offset, generation := r.base+len(r.tail)-1, r.generation
	acknowledged := func() bool {
		if r.generation != generation || !r.replica {
			return false
		}
		r.acknowledge(offset)
		return true
	}
	if lag := w.lag(); lag <= waitTimeout {
		w.after(lag, func() {
			if acknowledged() {
				reply(nil)
			}
		})
	} else {
		w.after(waitTimeout, func() { reply(errNotReplicated) })
		w.after(lag, func() { acknowledged() })
	}
}

// lag is how long a replica takes to have a write.
func (w *world) lag() time.Duration {
	if !w.resting && w.rng.IntN(1000) < 2*w.plan.lossPerMille {
		return time.Duration(w.rng.Int64N(int64(2 * time.Second)))
	}
	return time.Duration(w.rng.IntN(2_000)) * time.Microsecond
}

// failOver makes the replica the master. What it had not got yet is lost, and for a
// while some processes still talk to the old master.
func (r *redis) failOver() {
	w := r.w
	if !r.replica {
		return
	}
	kept := len(r.tail) - 1
	if w.rng.IntN(4) > 0 {
		kept = w.rng.IntN(len(r.tail))
	}
	w.note("FAILOVER: the replica has all but the last %d writes", len(r.tail)-1-kept)
	old := r.master
	r.master = r.tail[kept].clone()
	r.generation++
	r.master.process = fmt.Sprintf("process%d", r.generation+1)
	r.replica = false
	r.sure = w.now
	r.synced()
	down := 3 * time.Second
	if w.coin() {
		down = 10 * time.Millisecond
	}
	r.downUntil = w.now + time.Duration(w.rng.Int64N(int64(down)))
	if w.coin() {
		r.stale = old
		w.note("the old master goes on for a while")
		for _, p := range w.processes {
			p.stale = w.coin()
		}
		generation := r.generation
		w.after(time.Duration(w.rng.Int64N(int64(5*time.Second))), func() {
			if r.generation == generation && r.stale != nil {
				r.stale, r.sure = nil, w.now
				w.note("the old master is a replica now")
			}
		})
	}
	w.after(time.Duration(w.rng.Int64N(int64(10*time.Second))), func() {
		r.replica = true
		if r.stale != nil {
			r.stale, r.sure = nil, w.now
		}
		r.synced()
		w.note("the new master has a replica")
	})
}

// loseAll empties master and replica.
func (r *redis) loseAll() {
	r.w.note("TOTAL LOSS of Redis")
	r.master = &memory{process: r.master.process}
	r.stale, r.sure = nil, r.w.now
	r.generation++
	r.synced()
	r.w.lostAll()
}

// keysOf is which keys each script gets, as its header says.
var keysOf = func() map[string][]string {
	keys := make(map[string][]string)
	for _, name := range scripts.Names() {
		_, after, found := strings.Cut(scripts.File(name), "-- KEYS")
		if !found {
			panic("BUG: script without KEYS: " + name)
		}
		line, _, _ := strings.Cut(after, "\n")
		keys[name] = strings.Fields(line)
	}
	return keys
}()

// script runs a script on Redis, and, replicated, has the replica confirm it.
func (t *task) script(replicated bool, name string, args ...string) (value, error) {
	timeout := callTimeout
	if replicated {
		timeout += waitTimeout
	}
	w := t.w
	var result value
	stale := t.p.stale
	err := t.call(timeout, func(reply func(error)) {
		var found value
		w.redis.serve(stale, replicated, func(m *memory) (err error) {
			found, err = w.scripts.run(m, w.clock().UnixMicro(), name, keysOf[name], args)
			w.noteScript(t, m, name, args, found, err)
			return err
		}, func(err error) {
			result = found
			reply(err)
		})
	})
	if err == nil && notLoaded(result) {
		err = errNotReady
	}
	return result, err
}

// notLoaded reports whether a reply is, or begins with, NOT_READY, or LEASED, which
// whoever asked does not wait for here. snapshot, which says so of no error, is not asked.
func notLoaded(v value) bool {
	if list, ok := v.([]any); ok && len(list) == 1 {
		v = list[0]
	}
	return v == int64(-1) || v == int64(-2)
}

// read reads the keys of the sale without a script.
func (t *task) read(op func(*memory)) error {
	w, stale := t.w, t.p.stale
	var result func()
	err := t.call(callTimeout, func(reply func(error)) {
		w.redis.serve(stale, false, func(m *memory) error {
			c := m.clone()
			result = func() { op(c) }
			return nil
		}, reply)
	})
	if err == nil {
		result()
	}
	return err
}

func malformed(what string, v value) error { return fmt.Errorf("%s: malformed reply %v", what, v) }
