package sale

import (
	"encoding/binary"
	"errors"
	"strconv"
	"sync/atomic"
	"time"
)

// ID names an order or a batch: 63 bits, in time order.
//
//	41 bits  milliseconds since 2025-01-01 UTC (to 2094)
//	10 bits  the gateway's leased node number
//	 6 bits  the user's shard
//	 6 bits  sequence within (millisecond, node, shard)
//
// In JSON, tables and messages it is a decimal string or integer; in Redis
// records it is 8 bytes, big-endian.
type ID int64

const (
	sequenceBits = 6
	shardBits    = 6
	nodeBits     = 10

	// Shards is the number of user shards an id can carry.
	Shards = 1 << shardBits
	// Nodes is the number of gateways that can make ids at one time.
	Nodes = 1 << nodeBits
)

// idEpochMillis is 2025-01-01T00:00:00Z in Unix milliseconds.
const idEpochMillis = 1_735_689_600_000

// ErrBadID is returned for a string that is no id.
var ErrBadID = errors.New("not an id: want a decimal number of 1–19 digits")

// ParseID reads the decimal form.
func ParseID(s string) (ID, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, ErrBadID
	}
	return ID(n), nil
}

// String is the decimal form.
func (id ID) String() string { return strconv.FormatInt(int64(id), 10) }

// MarshalJSON writes a decimal string: 64-bit integers do not survive JavaScript.
func (id ID) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 22)
	b = append(b, '"')
	b = strconv.AppendInt(b, int64(id), 10)
	return append(b, '"'), nil
}

// UnmarshalJSON reads a decimal string.
func (id *ID) UnmarshalJSON(b []byte) error {
	if len(b) < 3 || b[0] != '"' || b[len(b)-1] != '"' {
		return ErrBadID
	}
	n, err := ParseID(string(b[1 : len(b)-1]))
	*id = n
	return err
}

// AppendBinary appends the 8-byte form that Redis records hold.
func (id ID) AppendBinary(b []byte) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(id))
}

// IDFromBinary reads the 8-byte form; b must hold at least 8 bytes.
func IDFromBinary(b string) ID {
	return ID(binary.BigEndian.Uint64([]byte(b[:8])))
}

// Time is when the id was made, to the millisecond, in UTC.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(id)>>(nodeBits+shardBits+sequenceBits) + idEpochMillis).UTC()
}

// Node is the number of the gateway that made the id.
func (id ID) Node() int { return int(id>>(shardBits+sequenceBits)) & (Nodes - 1) }

// Shard is the shard of the user the id was made for.
func (id ID) Shard() int { return int(id>>sequenceBits) & (Shards - 1) }

// FirstIDAt is the smallest id made at or after t: a bound for "older than".
func FirstIDAt(t time.Time) ID {
	ms := t.UnixMilli() - idEpochMillis
	if ms < 0 {
		ms = 0
	}
	return ID(ms << (nodeBits + shardBits + sequenceBits))
}

// ShardOf is a user's shard, the same in every process: FNV-1a, folded.
func ShardOf(user string) int {
	h := uint64(14695981039346656037)
	for i := 0; i < len(user); i++ {
		h = (h ^ uint64(user[i])) * 1099511628211
	}
	return int((h ^ h>>32) & (Shards - 1))
}

// IDs makes ids for one node number. It never makes the same one twice: within a
// shard each id is greater than the last, even when the clock stands still, goes
// back, or more than 64 are asked for in a millisecond (it then runs ahead).
type IDs struct {
	node   atomic.Int64
	now    func() time.Time
	shards [Shards]struct {
		last atomic.Int64 // milliseconds and sequence of the last id
		_    [56]byte     // a cache line a shard
	}
}

// NewIDs makes a source of ids for a node number, 0 ≤ node < Nodes, on a clock.
func NewIDs(node int, now func() time.Time) *IDs {
	g := &IDs{now: now}
	g.SetNode(node)
	return g
}

// SetNode moves the source to another node number, when a lease has changed.
func (g *IDs) SetNode(node int) {
	if node < 0 || node >= Nodes {
		panic("BUG: node number out of range: " + strconv.Itoa(node))
	}
	g.node.Store(int64(node))
}

// Next makes an id in a user's shard.
func (g *IDs) Next(shard int) ID {
	last := &g.shards[shard&(Shards-1)].last
	for {
		old := last.Load()
		next := (g.now().UnixMilli() - idEpochMillis) << sequenceBits
		if next <= old {
			next = old + 1
		}
		if last.CompareAndSwap(old, next) {
			ms, seq := ID(next>>sequenceBits), ID(next&(1<<sequenceBits-1))
			return ms<<(nodeBits+shardBits+sequenceBits) | ID(g.node.Load())<<(shardBits+sequenceBits) |
				ID(shard&(Shards-1))<<sequenceBits | seq
		}
	}
}
