package limits

import (
	"context"
	"net/netip"
	"time"

	"flashgate/internal/sale"
)

// What a refusal is called whose cause is a block: waiting does not help.
const (
	BlockedAddress = "blocked_address"
	BlockedUser    = "blocked_user"
)

// access is who is blocked and who is allowed: the limits file's lists and the
// operators' rules together. Being allowed beats being blocked, whoever says it.
type access struct {
	blocked, allowed listed
}

// listed are users and networks; empty is the common case and costs two comparisons.
type listed struct {
	users    map[string]struct{}
	networks networks
}

func (l *listed) hasUser(user []byte) bool {
	if len(l.users) == 0 {
		return false
	}
	_, ok := l.users[string(user)]
	return ok
}

func (l *listed) addUser(user string) {
	if l.users == nil {
		l.users = map[string]struct{}{}
	}
	l.users[user] = struct{}{}
}

func newAccess(r *Rules, made []sale.AccessRule) *access {
	a := &access{}
	for to, from := range map[*listed]Listed{&a.blocked: r.Block, &a.allowed: r.Allow} {
		for _, user := range from.Users {
			to.addUser(user)
		}
		to.networks.addTexts(from.Addresses)
	}
	for _, rule := range made {
		to := &a.blocked
		if rule.Access == sale.AccessAllow {
			to = &a.allowed
		}
		if rule.Kind == sale.AccessUser {
			to.addUser(rule.Value)
		} else {
			to.networks.addTexts([]string{rule.Value})
		}
	}
	return a
}

func (a *access) address(ip netip.Addr) (blocked, allowed bool) {
	switch {
	case a.allowed.networks.has(ip):
		return false, true
	default:
		return a.blocked.networks.has(ip), false
	}
}

func (a *access) user(user []byte) (blocked, allowed bool) {
	if a.allowed.hasUser(user) {
		return false, true
	}
	return a.blocked.hasUser(user), false
}

const (
	// accessPollInterval: an operator's rule is in every gateway within 1 s.
	accessPollInterval = 400 * time.Millisecond
	// accessReadTimeout bounds one look; the ledger may be away.
	accessReadTimeout = 2 * time.Second
)

// FollowAccess puts operators' rules in force as they are made, until ctx ends, and
// then returns nil. While the source is away the rules before stay in force.
func (l *Limiter) FollowAccess(ctx context.Context, from sale.AccessSource) error {
	poll := time.NewTicker(accessPollInterval)
	defer poll.Stop()
	away := false
	for {
		err := l.readAccess(ctx, from)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !away:
			l.log.Warn("blocks and allowances cannot be read: those before stay in force", "error", err)
		case err == nil && away:
			l.log.Info("blocks and allowances are read again")
		}
		away = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		}
	}
}

func (l *Limiter) readAccess(ctx context.Context, from sale.AccessSource) error {
	ctx, cancel := context.WithTimeout(ctx, accessReadTimeout)
	defer cancel()
	changed, err := l.book.Read(ctx, from, time.Now())
	if changed {
		l.putAccess(l.book.Rules())
	}
	return err
}

// putAccess puts the operators' rules in force beside those of the limits file.
func (l *Limiter) putAccess(made []sale.AccessRule) {
	l.swapping.Lock()
	defer l.swapping.Unlock()
	l.made = made
	l.access.Store(newAccess(&l.rules.Load().Rules, made))
}

// accessRules is how many of them there are.
func (l *Limiter) accessRules() int {
	l.swapping.Lock()
	defer l.swapping.Unlock()
	return len(l.made)
}
