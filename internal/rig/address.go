package rig

import (
	"context"
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

// FaultPorts gives the ports of a rig whose engines are to be killed, and a folder below dir
// for it. Nobody who asks here, in this process or another one of this user, is given the
// same as long as this process lives. Engines that an earlier run left behind in the folder
// are ended.
func FaultPorts(ctx context.Context, dir string) (Ports, string, error) {
	locks, err := lockDir()
	if err != nil {
		return Ports{}, "", err
	}
	taken.Lock()
	defer taken.Unlock()
	var used []error
	for i, ports := range faultPorts {
		name := "faults-" + strconv.Itoa(i)
		file, err := tryLock(filepath.Join(locks, name))
		if err != nil {
			return Ports{}, "", err
		}
		if file == nil {
			used = append(used, fmt.Errorf("another fault test has the ports from %d on", ports.Redis))
			continue
		}
		home := filepath.Join(dir, name)
		if err := Discard(ctx, home, nil); err != nil && !errors.Is(err, ErrNotUp) {
			return Ports{}, "", errors.Join(err, file.Close())
		}
		if err := ports.free(); err != nil {
			used = append(used, err, file.Close())
			continue
		}
		taken.files = append(taken.files, file)
		return ports, home, nil
	}
	return Ports{}, "", errors.Join(used...)
}

// free is nil if nobody listens on the ports that engines would.
func (p Ports) free() error {
	for i := range redisNodes {
		if err := errors.Join(portFree(p.Redis+i), portFree(p.Redis+i+clusterBusOffset)); err != nil {
			return err
		}
	}
	return errors.Join(portFree(p.Namesrv), portFree(p.Broker), portFree(p.MariaDB), portFree(p.MySQL))
}

// lockDir is the same for all processes of this user, whatever folder each of them has for
// its temporary files: they share the ports.
func lockDir() (string, error) {
	dir := fmt.Sprintf("/tmp/flashgate-ports-%d", os.Getuid())
	return dir, os.MkdirAll(dir, 0o700)
}

// tryLock locks a file; nil: another process has it.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, file.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), file.Close())
	}
	return file, nil
}

// FreeAddresses gives n addresses of 127.0.0.1 for processes that are yet to be
// started. Nobody listens on them, and nobody who asks here, in this process or
// another one of this user, is given one of them as long as this process lives: a
// daemon that was killed can be started again on the same address.
func FreeAddresses(n int) ([]string, error) {
	dir, err := lockDir()
	if err != nil {
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
		file, err := tryLock(filepath.Join(dir, strconv.Itoa(port)))
		switch {
		case err != nil:
			return nil, err
		case file == nil:
		case portFree(port) == nil:
			taken.files = append(taken.files, file)
			addresses = append(addresses, address(port))
		default:
			if err := file.Close(); err != nil {
				return nil, err
			}
		}
	}
	return addresses, nil
}
