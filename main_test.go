package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// faults is how many kinds of fault ARCHITECTURE.md answers for.
const faults = 17

var (
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
	testName = regexp.MustCompile("`([a-z]+\\.(?:Test|Fuzz)\\w+)`")
)

// TestEveryFaultHasItsTests holds ARCHITECTURE.md's table of faults against the tests that
// it names: each row names some, and each of them is there.
func TestEveryFaultHasItsTests(t *testing.T) {
	there := map[string]bool{} // folder.Test
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && len(path) > 1 && path[0] == '.': // no code of ours
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			there[filepath.Base(filepath.Dir(path))+"."+string(m[1])] = true
		}
		return err
	}))
	text, err := os.ReadFile("ARCHITECTURE.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "## What fails, and what then happens\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		cells := strings.Split(line, " | ")
		if len(cells) != 3 || strings.HasPrefix(line, "| fault") || strings.HasPrefix(line, "| ---") {
			continue
		}
		rows++
		names := testName.FindAllStringSubmatch(cells[2], -1)
		require.NotEmpty(t, names, "%s: no tests", cells[0])
		for _, name := range names {
			require.True(t, there[name[1]], "%s: there is no %s", cells[0], name[1])
		}
	}
	require.Equal(t, faults, rows)
}
