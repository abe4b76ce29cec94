// Package simulation plays histories of the purchase protocol, each from a seed, on a
// virtual clock, and checks the invariants of ARCHITECTURE.md at every step and at rest.
//
// In one history a few shoppers want a few units from two or three gateways, ask again
// with their keys, and write down every answer; workers, reconcilers, check-backs and an
// operator do what they do; messages are late, lost or repeated, processes stand still
// and are killed, Redis fails over without the tail that its replica had not got (the old
// master may go on for a while) or loses everything, broker and ledger are away or the
// broker loses a message. Then the faults end, all comes to rest, and every shopper asks
// once more.
//
// What is real: the Lua scripts, run by the interpreter that miniredis uses, and what
// answers a check-back. What is modelled: Redis as the five keys of one sale and a
// replica (TestMemoryIsRedis), internal/stock's calls (TestStockIsCalledAlike), the steps
// of internal/purchase, the gateway's cut-off, worker and reconciler, one engine call at a time, and the
// transactions of the ledger. A rule that changes in one of these changes here as well.
//
// Left out: dead batches, payment, a ledger that is itself replicated, and a broker that
// loses a message in the history in which Redis loses everything: either one restores
// what was promised, without both nothing does.
//
// A breach prints its seed, the invariant and the whole timeline. Bugs lists mistakes that
// can be planted, each of which a test finds; a new rule of the protocol brings its own.
package simulation
