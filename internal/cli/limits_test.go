package cli

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"flashgate/internal/limits"
)

func TestLimitsCheck(t *testing.T) {
	inFolder(t)
	for _, name := range []string{"limits", "limits.warmup", "limits.opening", "limits.panic"} {
		code, out, errout := command("limits", "check", "configs/"+name+".yaml")
		require.Zero(t, code, errout)
		require.Contains(t, out, "OK: purchases a second")
	}
	text, err := os.ReadFile("configs/limits.yaml")
	require.NoError(t, err)
	bad := strings.Replace(string(text), "rate: 10\n", "rate: -10\n", 1)
	require.NoError(t, os.WriteFile("bad.yaml", []byte(bad), 0o600))
	code, out, errout := command("limits", "check", "bad.yaml")
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Regexp(t, `bad.yaml:\d+: user.purchase.rate: -10 is out of range`, errout)
	code, _, errout = command("limits", "check", "nothing.yaml")
	require.Equal(t, 1, code)
	require.Contains(t, errout, "nothing.yaml")
}

func TestAccessCommands(t *testing.T) {
	inFolder(t)
	must := func(args ...string) string {
		t.Helper()
		code, out, errout := command(append(append([]string{"limits"}, args...), embedded)...)
		require.Zero(t, code, "%s%s", out, errout)
		return out
	}
	require.Contains(t, must("list"), "nobody")
	require.Contains(t, must("block", "--user", "mallory", "--reason", "resells", "--by", "root"), "is blocked; every gateway")
	require.Contains(t, must("block", "--user", "mallory"), "already")
	require.Contains(t, must("allow", "--address", "192.0.2.9/24", "--for", "1h"), "192.0.2.0/24 is allowed until 2")
	list := must("list")
	require.Regexp(t, `BLOCK +mallory +- +\S+ +- +root +resells`, list)
	require.Regexp(t, `ALLOW +- +192.0.2.0/24 `, list)
	require.Contains(t, must("lift", "--user", "mallory"), "neither")
	require.NotContains(t, must("list", "--json"), "mallory")
	for _, args := range [][]string{
		{"block"}, {"block", "--user", "u", "--address", "192.0.2.1"}, {"block", "--address", "here"}, {"allow", "--user", "u", "--for", "-1h"},
	} {
		code, _, _ := command(append(append([]string{"limits"}, args...), embedded)...)
		require.Equal(t, 1, code, args)
	}
	// A limits file that is wrong keeps nobody from looking and acting; only a gateway does
	// not start with it.
	require.NoError(t, os.WriteFile("configs/limits.yaml", []byte("wrong: 1\n"), 0o600))
	require.Contains(t, must("list"), "192.0.2.0/24")
	code, _, errout := command("gateway")
	require.Equal(t, 1, code)
	require.Contains(t, errout, "configs/limits.yaml:1: wrong: unknown key")
	code, _, errout = command("limits", "show", embedded)
	require.Equal(t, 1, code, "nobody runs")
	require.NotEmpty(t, errout)
}

func TestPrintLimits(t *testing.T) {
	var out strings.Builder
	printLimits(&out, &limits.View{
		File: "limits.yaml", Since: time.Unix(1_800_000_000, 0).UTC(), Limits: "gateway: {}\n", Access: 3,
		Refused:  &limits.RefusedFile{At: time.Unix(1_800_000_060, 0).UTC(), Problems: []string{"limits.yaml:3: a: b"}},
		Breakers: map[limits.Engine]string{limits.Redis: "open", limits.MySQL: "closed"},
		Alone:    []string{"cluster_purchase"},
	})
	require.Equal(t, `# in force since 2027-01-15T08:00:00Z, from limits.yaml
# the file was refused at 2027-01-15T08:01:00Z:
#   limits.yaml:3: a: b
# circuit breakers: mysql closed, redis open
# blocks and allowances by operators: 3 (`+"`flashgate limits list`"+`)
# Redis does not answer; this gateway keeps its part by itself: cluster_purchase
gateway: {}
`, out.String())
}
