// Package failpoint lets a test end or hold a process at a named point of its work, and
// move its clock. Only binaries built with `-tags failpoints` can do so; in every other
// build the calls are empty and leave nothing behind.
//
// A test arms a point of one process by a file of the point's name in the directory
// that FLASHGATE_FAILPOINTS names for that process. Whoever passes the point next takes
// the file away and does what it says: "kill" (as kill -9 does), a duration, for which
// that goroutine stands still, or "kill after" a duration, which is the one and then the
// other. The file "clock" holds a duration by which the process's clock is ahead.
package failpoint

// Point names a place in the program.
type Point string

// The points, in the order in which a purchase passes them.
const (
	AfterReserve Point = "after-reserve" // gateway: units are held, no half message yet
	AfterHalf    Point = "after-half"    // gateway: the half message is stored, not confirmed
	AfterConfirm Point = "after-confirm" // gateway: confirmed, nobody told, half message undecided
	BeforeCommit Point = "before-commit" // gateway: the shoppers are told, half message undecided
	AfterCommit  Point = "after-commit"  // gateway: the end of the half message is on its way
	AfterApply   Point = "after-apply"   // worker: in the ledger, not settled in Redis
	AfterSettle  Point = "after-settle"  // worker: settled, not acknowledged to the bus
	AfterStep    Point = "after-step"    // reconciler: between two steps of a round
	AfterEpoch   Point = "after-epoch"   // reconciler: a rebuild has its epoch, nothing read yet
	AfterOrders  Point = "after-orders"  // reconciler: a rebuild has read the ledger's orders, not the bus
	AfterBus     Point = "after-bus"     // reconciler: a rebuild has read the bus, not what is owed
	AfterHelp    Point = "after-help"    // reconciler: promised batches are applied, not settled
	AfterRepair  Point = "after-repair"  // reconciler: differences are repaired, not reported
)

// All lists them.
var All = []Point{
	AfterReserve, AfterHalf, AfterConfirm, BeforeCommit, AfterCommit,
	AfterApply, AfterSettle,
	AfterStep, AfterEpoch, AfterOrders, AfterBus, AfterHelp, AfterRepair,
}

// Kill opens the action of a point that ends its process.
const Kill = "kill"

// EnvDir names the directory of a process's failpoints.
const EnvDir = "FLASHGATE_FAILPOINTS"

// ClockFile is the file that moves the clock.
const ClockFile = "clock"
