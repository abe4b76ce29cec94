package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"flashgate/internal/failpoint"
)

// fault is one thing that goes wrong in a round.
type fault struct {
	kind   string
	target string
	detail string        // what of it, such as a failpoint
	at     time.Duration // after the round's beginning
	lasts  time.Duration // until it is healed
	// What the kinds need of the seed beyond these.
	point  failpoint.Point
	action string
	number int
}

func (f *fault) String() string {
	text := f.kind
	if f.target != "" {
		text += " " + f.target
	}
	if f.detail != "" {
		text += " (" + f.detail + ")"
	}
	return text
}

// Bounds of a round's faults.
const (
	maxFaults         = 5
	firstFaultMillis  = 300
	lastFaultMillis   = 7_500
	shortestMillis    = 200
	longestMillis     = 5_000
	failoverMillis    = 3_500 // a replica takes over after the cluster's 3 s
	holdMaxMillis     = 6_000
	tailMinMillis     = 200   // a replica whose replication was cut for so long,
	tailMillis        = 1_800 // and up to so much longer: below the cluster's 3 s
	clockMaxSeconds   = 900
	latencyMaxMillis  = 900
	slowestKBPerSec   = 2
	resetAfterMillis  = 200
	restockMaxUnits   = 20
	plannedTriesOfOne = 20
)

// kind is a sort of fault: how likely it is beside others, and what a seed decides of it.
type kind struct {
	name   string
	weight int
	draw   func(r *rand.Rand, f *fault)
}

// Targets of kinds.
var (
	daemonNames = []string{"gateway-0", "gateway-1", "worker-0", "worker-1", "reconciler-0", "reconciler-1"}
	storeNames  = []string{"broker", "namesrv", "mariadb"}
	linkNames   = []string{"gateway-0", "gateway-1", "broker", "namesrv", "mariadb", "owner-0", "owner-1", "owner-bus-0"}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func millis(r *rand.Rand, from, to int) time.Duration {
	return time.Duration(from+r.IntN(to-from)) * time.Millisecond
}

// gatewayPoints and the like: where a daemon of that role can be ended or held.
var points = map[string][]failpoint.Point{
	"gateway":    {failpoint.AfterReserve, failpoint.AfterHalf, failpoint.AfterConfirm, failpoint.BeforeCommit, failpoint.AfterCommit},
	"worker":     {failpoint.AfterApply, failpoint.AfterSettle},
	"reconciler": {failpoint.AfterStep, failpoint.AfterHelp, failpoint.AfterRepair},
}

// kinds are all sorts of fault. "owner-N" is the Redis master that has offer N when the
// fault begins, "replica-N" its replica.
var kinds = []kind{
	{"kill", 5, func(r *rand.Rand, f *fault) { f.target = pick(r, daemonNames) }},
	{"stop", 4, func(r *rand.Rand, f *fault) { f.target = pick(r, daemonNames) }},
	{"restart", 2, func(r *rand.Rand, f *fault) { f.target = pick(r, daemonNames) }},
	{"failpoint", 8, func(r *rand.Rand, f *fault) {
		f.target = pick(r, daemonNames)
		f.point = pick(r, points[f.target[:strings.IndexByte(f.target, '-')]])
		f.action = failpoint.Kill
		if r.IntN(3) == 0 {
			f.action = millis(r, shortestMillis, holdMaxMillis).String()
		}
		f.detail = string(f.point) + ": " + f.action
	}},
	{"engine-kill", 4, func(r *rand.Rand, f *fault) { f.target = pick(r, storeNames) }},
	{"engine-stop", 3, func(r *rand.Rand, f *fault) {
		f.target = pick(r, append([]string{"owner-0", "owner-1", "replica-0", "replica-1"}, storeNames...))
	}},
	{"replica-kill", 1, func(r *rand.Rand, f *fault) { f.target = pick(r, []string{"replica-0", "replica-1"}) }},
	{"failover", 5, func(r *rand.Rand, f *fault) {
		f.target = pick(r, []string{"owner-0", "owner-1"})
		f.lasts = millis(r, failoverMillis, longestMillis+failoverMillis)
	}},
	{"lost-tail", 2, func(r *rand.Rand, f *fault) {
		f.target, f.number = pick(r, []string{"owner-0", "owner-1"}), tailMinMillis+r.IntN(tailMillis)
		f.lasts = millis(r, failoverMillis, longestMillis+failoverMillis)
		f.detail = fmt.Sprintf("of %d ms", f.number)
	}},
	{"flush", 2, func(r *rand.Rand, f *fault) {
		f.target, f.lasts = pick(r, []string{"owner-0", "owner-1"}), time.Second // it is done at once
	}},
	{"wipe", 1, func(r *rand.Rand, f *fault) { f.target = pick(r, []string{"owner-0", "owner-1"}) }},
	{"cut", 2, func(r *rand.Rand, f *fault) { f.target = "link " + pick(r, linkNames) }},
	{"delay", 2, func(r *rand.Rand, f *fault) {
		f.target, f.number = "link "+pick(r, linkNames), 20+r.IntN(latencyMaxMillis)
		f.detail = fmt.Sprintf("%d ms", f.number)
	}},
	{"half-open", 2, func(r *rand.Rand, f *fault) { f.target = "link " + pick(r, linkNames) }},
	{"throttle", 1, func(r *rand.Rand, f *fault) {
		f.target, f.number = "link "+pick(r, linkNames), slowestKBPerSec+r.IntN(10)
		f.detail = fmt.Sprintf("%d KB/s", f.number)
	}},
	{"reset", 1, func(r *rand.Rand, f *fault) { f.target = "link " + pick(r, linkNames) }},
	{"clock", 2, func(r *rand.Rand, f *fault) {
		f.target, f.number = pick(r, daemonNames[:2]), r.IntN(2*clockMaxSeconds)-clockMaxSeconds
		f.detail = fmt.Sprintf("%+d s", f.number)
	}},
	{"blackout", 1, func(r *rand.Rand, f *fault) { f.target, f.number = everything, r.IntN(enginesOfASite) }},
	{"poison", 1, func(r *rand.Rand, f *fault) { f.target, f.number = "topic", r.IntN(topicQueues) }},
	{"resend", 2, func(r *rand.Rand, f *fault) { f.target, f.number = "topic", r.IntN(topicQueues) }},
	{"restock", 1, func(r *rand.Rand, f *fault) {
		f.target, f.number = "offer-"+pick(r, []string{"0", "1"}), 1+r.IntN(restockMaxUnits)
		f.detail = fmt.Sprintf("%+d", f.number)
	}},
}

// combinations are faults that meet on purpose: what one of them leaves half done, the
// other makes matter. at and lasts are of the first's beginning.
var combinations = [][]fault{
	// A worker that is told to stop, or dies, with a transaction that cannot commit.
	{{kind: "engine-stop", target: "mariadb", lasts: 7 * time.Second}, {kind: "restart", target: "worker-0", at: 6 * time.Second}, {kind: "kill", target: "worker-1", at: 6 * time.Second}},
	{{kind: "engine-stop", target: "mariadb", lasts: 7 * time.Second}, {kind: "restart", target: "worker-1", at: 5 * time.Second}, {kind: "failpoint", target: "worker-0", point: failpoint.AfterApply, action: failpoint.Kill, at: time.Second}},
	// A gateway that dies between two steps while the one that knows is away.
	{{kind: "failpoint", target: "gateway-0", point: failpoint.AfterHalf, action: failpoint.Kill}, {kind: "failover", target: "owner-1", at: time.Second, lasts: 5 * time.Second}},
	{{kind: "failpoint", target: "gateway-1", point: failpoint.AfterConfirm, action: failpoint.Kill}, {kind: "failover", target: "owner-1", at: 500 * time.Millisecond, lasts: 5 * time.Second}},
	{{kind: "failpoint", target: "gateway-0", point: failpoint.BeforeCommit, action: failpoint.Kill}, {kind: "engine-kill", target: "broker", at: 500 * time.Millisecond, lasts: time.Second}},
	{{kind: "failpoint", target: "gateway-1", point: failpoint.AfterHalf, action: failpoint.Kill}, {kind: "engine-kill", target: "broker", at: 300 * time.Millisecond, lasts: time.Second}},
	// Nobody sweeps while gateways leave reservations behind.
	{{kind: "kill", target: "reconciler-0", lasts: 6 * time.Second}, {kind: "kill", target: "reconciler-1", lasts: 6 * time.Second}, {kind: "failpoint", target: "gateway-0", point: failpoint.AfterReserve, action: failpoint.Kill}},
	// A gateway that stands still for longer than its reservation lasts.
	{{kind: "failpoint", target: "gateway-0", point: failpoint.AfterHalf, action: "7s", lasts: 2 * time.Second}, {kind: "stop", target: "gateway-1", lasts: 7 * time.Second}},
	{{kind: "failpoint", target: "gateway-0", point: failpoint.AfterReserve, action: "7s", lasts: 2 * time.Second}, {kind: "delay", target: "link owner-1", number: 300, lasts: 4 * time.Second}},
	// Half messages whose batches were given up, and nobody to ask when the broker does.
	{{kind: "engine-stop", target: "broker", lasts: 4 * time.Second}, {kind: "failover", target: "owner-1", at: 3500 * time.Millisecond, lasts: 6 * time.Second}},
	{{kind: "half-open", target: "link broker", lasts: 3 * time.Second}, {kind: "failover", target: "owner-1", at: 2500 * time.Millisecond, lasts: 6 * time.Second}},
	// Promised, not yet committed, and unknown to the replica that takes over: nobody may be
	// told yes of such a batch.
	{{kind: "lost-tail", target: "owner-1", number: 1500, lasts: 5 * time.Second}, {kind: "failpoint", target: "gateway-0", point: failpoint.BeforeCommit, action: answeredAndKilled, at: 300 * time.Millisecond, lasts: 2 * time.Second}, {kind: "failpoint", target: "gateway-1", point: failpoint.BeforeCommit, action: answeredAndKilled, at: 300 * time.Millisecond, lasts: 2 * time.Second}},
	// Delivered to workers who cannot persist it and then die, and forgotten by Redis: the
	// broker must have it still.
	{{kind: "engine-stop", target: "mariadb", lasts: 8 * time.Second}, {kind: "kill", target: "worker-0", at: 4 * time.Second, lasts: 3 * time.Second}, {kind: "kill", target: "worker-1", at: 4 * time.Second, lasts: 3 * time.Second}, {kind: "flush", target: "owner-1", at: 5 * time.Second, lasts: time.Second}},
	// Persisted and not settled, and Redis fails over.
	{{kind: "failpoint", target: "worker-0", point: failpoint.AfterApply, action: failpoint.Kill}, {kind: "failpoint", target: "worker-1", point: failpoint.AfterApply, action: failpoint.Kill}, {kind: "failover", target: "owner-1", at: 500 * time.Millisecond, lasts: 5 * time.Second}},
	// Redis loses all, and who rebuilds it dies on the way, at each of its steps.
	rebuild(failpoint.AfterEpoch),
	rebuild(failpoint.AfterOrders),
	rebuild(failpoint.AfterBus),
	// All is lost while what was promised stands on the bus alone, or half of it.
	{{kind: "kill", target: "worker-0", lasts: 6 * time.Second}, {kind: "kill", target: "worker-1", lasts: 6 * time.Second}, {kind: "flush", target: "owner-1", lasts: time.Second, at: time.Second}},
	{{kind: "failpoint", target: "gateway-0", point: failpoint.BeforeCommit, action: failpoint.Kill}, {kind: "failpoint", target: "gateway-1", point: failpoint.AfterHalf, action: failpoint.Kill}, {kind: "flush", target: "owner-1", lasts: time.Second, at: time.Second}},
	{{kind: "engine-stop", target: "broker", lasts: 3 * time.Second}, {kind: "flush", target: "owner-1", lasts: time.Second, at: 2 * time.Second}},
	{{kind: "engine-kill", target: "mariadb", lasts: 6 * time.Second}, {kind: "wipe", target: "owner-1", at: 2 * time.Second, lasts: time.Second}},
	// It is lost again while it is rebuilt.
	{{kind: "flush", target: "owner-1", lasts: time.Second}, {kind: "failover", target: "owner-1", at: 5 * time.Second, lasts: 5 * time.Second}},
	{{kind: "flush", target: "owner-1", lasts: time.Second}, {kind: "flush", target: "owner-1", lasts: time.Second, at: 6 * time.Second}},
}

// rebuild is a combination in which each reconciler dies at a step of a rebuild, the one
// after the other.
func rebuild(p failpoint.Point) []fault {
	return []fault{
		{kind: "failpoint", target: "reconciler-0", point: p, action: failpoint.Kill, lasts: 15 * time.Second},
		{kind: "failpoint", target: "reconciler-1", point: p, action: failpoint.Kill, lasts: 15 * time.Second},
		{kind: "flush", target: "owner-1", lasts: time.Second, at: 300 * time.Millisecond},
	}
}

// answeredAndKilled ends a gateway a moment after a point: what it has answered by then
// has left.
const answeredAndKilled = failpoint.Kill + " after 50ms"

// combine draws a combination of the kinds in only, unless that is empty, beginning at
// some time; nil: there is none.
func combine(r *rand.Rand, only []string) []*fault {
	var from [][]fault
	for _, c := range combinations {
		if len(only) == 0 || !slices.ContainsFunc(c, func(f fault) bool { return !slices.Contains(only, f.kind) }) {
			from = append(from, c)
		}
	}
	if len(from) == 0 {
		return nil
	}
	at := millis(r, firstFaultMillis, lastFaultMillis/2)
	var faults []*fault
	for _, f := range pick(r, from) {
		f.at += at
		if f.lasts == 0 {
			f.lasts = millis(r, shortestMillis, longestMillis)
		}
		if f.kind == "failpoint" {
			f.detail = string(f.point) + ": " + f.action
		}
		faults = append(faults, &f)
	}
	return faults
}

// plan draws the faults of a round: some alone, most overlapping. only, unless empty,
// are the kinds to draw from.
func plan(seed uint64, only []string) ([]*fault, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	var from []kind
	weights := 0
	for _, k := range kinds {
		if len(only) == 0 || slices.Contains(only, k.name) {
			from = append(from, k)
			weights += k.weight
		}
	}
	if len(from) == 0 {
		return nil, fmt.Errorf("no kind of fault is called %s", strings.Join(only, " or "))
	}
	var faults []*fault
	n := 1 + r.IntN(maxFaults)
	if r.IntN(2) == 0 {
		faults = combine(r, only)
		n += max(0, len(faults)-1)
	}
	for range n * plannedTriesOfOne {
		if len(faults) == n {
			break
		}
		w := r.IntN(weights)
		i := 0
		for ; w >= from[i].weight; i++ {
			w -= from[i].weight
		}
		f := &fault{
			kind: from[i].name, at: millis(r, firstFaultMillis, lastFaultMillis),
			lasts: millis(r, shortestMillis, longestMillis),
		}
		from[i].draw(r, f)
		if !slices.ContainsFunc(faults, f.clashes) {
			faults = append(faults, f)
		}
	}
	slices.SortStableFunc(faults, func(a, b *fault) int { return int(a.at - b.at) })
	return faults, nil
}

// everything is the target of a fault that leaves no process alone.
const everything = "everything"

// clashes reports whether two faults would meddle with one another: the same process,
// or two with Redis, which is made to bear the loss of one node of a shard, not of both.
func (f *fault) clashes(other *fault) bool {
	if f.target == everything || other.target == everything {
		return true
	}
	if f.at > other.at+other.lasts+settleBetween || other.at > f.at+f.lasts+settleBetween {
		return false
	}
	return f.thing() == other.thing()
}

// settleBetween is what one fault of a thing is given to be over before the next.
const settleBetween = 3 * time.Second

// thing is what a fault is about.
func (f *fault) thing() string {
	target := strings.TrimPrefix(f.target, "link ")
	if strings.HasPrefix(target, "owner") || strings.HasPrefix(target, "replica") {
		return "redis"
	}
	if f.kind == "poison" || f.kind == "resend" {
		return f.kind // as often as one likes
	}
	return target
}
