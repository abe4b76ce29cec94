package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

func stateFile(dir string) string { return filepath.Join(dir, "engines.json") }
func lockFile(dir string) string  { return filepath.Join(dir, "lock") }

// save writes the state file, before a process is started: Down finds it even
// when its starter dies.
func (r *Rig) save() error {
	processes := r.Processes()
	r.mu.Lock()
	defer r.mu.Unlock()
	text, err := json.MarshalIndent(state{
		Options:          r.options,
		Processes:        processes,
		MySQLUnavailable: r.mysqlUnavailable,
	}, "", "  ")
	if err != nil {
		return err
	}
	partial := stateFile(r.options.Dir) + ".partial"
	if err := os.WriteFile(partial, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(partial, stateFile(r.options.Dir))
}

func readState(dir string) (state, error) {
	text, err := os.ReadFile(stateFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, ErrNotUp
	}
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return state{}, fmt.Errorf("%s: %w", stateFile(dir), err)
	}
	return s, nil
}

// Lock takes the lock file at path, waiting for its holder with a word to log. A
// holder that dies lets go of it.
func Lock(ctx context.Context, path string, log io.Writer) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	take := func() error { return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
	if err = take(); err != nil {
		if log != nil {
			_, _ = fmt.Fprintf(log, "waiting for another run, which holds %s\n", path) // only a word
		}
		err = poll(ctx, lockWaitSeconds*time.Second, take)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// wipe empties dir but for the lock, which the caller holds.
func wipe(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if path == lockFile(dir) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}
