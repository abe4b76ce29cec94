package e2e

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/failpoint"
)

// TestE2ENoFailpoints: what is built without -tags failpoints has none of them, not even
// their names.
func TestE2ENoFailpoints(t *testing.T) {
	require.False(t, failpoint.Enabled)
	binary, err := os.ReadFile(flashgate)
	require.NoError(t, err)
	require.NotContains(t, string(binary), failpoint.EnvDir)
	for _, p := range failpoint.All {
		require.NotContains(t, string(binary), string(p))
	}
}
