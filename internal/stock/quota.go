package stock

import (
	"context"
	"strconv"
	"time"
)

const (
	keyQuota   key = "quota"
	keyMembers key = "members"
)

var quotaScript = newScript("quota", []key{keyQuota, keyMembers}, "rate burst want member ttl_ms")

// quotaTag is where a quota's keys are: no sale's id has a dot.
const quotaTag = "quota."

// memberMillis is how long a gateway counts after it last asked for a quota: several
// times as long as it lets pass between two askings.
const memberMillis = 3_000

// Quota takes up to want tokens of the bucket called name, which all gateways share:
// rate tokens a second of Redis time, at most burst of them. member names this gateway;
// gateways is how many asked within the last three seconds. An error leaves it unknown
// whether tokens were taken: they are lost to all, which errs on the safe side.
func (s *Store) Quota(ctx context.Context, member, name string, rate float64, burst, want int64) (granted int64, gateways int, err error) {
	timeout := s.opts.CallTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	message, err := s.run(ctx, timeout, quotaScript, quotaTag+name,
		strconv.FormatFloat(rate, 'f', -1, 64), strconv.FormatInt(burst, 10), strconv.FormatInt(want, 10),
		member, strconv.Itoa(memberMillis))
	if err != nil {
		return 0, 0, err
	}
	reply, err := message.AsIntSlice()
	if err != nil || len(reply) != 2 {
		return 0, 0, malformed(quotaScript.name, message)
	}
	return reply[0], int(reply[1]), nil
}
