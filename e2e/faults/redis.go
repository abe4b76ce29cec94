package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"flashgate/internal/rig"
)

// flush empties a master, and with it its replica.
func (s *Site) flush(ctx context.Context, r *round, target string) error {
	if err := s.noteLoss(ctx, r, target); err != nil {
		return err
	}
	err := withNode(ctx, s.engine(target).Addr, func(ctx context.Context, c rueidis.Client) error {
		return c.Do(ctx, c.B().Flushall().Build()).Error()
	})
	if err != nil {
		r.note("flush %s: %v", target, err) // another fault has it: then it may have happened, or not
	}
	return nil
}

// wipe is the loss of a shard: both processes of it, and what they have on disk, but for
// their place in the cluster.
func (s *Site) wipe(ctx context.Context, r *round, target string, wait func()) error {
	if err := s.noteLoss(ctx, r, target); err != nil {
		return err
	}
	replica, err := s.replicaOf(ctx, target)
	if err != nil {
		return err
	}
	pair := []*rig.Process{s.engine(target), replica}
	for _, p := range pair {
		if err := p.Kill(ctx); err != nil {
			return err
		}
		home := filepath.Dir(p.PIDFile)
		for _, data := range []string{"appendonlydir", "dump.rdb"} {
			if err := os.RemoveAll(filepath.Join(home, data)); err != nil {
				return err
			}
		}
	}
	wait()
	return errors.Join(pair[0].Start(), pair[1].Start())
}

// noteLoss notes that the sales of a master are about to lose what Redis knows of them.
func (s *Site) noteLoss(ctx context.Context, r *round, target string) error {
	for _, o := range r.offers {
		node, err := s.owner(ctx, o.id)
		if err != nil {
			return err
		}
		if fmt.Sprintf("redis-%d", node) == target {
			r.loses(o)
		}
	}
	return nil
}

// loseTail is a failover to a replica that has not got what the master did last: its
// replication was cut, and it has a password that the master takes for none, so that it
// can't begin again. (A replica that only stands still finds what it lacks in its
// socket.)
func (s *Site) loseTail(ctx context.Context, r *round, f *fault, target string) error {
	master := s.engine(target)
	replica, err := s.replicaOf(ctx, target)
	if err != nil {
		return err
	}
	whole := context.WithoutCancel(ctx)
	ask := func(p *rig.Process, command ...string) error {
		return await(whole, restartSeconds*time.Second, func(ctx context.Context) error {
			return withNode(ctx, p.Addr, func(ctx context.Context, c rueidis.Client) error {
				return c.Do(ctx, c.B().Arbitrary(command...).Build()).Error()
			})
		})
	}
	if err := ask(replica, "CONFIG", "SET", "masterauth", "none"); err != nil {
		return err
	}
	err = ask(master, "CLIENT", "KILL", "TYPE", "replica")
	r.note("%s: replication is cut", f)
	pause(ctx, time.Duration(f.number)*time.Millisecond)
	err = errors.Join(err, master.Kill(whole))
	r.note("%s: the master is dead", f)
	pause(ctx, f.lasts)
	return errors.Join(err, ask(replica, "CONFIG", "SET", "masterauth", ""), master.Start())
}

// nodeSeconds bounds one question to a node: one that is stopped does not answer.
const nodeSeconds = 1

// node is a line of CLUSTER NODES.
type node struct {
	id, master string // the master's id, of a replica
	number     int
	failed     bool
	slots      []string // from-to, of a master
}

// nodes asks any node of the cluster how it sees all of them.
func (s *Site) nodes(ctx context.Context) ([]node, error) {
	var failures []error
	for _, p := range s.redis {
		text, err := askNode(ctx, p.Addr)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		var all []node
		// The client leaves what kind of text it is in front of it.
		for line := range strings.Lines(strings.TrimPrefix(text, "txt:")) {
			// id address@bus flags master ping pong epoch state slot…
			fields := strings.Fields(line)
			if len(fields) < 8 {
				return nil, fmt.Errorf("CLUSTER NODES: %q", line)
			}
			address, _, _ := strings.Cut(fields[1], "@")
			_, port, _ := strings.Cut(address, ":")
			n, err := strconv.Atoi(port)
			if err != nil {
				return nil, fmt.Errorf("CLUSTER NODES: %q", line)
			}
			all = append(all, node{
				id: fields[0], master: strings.TrimPrefix(fields[3], "-"), number: n - s.ports.Redis,
				failed: strings.Contains(fields[2], "fail"), slots: fields[8:],
			})
		}
		return all, nil
	}
	return nil, errors.Join(failures...)
}

func askNode(ctx context.Context, address string) (text string, err error) {
	err = withNode(ctx, address, func(ctx context.Context, c rueidis.Client) error {
		text, err = c.Do(ctx, c.B().ClusterNodes().Build()).ToString()
		return err
	})
	return text, err
}

// withNode talks to one node.
func withNode(ctx context.Context, address string, do func(context.Context, rueidis.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, nodeSeconds*time.Second)
	defer cancel()
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{address}, ForceSingleClient: true, DisableCache: true, DisableRetry: true,
		Dialer: net.Dialer{Timeout: time.Second},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	return do(ctx, c)
}

// owner is the number of the node that is master of a sale's slot.
func (s *Site) owner(ctx context.Context, sale string) (int, error) {
	all, err := s.nodes(ctx)
	if err != nil {
		return 0, err
	}
	slot := slotOf(sale)
	for _, n := range all {
		if n.failed {
			continue
		}
		for _, slots := range n.slots {
			from, to, ranged := strings.Cut(slots, "-")
			if !ranged {
				to = from
			}
			first, err1 := strconv.Atoi(from)
			last, err2 := strconv.Atoi(to)
			if err1 == nil && err2 == nil && first <= slot && slot <= last {
				return n.number, nil
			}
		}
	}
	return 0, fmt.Errorf("no master has slot %d of sale %s: %+v", slot, sale, all)
}

// replicaOf is the process of a master's replica, which may have to join it first.
func (s *Site) replicaOf(ctx context.Context, master string) (p *rig.Process, err error) {
	err = await(ctx, restartSeconds*time.Second, func(ctx context.Context) error {
		p, err = s.findReplica(ctx, master)
		return err
	})
	return p, err
}

func (s *Site) findReplica(ctx context.Context, master string) (*rig.Process, error) {
	all, err := s.nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if fmt.Sprintf("redis-%d", m.number) != master {
			continue
		}
		for _, n := range all {
			if n.master == m.id {
				return s.redis[n.number], nil
			}
		}
	}
	return nil, fmt.Errorf("%s has no replica: %+v", master, all)
}

// slotOf is the cluster's slot of a sale's hash tag: CRC16 (XMODEM) modulo the slots.
func slotOf(tag string) int {
	const slots, polynomial = 16384, 0x1021
	var crc uint16
	for _, b := range []byte(tag) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ polynomial
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % slots
}
