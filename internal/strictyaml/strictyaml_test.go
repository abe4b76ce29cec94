package strictyaml

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

type section struct {
	Wait  time.Duration `yaml:"wait" default:"500ms" min:"1ms" max:"1m"`
	Ratio float64       `yaml:"ratio" default:"0.5" max:"1"`
}

type fixture struct {
	Ignored string
	Name    string   `yaml:"name" required:"true" min:"1" max:"8"`
	Level   string   `yaml:"level" default:"info" oneof:"info|debug"`
	On      bool     `yaml:"on" default:"true"`
	Count   int      `yaml:"count" default:"7" min:"1" max:"100000000000"`
	List    []string `yaml:"list" default:"a,b" max:"3"`
	Word    word     `yaml:"word" default:"std"`
	Section section  `yaml:"section"`
}

type word string

func (w *word) UnmarshalYAML(n *yaml.Node) error {
	if n.Value == "bad" {
		return errors.New("is bad")
	}
	*w = word("<" + n.Value + ">")
	return nil
}

func TestDefaults(t *testing.T) {
	var got fixture
	d := Decode("f", []byte("name: x\n"), &got)
	require.NoError(t, d.Err())
	require.Equal(t, fixture{
		Name: "x", Level: "info", On: true, Count: 7, List: []string{"a", "b"}, Word: "<std>",
		Section: section{500 * time.Millisecond, 0.5},
	}, got)
	require.True(t, d.Written("name"))
	require.False(t, d.Written("count"))
}

func TestValues(t *testing.T) {
	var got fixture
	d := Decode("f", []byte(`
name: "x: y"
level: debug
on: false
count: 1e11
list: [p, q]
word: w
section:
  wait: 1m
  ratio: 1
`), &got)
	require.NoError(t, d.Err())
	require.Equal(t, fixture{
		Name: "x: y", Level: "debug", Count: 1e11, List: []string{"p", "q"}, Word: "<w>",
		Section: section{time.Minute, 1},
	}, got)
	require.Equal(t, 9, d.Line("section.wait"))
	require.Equal(t, 8, d.Line("section.none"))
}

// Each file is wrong in one way; the error names the line, the key and what is right.
func TestProblems(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"unknown key":        {"name: x\ncuont: 3\n", "f:2: cuont: unknown key: did you mean count?"},
		"unknown below":      {"name: x\nsection:\n  zzzzzzzz: 1\n", "f:3: section.zzzzzzzz: unknown key: the keys here are ratio, wait"},
		"exact case":         {"name: x\nCount: 3\n", "f:2: Count: unknown key: did you mean count?"},
		"twice":              {"name: x\ncount: 3\ncount: 4\n", "f:3: count: written twice: first on line 2"},
		"missing":            {"level: info\n", "f:1: name: missing"},
		"empty file":         {"", "f:1: name: missing"},
		"no value":           {"name: x\ncount:\n", "f:2: count: has no value: give one, or leave the key out for 7"},
		"no unit":            {"name: x\nsection:\n  wait: 20\n", `f:3: section.wait: "20": a duration has a unit, such as 500ms`},
		"bad unit":           {"name: x\nsection: {wait: 20 seconds}\n", "a duration has a unit"},
		"too long":           {"name: x\nsection:\n  wait: 2m\n", "f:3: section.wait: 2m is out of range: want 1ms to 1m"},
		"too short":          {"name: x\nsection:\n  wait: -1s\n", "out of range: want 1ms to 1m"},
		"number as text":     {"name: x\ncount: \"3\"\n", `f:2: count: "3" is text: want a whole number, 1 to 100000000000`},
		"zero":               {"name: x\ncount: 0\n", "f:2: count: 0 is out of range: want 1 to 100000000000"},
		"negative":           {"name: x\ncount: -5\n", "f:2: count: -5 is out of range"},
		"too many":           {"name: x\ncount: 1e12\n", "out of range"},
		"huge":               {"name: x\ncount: 99999999999999999999\n", `f:2: count: "99999999999999999999": want a whole number`},
		"fraction":           {"name: x\ncount: 1.5\n", `"1.5": want a whole number`},
		"octal":              {"name: x\ncount: 010\n", `"010": want a whole number`},
		"hexadecimal":        {"name: x\ncount: 0x10\n", `"0x10": want a whole number`},
		"infinite":           {"name: x\nsection: {ratio: .inf}\n", `".inf": want a number`},
		"ratio":              {"name: x\nsection: {ratio: 1.1}\n", "1.1 is out of range: want 1 or less"},
		"yes":                {"name: x\non: yes\n", `f:2: on: "yes": want true or false`},
		"one of":             {"name: x\nlevel: loud\n", `f:2: level: "loud": want info or debug`},
		"text as number":     {"name: 7\n", "f:1: name: 7 is not text: put it in quotes"},
		"empty text":         {"name: \"\"\n", "out of range: want 1 to 8 bytes"},
		"long text":          {"name: 123456789x\n", "out of range: want 1 to 8 bytes"},
		"mapping for a text": {"name: {a: b}\n", "f:1: name: is a mapping: want text"},
		"text for a mapping": {"name: x\nsection: 3\n", "f:2: section: is a single value: want keys and values (ratio, wait)"},
		"text for a list":    {"name: x\nlist: a\n", "f:2: list: is a single value: want a list"},
		"numbers in a list":  {"name: x\nlist: [1]\n", "want a list of text"},
		"long list":          {"name: x\nlist: [a, b, c, d]\n", "4 items is out of range: want 3 or less items"},
		"own type":           {"name: x\nword: bad\n", "f:2: word: is bad"},
		"anchor":             {"name: &a x\nlevel: *a\n", "f:1: name: anchors and aliases are not taken"},
		"merge":              {"name: x\n<<: {count: 3}\n", "unknown key"},
		"two documents":      {"name: x\n---\nname: y\n", "a second document"},
		"a list":             {"- a\n", "f:1: is a list: want keys and values"},
		"no YAML":            {"name: x\n\tcount: 3\n", "f: line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			var got fixture
			require.ErrorContains(t, Decode("f", []byte(tc.file), &got).Err(), tc.want)
		})
	}
}

func TestAllProblemsAtOnceInTheOrderOfLines(t *testing.T) {
	var got fixture
	d := Decode("f", []byte("nam: x\ncount: 0\nsection:\n  wait: 3\n"), &got)
	d.Fail("level", "and so on")
	var ps Problems
	require.ErrorAs(t, d.Err(), &ps)
	require.Len(t, strings.Split(ps.Error(), "\n"), 5)
	keys := make([]string, len(ps))
	for i, p := range ps {
		keys[i] = p.Key
	}
	require.Equal(t, []string{"level", "nam", "name", "count", "section.wait"}, keys)
}

func TestSectionsMayBeEmpty(t *testing.T) {
	var got fixture
	require.NoError(t, Decode("f", []byte("name: x\nsection:\n  # wait: 1s\n"), &got).Err())
	require.Equal(t, 500*time.Millisecond, got.Section.Wait)
}

func TestRead(t *testing.T) {
	var got fixture
	dir := t.TempDir()
	require.ErrorContains(t, Read(filepath.Join(dir, "none"), &got).Err(), "none: cannot be read: no such file")
	require.ErrorContains(t, Read(dir, &got).Err(), "cannot be read")
	big := filepath.Join(dir, "big")
	require.NoError(t, os.WriteFile(big, make([]byte, MaxFileBytes+1), 0o600))
	require.ErrorContains(t, Read(big, &got).Err(), "larger than")
}

func TestTagsThatMakeNoSense(t *testing.T) {
	for name, into := range map[string]any{
		"type": &struct {
			A complex128 `yaml:"a"`
		}{},
		"default": &struct {
			A int `yaml:"a" default:"x"`
		}{},
	} {
		require.Panics(t, func() { Decode("f", nil, into) }, name)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name: x\nsection: {wait: 1s}\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("name: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		var got fixture
		if Decode("f", content, &got).Err() != nil {
			return
		}
		require.NotEmpty(t, got.Name)
		require.True(t, got.Count >= 1 && got.Count <= 1e11)
		require.True(t, got.Section.Wait >= time.Millisecond && got.Section.Wait <= time.Minute)
	})
}
