// Package strictyaml reads a YAML file into a struct and forgives nothing: an unknown
// key, a missing unit, a value out of range or a missing one is an error that names
// file, line and what would be right, and all of them are found in one pass.
//
// The struct says it all at the field, in tags:
//
//	Wait time.Duration `yaml:"wait" default:"500ms" min:"1ms" max:"1m"`
//
// yaml is the key; default is the value when the key is absent; min and max are
// inclusive (of a list or a string: of its length); oneof lists the words allowed,
// apart by |; required:"true" has no default. Fields are structs, strings, bools,
// integers, float64, time.Duration, []string, maps of structs whose keys are names of
// the file's choosing, or implement yaml.Unmarshaler.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxFileBytes bounds a file: a config is some kilobytes, and a wrong path may be anything.
const MaxFileBytes = 1 << 20

// Problem is one thing that is wrong with a file.
type Problem struct {
	File   string
	Line   int    // from 1; 0 = the file as a whole
	Key    string // dotted, "" = the file as a whole
	Detail string // what is wrong and what would be right
}

func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Detail)
	return b.String()
}

// Problems are all that is wrong with a file, in the order of its lines.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Doc is a file that was read: where its keys stand, and what is wrong with it.
type Doc struct {
	File     string
	lines    map[string]int // line of a key that is written in the file
	problems Problems
}

// Written reports whether the file has the dotted key.
func (d *Doc) Written(key string) bool { return d.lines[key] > 0 }

// Line is the line of a dotted key, or of the nearest key above it that is written.
func (d *Doc) Line(key string) int {
	for {
		if n := d.lines[key]; n > 0 {
			return n
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
}

// Fail adds a problem with a dotted key: what only the caller can know is wrong.
func (d *Doc) Fail(key, format string, args ...any) {
	d.failAt(d.Line(key), key, format, args...)
}

func (d *Doc) failAt(line int, key, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.File, Line: line, Key: key, Detail: fmt.Sprintf(format, args...)})
}

// Err is the Problems found so far, or nil.
func (d *Doc) Err() error {
	if len(d.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return a.Line - b.Line })
	return d.problems
}

// Read decodes the file at path; see Decode. A file that can't be read is a problem
// with it like any other.
func Read(path string, into any) *Doc {
	content, err := ReadFile(path)
	if err != nil {
		d := &Doc{File: path}
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		d.Fail("", "cannot be read: %v", err)
		return d
	}
	return Decode(path, content, into)
}

// ReadFile reads a file of at most MaxFileBytes.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > MaxFileBytes {
		return nil, fmt.Errorf("larger than %d bytes", MaxFileBytes)
	}
	return content, nil
}

// Decode fills the struct that into points at from content, which came from the file
// named file. The Doc holds what is wrong; the caller may add to it, and asks Err.
// A struct tag that makes no sense panics.
func Decode(file string, content []byte, into any) *Doc {
	d := &Doc{File: file, lines: map[string]int{}}
	v := reflect.ValueOf(into).Elem()

	dec := yaml.NewDecoder(bytes.NewReader(content))
	var root yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		root = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode, Line: 1}}}
	case err != nil:
		d.Fail("", "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return d
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.failAt(more.Line, "", "a second document: want one")
		return d
	}
	d.mapping(root.Content[0], "", v)
	return d
}

// mapping fills the struct v from the mapping n.
func (d *Doc) mapping(n *yaml.Node, at string, v reflect.Value) {
	fields := fieldsOf(v.Type())
	if n.Kind != yaml.MappingNode {
		d.failAt(n.Line, at, "is %s: want keys and values (%s)", describe(n), strings.Join(names(fields), ", "))
		return
	}
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := join(at, key.Value)
		switch f := fields[key.Value]; {
		case f == nil:
			d.failAt(key.Line, path, "unknown key%s", suggest(key.Value, names(fields)))
		case seen[key.Value] != nil:
			d.failAt(key.Line, path, "written twice: first on line %d", seen[key.Value].Line)
		case value.Kind == yaml.AliasNode || value.Anchor != "":
			d.failAt(value.Line, path, "anchors and aliases are not taken: write the value out")
		default:
			d.lines[path] = key.Line
		}
		if seen[key.Value] == nil {
			seen[key.Value] = value
		}
	}
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		f := fields[name]
		if f == nil {
			continue
		}
		path, value := join(at, name), seen[name]
		switch {
		case value != nil && d.lines[path] == 0:
			// A problem with it is noted already.
		case value != nil:
			d.value(value, path, v.Field(i), f)
		case f.kind == kindStruct:
			d.mapping(&yaml.Node{Kind: yaml.MappingNode, Line: n.Line}, path, v.Field(i))
		case f.required:
			d.failAt(n.Line, path, "missing%s", f.want())
		case f.hasDefault:
			f.setDefault(v.Field(i), v.Type().Name()+"."+name)
		}
	}
}

// value fills the field v from the node n.
func (d *Doc) value(n *yaml.Node, path string, v reflect.Value, f *field) {
	null := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
	if null && (f.kind == kindStruct || f.kind == kindMap) {
		n = &yaml.Node{Kind: yaml.MappingNode, Line: n.Line} // a section whose keys are all commented out
	} else if null {
		d.failAt(n.Line, path, "has no value: give one%s, or leave the key out%s", f.want(), f.otherwise())
		return
	}
	switch f.kind {
	case kindStruct:
		d.mapping(n, path, v)
		return
	case kindMap:
		d.named(n, path, v, f)
		return
	}
	if err := f.set(n, v); err != nil {
		d.failAt(n.Line, path, "%s", err)
	}
}

// named fills the map v, of structs by name, from the mapping n.
func (d *Doc) named(n *yaml.Node, at string, v reflect.Value, f *field) {
	if n.Kind != yaml.MappingNode {
		d.failAt(n.Line, at, "is %s: want names, each with keys and values", describe(n))
		return
	}
	entries := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path, name := join(at, key.Value), reflect.ValueOf(key.Value).Convert(v.Type().Key())
		switch {
		case entries.MapIndex(name).IsValid():
			d.failAt(key.Line, path, "written twice: first on line %d", d.lines[path])
			continue
		case value.Kind == yaml.AliasNode || value.Anchor != "":
			d.failAt(value.Line, path, "anchors and aliases are not taken: write the value out")
			continue
		}
		d.lines[path] = key.Line
		entry := reflect.New(v.Type().Elem()).Elem()
		d.mapping(value, path, entry)
		entries.SetMapIndex(name, entry)
	}
	v.Set(entries)
	if err := f.inRange(float64(entries.Len()), strconv.Itoa(entries.Len())+" names", " names", parseInt); err != nil {
		d.failAt(n.Line, at, "%s", err)
	}
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

func names(fields map[string]*field) []string {
	out := make([]string, 0, len(fields))
	for name := range fields {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// describe names what stands where something else was wanted, without quoting it: it
// may be a secret in the wrong place.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}
