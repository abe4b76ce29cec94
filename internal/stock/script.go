package stock

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"flashgate/lua"
)

// script is one of lua/, as it is called here. keys and args repeat the file's header;
// a test compares them.
type script struct {
	name string
	keys []key
	args string
	text string
	sha1 string
}

// scripts are all that are called, by name, for the test of the headers.
var scripts = map[string]*script{}

func newScript(name string, keys []key, args string) *script {
	text := lua.Source(name)
	sum := sha1.Sum([]byte(text)) // what Redis names a script by
	sc := &script{name: name, keys: keys, args: args, text: text, sha1: hex.EncodeToString(sum[:])}
	scripts[name] = sc
	return sc
}

var (
	reserveScript  = newScript("reserve", allKeys, "batch starts_ms ends_ms paused limit hold_ms orders (user record)*")
	confirmScript  = newScript("confirm", allKeys, "batch epoch decide orders")
	releaseScript  = newScript("release", allKeys, "batch epoch decide orders")
	adoptScript    = newScript("adopt", []key{keyStock, keyBuyers, keyBatches, keyMeta}, "batch epoch orders")
	settleScript   = newScript("settle", allKeys, "mode (batch orders)*")
	restoreScript  = newScript("restore", []key{keyStock, keyBuyers, keyMeta}, "batch user entry")
	adjustScript   = newScript("adjust", []key{keyStock, keyMeta}, "total version")
	loadScript     = newScript("load", allKeys, "step epoch number (batch data)*")
	recountScript  = newScript("recount", []key{keyStock, keyBuyers, keyMeta}, "repair max_fields counted fields moves")
	snapshotScript = newScript("snapshot", allKeys, "")
	recordsScript  = newScript("records", []key{keyStock, keyBuyers, keyBatches}, "user*")
	amendScript    = newScript("amend", []key{keyStock, keyBuyers, keyMeta}, "user seen record")
	lookupScript   = newScript("lookup", []key{keyStock, keyBuyers, keyBatches}, "user")
	dueScript      = newScript("due", []key{keyStock, keyPending}, "max")
	purgeScript    = newScript("purge", []key{keyStock, keyBatches}, "age_ms batch*")
	serverScript   = newScript("server", []key{keyStock, keyMeta}, "reconciled")
	soldOutScript  = newScript("soldout", []key{keyStock, keyBuyers, keyMeta}, "lease_ms buyers_max")
	oldestScript   = newScript("oldest", []key{keyStock, keyBatches}, "cursor count")
)

// notReady is what every script but load and snapshot returns of a sale not loaded.
const notReady = -1

// leased is what adopt and settle return while a sold-out lease is held.
const leased = -2

// command is a call of sc: by its hash, or, after Redis said that it doesn't know it,
// by its text, which makes it known. (rueidis.Lua would load it to every node each time
// that it sends several, and has no way to put a WAIT behind it.)
func (s *Store) command(sc *script, byText bool, saleID string, args []string) rueidis.Completed {
	keys := keysOf(saleID, wholeSale, sc.keys...)
	if byText {
		return s.client.B().Eval().Script(sc.text).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
	}
	return s.client.B().Evalsha().Sha1(sc.sha1).Numkeys(int64(len(keys))).Key(keys...).Arg(args...).Build()
}

// run calls a script on the shared connections, where calls are pipelined. The error
// is classified.
func (s *Store) run(ctx context.Context, timeout time.Duration, sc *script, saleID string, args ...string) (rueidis.RedisMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return rueidis.RedisMessage{}, fmt.Errorf("%w: %s: %w", ErrNotRun, sc.name, err)
	}
	began := time.Now()
	result := s.client.Do(ctx, s.command(sc, false, saleID, args))
	if isNoScript(result.Error()) {
		result = s.client.Do(ctx, s.command(sc, true, saleID, args))
	}
	reply, err := result.ToMessage()
	s.metrics.called(sc, began, err)
	if err != nil {
		return reply, classify(sc.name, err)
	}
	return reply, nil
}

// runReady is run for a script that answers {code, ...}, or {-1} of a sale not loaded.
func (s *Store) runReady(ctx context.Context, timeout time.Duration, sc *script, saleID string, args ...string) (int64, []rueidis.RedisMessage, error) {
	message, err := s.run(ctx, timeout, sc, saleID, args...)
	if err != nil {
		return 0, nil, err
	}
	return readReady(sc, message)
}

func readReady(sc *script, message rueidis.RedisMessage) (int64, []rueidis.RedisMessage, error) {
	reply, err := message.ToArray()
	if err != nil || len(reply) == 0 {
		return 0, nil, malformed(sc.name, message)
	}
	code, err := reply[0].ToInt64()
	if err != nil {
		return 0, nil, malformed(sc.name, message)
	}
	switch code {
	case notReady:
		return 0, nil, ErrNotReady
	case leased:
		return 0, nil, errLeased
	}
	return code, reply[1:], nil
}

// runCode is run for a script that answers a code alone.
func (s *Store) runCode(ctx context.Context, timeout time.Duration, sc *script, saleID string, args ...string) (int64, error) {
	message, err := s.run(ctx, timeout, sc, saleID, args...)
	if err != nil {
		return 0, err
	}
	return readCode(sc, message)
}

func readCode(sc *script, message rueidis.RedisMessage) (int64, error) {
	code, err := message.ToInt64()
	switch {
	case err != nil:
		return 0, malformed(sc.name, message)
	case code == notReady:
		return 0, ErrNotReady
	case code == leased:
		return 0, errLeased
	}
	return code, nil
}

// maxAttempts bounds how often a call to wait for is sent: to a node that turns out
// not to have the slot, and not to know the script, and once more to spare.
const maxAttempts = 4

// runReplicated calls a script that answers a code, and then has the node say that
// enough replicas have what it wrote.
func (s *Store) runReplicated(ctx context.Context, sc *script, saleID string, args ...string) (code int64, err error) {
	if s.opts.WaitReplicas == 0 {
		return s.runCode(ctx, s.opts.CallTimeout, sc, saleID, args...)
	}
	err = s.runAndWait(ctx, sc, saleID, args, nil, func(_ []rueidis.RedisResult, message rueidis.RedisMessage) (err error) {
		code, err = readCode(sc, message)
		return err
	})
	return code, err
}

// runAndWait sends what before makes, if it is not nil, the script, and WAIT: all in one
// round trip, on one connection that nobody else uses meanwhile, since WAIT speaks of its
// own connection and blocks it. read reads the replies, and its error is returned as it
// is; after any error, what it has read is worth nothing.
func (s *Store) runAndWait(ctx context.Context, sc *script, saleID string, args []string,
	before func() rueidis.Completed, read func(before []rueidis.RedisResult, message rueidis.RedisMessage) error,
) error {
	began := time.Now()
	err := s.sendAndWait(ctx, sc, saleID, args, before, read)
	failed := err
	if errors.Is(err, ErrNotReady) || errors.Is(err, errLeased) {
		failed = nil
	}
	s.metrics.called(sc, began, failed)
	return err
}

func (s *Store) sendAndWait(ctx context.Context, sc *script, saleID string, args []string,
	before func() rueidis.Completed, read func([]rueidis.RedisResult, rueidis.RedisMessage) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.CallTimeout+s.opts.WaitTimeout)
	defer cancel()
	select {
	case s.waiting <- struct{}{}:
		defer func() { <-s.waiting }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %s: no free connection: %w", ErrNotRun, sc.name, ctx.Err())
	}

	// rueidis follows a redirection command by command, which would leave the WAIT
	// behind on the wrong node, to vouch for nothing. So all go to one node, and a
	// redirection is followed here, with all of them.
	send, byText := s.dedicated, false
	var err error
	for range maxAttempts {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrNotRun, sc.name, err)
		}
		var commands []rueidis.Completed
		if before != nil {
			commands = append(commands, before())
		}
		first := len(commands)
		commands = append(commands, s.command(sc, byText, saleID, args))
		if s.opts.WaitReplicas > 0 {
			commands = append(commands, s.wait(ctx))
		}
		results := send(ctx, commands...)
		message, failed := results[first].ToMessage()
		if failed == nil {
			if err := read(results[:first], message); err != nil {
				return err
			}
			return s.acknowledged(sc, results[first+1:])
		}
		err = failed
		if isNoScript(err) {
			byText = true
			continue
		}
		node := s.movedTo(err)
		if node == nil {
			break
		}
		send = node.DoMulti
	}
	return classify(sc.name, err)
}

// wait is a WAIT that ends before ctx does, so that the answer is a count and the
// connection stays usable.
func (s *Store) wait(ctx context.Context) rueidis.Completed {
	timeout := s.opts.WaitTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)*3/4)
	}
	// 0 would wait for ever.
	millis := max(timeout.Milliseconds(), 1)
	return s.client.B().Wait().Numreplicas(int64(s.opts.WaitReplicas)).Timeout(millis).Build()
}

// acknowledged is what WAIT, if it was sent, answered.
func (s *Store) acknowledged(sc *script, wait []rueidis.RedisResult) error {
	if len(wait) == 0 {
		return nil
	}
	count, err := wait[0].ToInt64()
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotReplicated, sc.name, err)
	}
	if count < int64(s.opts.WaitReplicas) {
		return fmt.Errorf("%w: %s: %d of %d", ErrNotReplicated, sc.name, count, s.opts.WaitReplicas)
	}
	return nil
}

// dedicated sends commands in one go on one connection to the node that has the slot.
func (s *Store) dedicated(ctx context.Context, commands ...rueidis.Completed) []rueidis.RedisResult {
	if !s.opts.Cluster {
		// WAIT blocks, so rueidis takes a connection of its own for all of them.
		return s.client.DoMulti(ctx, commands...)
	}
	connection, release := s.client.Dedicate()
	defer release()
	results := connection.DoMulti(ctx, commands...)
	for _, result := range results {
		if result.NonRedisError() != nil {
			connection.Close() // a reply may still be on its way: nobody else may get it
			break
		}
	}
	return results
}

// movedTo is the node that a MOVED names, if the client knows it; it refreshes its
// view of the cluster on every MOVED.
func (s *Store) movedTo(err error) rueidis.Client {
	redisErr, ok := rueidis.IsRedisErr(err)
	if !ok {
		return nil
	}
	address, moved := redisErr.IsMoved()
	if !moved {
		return nil
	}
	return s.client.Nodes()[address]
}

func isNoScript(err error) bool {
	redisErr, ok := rueidis.IsRedisErr(err)
	return ok && redisErr.IsNoScript()
}
