package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Addresses are given from here: above the ports of well-known services and of
// this package's engines, and below the ephemeral range of Linux (32768, see
// ip_local_port_range). A port the kernel picks for a listener of port 0 is in that
// range, and the kernel may give it to an outgoing connection before the process
// that it was meant for listens on it.
const (
	firstAddressPort = 24000
	lastAddressPort  = 32000
)

// taken holds the locks of the ports given, for as long as this process lives.
var taken struct {
	sync.Mutex
	next  int
	files []*os.File
}

// FreeAddresses gives n addresses of 127.0.0.1 for processes that are yet to be
// started. Nobody listens on them, and nobody who asks here, in this process or
// another one of this user, is given one of them as long as this process lives: a
// daemon that was killed can be started again on the same address.
func FreeAddresses(n int) ([]string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("flashgate-ports-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	taken.Lock()
	defer taken.Unlock()
	addresses := make([]string, 0, n)
	for len(addresses) < n {
		port := firstAddressPort + taken.next
		if port > lastAddressPort {
			return nil, fmt.Errorf("every port from %d to %d is in use", firstAddressPort, lastAddressPort)
		}
		taken.next++
		file, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && portFree(port) == nil {
			taken.files = append(taken.files, file)
			addresses = append(addresses, address(port))
			continue
		}
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", file.Name(), err), file.Close())
		}
		if err := file.Close(); err != nil {
			return nil, err
		}
	}
	return addresses, nil
}
