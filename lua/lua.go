// Package lua holds the scripts that change or read a sale in Redis. Each file opens
// with its KEYS, its ARGV and what it returns; prelude.lua, shared by all, says how
// records and batches are packed. internal/stock calls them, and a test there holds
// the headers against the calls.
package lua

import (
	"embed"
	"strings"
)

//go:embed *.lua
var files embed.FS

const preludeName = "prelude"

var prelude = read(preludeName)

// Source is a script's full text as Redis runs it: the prelude, then the script.
func Source(name string) string { return prelude + "\n" + read(name) }

// File is a script's own file, header first, without the prelude.
func File(name string) string { return read(name) }

// Names lists the scripts.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic("BUG: embedded scripts: " + err.Error())
	}
	var names []string
	for _, entry := range entries {
		if name := strings.TrimSuffix(entry.Name(), ".lua"); name != preludeName {
			names = append(names, name)
		}
	}
	return names
}

func read(name string) string {
	text, err := files.ReadFile(name + ".lua")
	if err != nil {
		panic("BUG: no such script: " + name)
	}
	return string(text)
}
