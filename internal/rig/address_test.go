package rig

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Two processes that ask at the same time never get the same address, nor one that
// somebody listens on.
func TestFreeAddressesAreGivenOnce(t *testing.T) {
	const asker = "FLASHGATE_TEST_ASKS_FOR_ADDRESSES"
	if os.Getenv(asker) != "" {
		addresses, err := FreeAddresses(20)
		require.NoError(t, err)
		_, err = os.Stdout.WriteString("given " + strings.Join(addresses, " ") + "\n")
		require.NoError(t, err)
		return
	}
	mine, err := FreeAddresses(20)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", mine[0])
	require.NoError(t, err, "an address that was given can be listened on")
	defer func() { assert.NoError(t, listener.Close()) }()

	other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	other.Env = append(os.Environ(), asker+"=1")
	out, err := other.Output()
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(out), "\n")
	theirs := strings.Fields(strings.TrimPrefix(line, "given "))
	require.Len(t, theirs, 20)

	again, err := FreeAddresses(20)
	require.NoError(t, err)
	for _, address := range mine {
		assert.NotContains(t, theirs, address)
		assert.NotContains(t, again, address)
	}
}
