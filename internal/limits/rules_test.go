package limits

import (
	"os"
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
	text := string(content)
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
		"user.purchase.rate", "user.read.burst", "flow.purchase_qps", "flow.read_qps",
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
