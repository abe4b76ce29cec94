package limits

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const shippedFile = "../../configs/limits.yaml"

func TestShippedRules(t *testing.T) {
	r := shipped(t)
	for _, p := range []PerClass{r.Gateway, r.Address, r.User} {
		for _, b := range []Bucket{p.Purchase, p.Read} {
			require.Less(t, b.Rate, 1e6, "on")
			require.GreaterOrEqual(t, float64(b.Burst), b.Rate, "a second's worth may come at once")
		}
	}
	require.Less(t, r.User.Purchase.Rate, r.Address.Purchase.Rate)
	require.Less(t, r.Address.Purchase.Rate, r.Gateway.Purchase.Rate)
	require.GreaterOrEqual(t, r.Concurrency.Purchase, 8192)
	require.GreaterOrEqual(t, r.Concurrency.Read, 8192)
	for _, b := range []BreakerRule{r.Breakers.Redis, r.Breakers.RocketMQ, r.Breakers.MySQL} {
		require.LessOrEqual(t, b.RetryAfter, 2*time.Second, "sales go on soon after the engine is back")
	}
}

// edit is the shipped file with the one number under each of the keys replaced.
func edit(t testing.TB, pairs ...string) string {
	t.Helper()
	content, err := os.ReadFile(shippedFile)
	require.NoError(t, err)
	return editText(t, string(content), pairs...)
}

func editText(t testing.TB, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		at := 0
		for key := range strings.SplitSeq(pairs[i], ".") {
			j := strings.Index(text[at:], "\n"+strings.Repeat("  ", strings.Count(pairs[i][:strings.Index(pairs[i], key)], "."))+key+":")
			require.GreaterOrEqual(t, j, 0, pairs[i])
			at += j + 1
		}
		end := at + strings.IndexByte(text[at:], '\n')
		text = text[:at+strings.IndexByte(text[at:], ':')+1] + " " + pairs[i+1] + text[end:]
	}
	return text
}

func TestRulesThatAreRefused(t *testing.T) {
	for _, key := range []string{
		"gateway.purchase.rate", "gateway.read.burst", "address.purchase.burst", "address.read.rate",
		"user.purchase.rate", "user.read.burst", "sale.purchase.rate", "flow.purchase_qps", "flow.read_qps",
		"hotspot.purchase_qps", "system.inbound_qps", "cluster.purchase.rate",
	} {
		for _, bad := range []string{"0", "-1", "0.5", "-100000000000", "100000000001", "1e12", ".inf", ".nan", "off", "\"7\"", ""} {
			_, err := Parse("f", []byte(edit(t, key, bad)))
			require.ErrorContains(t, err, ": "+key+": ", bad)
			require.Regexp(t, `^f:\d+: `, err.Error())
		}
		for _, good := range []string{"1", "100000000000", "1e11", "7"} {
			_, err := Parse("f", []byte(edit(t, key, good)))
			require.NoError(t, err, "%s: %s", key, good)
		}
	}
	for key, bad := range map[string]string{
		"concurrency.purchase":          "0",
		"tracked.users":                 "0",
		"breakers.redis.error_percent":  "101",
		"breakers.redis.min_requests":   "0",
		"breakers.mysql.window":         "105ms",
		"breakers.rocketmq.retry_after": "1",
		"breakers.redis.error_count":    "0",
		"breakers.redis.slow_call":      "0s",
		"breakers.redis.slow_percent":   "0",
		"flow.warm_up":                  "1500ms",
		"flow.cold_factor":              "1",
		"system.load1":                  "0",
		"system.concurrency":            "-1",
		"cluster.enabled":               "yes",
		"cluster.gateways":              "0",
		"proxies.trusted":               "[10.0.0.0/33]",
		"proxies.header":                "X-Real-IP",
		"block.users":                   "[7]",
		"block.addresses":               "[192.0.2.1/24/7]",
		"allow.addresses":               "[fe80::1%eth0]",
		"ticket.ttl":                    "0s",
	} {
		_, err := Parse("f", []byte(edit(t, key, bad)))
		require.ErrorContains(t, err, ": "+key+": ", bad)
	}
	_, err := Parse("f", nil)
	require.ErrorContains(t, err, "user.purchase.rate: missing")
}

func TestConcurrencyBelowTheShippedIsTaken(t *testing.T) {
	r, err := Parse("f", []byte(edit(t, "concurrency.purchase", "1")))
	require.NoError(t, err)
	require.Equal(t, 1, r.Concurrency.Purchase)
}

func TestNamesInTheFile(t *testing.T) {
	const one = "  %s:\n    purchase: {rate: 1, burst: 1}\n    read: {rate: 1, burst: 1}\n    purchase_qps: 1\n    read_qps: %s\n"
	for name, tc := range map[string]struct{ more, want string }{
		"no sale's id": {"sales:\n" + fmt.Sprintf(one, "a.b", "1"), "sales.a.b: is no sale's id"},
		"zero":         {"sales:\n" + fmt.Sprintf(one, "hot", "0"), "sales.hot.read_qps: 0 is out of range"},
		"half of it":   {"sales:\n  hot: {purchase_qps: 1}\n", "sales.hot.purchase.rate: missing"},
		"twice":        {"sales:\n" + fmt.Sprintf(one+one, "hot", "1", "hot", "1"), "sales.hot: written twice"},
		"unknown":      {"sales:\n  hot: {rate: 1}\n", "sales.hot.rate: unknown key"},
	} {
		_, err := Parse("f", []byte(edit(t)+tc.more))
		require.ErrorContains(t, err, tc.want, name)
		require.Regexp(t, `^f:\d+: `, err.Error(), name)
	}
	_, err := Parse("f", []byte(edit(t, "block.users", "[u]", "allow.users", "[u]")))
	require.ErrorContains(t, err, `allow.users: "u" is blocked too`)
	_, err = Parse("f", []byte(edit(t, "block.users", "["+strings.Repeat("u", 65)+"]")))
	require.ErrorContains(t, err, "block.users")
}

// A profile is a whole file, put in force by copying it: it says all that limits.yaml
// says, in the same words, and but for traffic the same.
func TestProfiles(t *testing.T) {
	base := shipped(t)
	files, err := filepath.Glob("../../configs/limits.*.yaml")
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, file := range files {
		r, err := Load(file)
		require.NoError(t, err)
		require.Equal(t, base.Breakers, r.Breakers, file)
		require.Equal(t, base.Proxies, r.Proxies, file)
		require.Equal(t, base.Block, r.Block, file)
		require.Equal(t, base.Allow, r.Allow, file)
		require.Equal(t, base.Ticket, r.Ticket, file)
		require.False(t, r.Cluster.Enabled, file)
		require.GreaterOrEqual(t, r.Concurrency.Purchase, 8192, file)
		require.GreaterOrEqual(t, r.Concurrency.Read, 8192, file)
		require.GreaterOrEqual(t, r.System.InboundQPS, r.Flow.PurchaseQPS+r.Flow.ReadQPS, file)
		newLimiter(t, r, Options{})
	}
	panics, err := Load("../../configs/limits.panic.yaml")
	require.NoError(t, err)
	// A storm on two cores is some 50,000 requests a second.
	require.LessOrEqual(t, panics.Gateway.Purchase.Rate, 500.0)
	require.LessOrEqual(t, panics.Gateway.Purchase.Burst, 50, "no queue builds up of what is let in")
}
