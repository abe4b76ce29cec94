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

// allTests are the tests of all packages, by folder.Test.
func allTests(t *testing.T) map[string]bool {
	there := map[string]bool{}
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
	return there
}

// TestDocsNameTestsThatAreThere: what the docs promise by the name of a test is tested.
func TestDocsNameTestsThatAreThere(t *testing.T) {
	there := allTests(t)
	docs, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, docs)
	for _, doc := range append(docs, "ARCHITECTURE.md", "README.md") {
		text, err := os.ReadFile(doc)
		require.NoError(t, err)
		for _, name := range testName.FindAllSubmatch(text, -1) {
			require.True(t, there[string(name[1])], "%s: there is no %s", doc, name[1])
		}
	}
}

// TestEveryFaultHasItsTests: each row of ARCHITECTURE.md's table of faults names tests.
func TestEveryFaultHasItsTests(t *testing.T) {
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
		require.Regexp(t, testName, cells[2], cells[0])
	}
	require.Equal(t, faults, rows)
}
