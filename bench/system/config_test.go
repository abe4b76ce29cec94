package system

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLimitsAreRaised(t *testing.T) {
	dir := t.TempDir()
	limits, err := ReadDocument(filepathOfShippedLimits)
	require.NoError(t, err)
	require.Positive(t, limits.raiseLimits())
	require.NoError(t, limits.write(dir+"/limits.yaml"))
	raised, err := ReadDocument(dir + "/limits.yaml")
	require.NoError(t, err)
	for _, path := range [][]string{
		{"gateway", "purchase", "rate"}, {"address", "purchase", "burst"}, {"user", "read", "rate"}, {"flow", "purchase_qps"},
	} {
		require.Equal(t, RaisedLimit, raised.Get(path), path)
	}
	require.Equal(t, "50", raised.Get([]string{"breakers", "redis", "error_percent"}), "what is no rate stays")
}

const filepathOfShippedLimits = "../../configs/limits.yaml"
