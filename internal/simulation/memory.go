package simulation

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// memory is what one Redis node holds: the five keys of the one sale. Its parts are
// short, so all of them are slices that are searched from the front; that keeps every
// order the same from run to run, and makes a copy cheap.
type memory struct {
	process string // its run_id
	keys    []entry
	writes  int // commands that wrote
	// counted is what snapshot said of it at so many writes, if it was asked.
	counted   []any
	countedAt int
}

// entry is one key: a string, a hash or a sorted set.
type entry struct {
	name string
	kind kind
	text string
	hash []field
	zset []member
}

type kind uint8

const (
	kindString kind = iota
	kindHash
	kindZset
)

type field struct{ name, value string }

type member struct {
	name  string
	score float64
}

var (
	errWrongType  = errors.New("WRONGTYPE Operation against a key holding the wrong kind of value")
	errNotInteger = errors.New("ERR value is not an integer or out of range")
	errNotFloat   = errors.New("ERR min or max is not a float")
	errArguments  = errors.New("ERR wrong number of arguments")
	errSyntax     = errors.New("ERR syntax error")
)

func (m *memory) clone() *memory {
	c := &memory{process: m.process, keys: slices.Clone(m.keys), writes: m.writes, counted: m.counted, countedAt: m.countedAt}
	for i := range c.keys {
		c.keys[i].hash = slices.Clone(c.keys[i].hash)
		c.keys[i].zset = slices.Clone(c.keys[i].zset)
	}
	return c
}

// find is the entry of a key, or nil.
func (m *memory) find(name string, want kind) (*entry, error) {
	for i := range m.keys {
		if e := &m.keys[i]; e.name == name {
			if e.kind != want {
				return nil, errWrongType
			}
			return e, nil
		}
	}
	return nil, nil
}

// need is find, and makes the entry when there is none.
func (m *memory) need(name string, want kind) (*entry, error) {
	e, err := m.find(name, want)
	if e == nil && err == nil {
		m.keys = append(m.keys, entry{name: name, kind: want})
		e = &m.keys[len(m.keys)-1]
	}
	return e, err
}

func (m *memory) remove(name string) bool {
	before := len(m.keys)
	m.keys = slices.DeleteFunc(m.keys, func(e entry) bool { return e.name == name })
	return len(m.keys) < before
}

func (e *entry) get(name string) (string, bool) {
	if e != nil {
		for i := range e.hash {
			if e.hash[i].name == name {
				return e.hash[i].value, true
			}
		}
	}
	return "", false
}

func (e *entry) set(name, value string) (added bool) {
	for i := range e.hash {
		if e.hash[i].name == name {
			e.hash[i].value = value
			return false
		}
	}
	e.hash = append(e.hash, field{name, value})
	return true
}

// value is a reply of a command: nil, int64, string or []any of these.
type value = any

// do runs one command as Redis does. time is what TIME answers, in Unix microseconds.
func (m *memory) do(time int64, args []string) (value, error) {
	name, args := strings.ToUpper(args[0]), args[1:]
	if n := len(args); n < arity[name] {
		return nil, errArguments
	}
	switch name {
	case "TIME":
		return []any{strconv.FormatInt(time/1e6, 10), strconv.FormatInt(time%1e6, 10)}, nil
	case "INFO":
		return "run_id:" + m.process + "\r\n", nil
	case "GET", "SET", "INCRBY", "DECRBY", "EXISTS", "UNLINK":
		return m.doKey(name, args)
	case "ZADD", "ZREM", "ZCARD", "ZRANGEBYSCORE":
		return m.doZset(name, args)
	case "HSET", "HINCRBY", "HDEL":
		return m.writeHash(name, args)
	case "HGET", "HMGET", "HEXISTS", "HLEN", "HVALS", "HKEYS":
		return m.readHash(name, args)
	}
	return nil, errors.New("ERR unknown command '" + name + "'")
}

// arity is how many arguments each command has at least.
var arity = map[string]int{
	"GET": 1, "SET": 2, "INCRBY": 2, "DECRBY": 2, "EXISTS": 1, "UNLINK": 1,
	"ZADD": 3, "ZREM": 2, "ZCARD": 1, "ZRANGEBYSCORE": 3,
	"HSET": 3, "HINCRBY": 3, "HDEL": 2,
	"HGET": 2, "HMGET": 2, "HEXISTS": 2, "HLEN": 1, "HVALS": 1, "HKEYS": 1,
}

func (m *memory) doKey(name string, args []string) (value, error) {
	switch name {
	case "GET":
		e, err := m.find(args[0], kindString)
		if e == nil {
			return nil, err
		}
		return e.text, nil
	case "SET":
		m.writes++
		m.remove(args[0])
		m.keys = append(m.keys, entry{name: args[0], text: args[1]})
		return "OK", nil
	case "INCRBY", "DECRBY":
		by, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			return nil, errNotInteger
		}
		if name == "DECRBY" {
			by = -by
		}
		e, err := m.find(args[0], kindString)
		if err != nil {
			return nil, err
		}
		if e == nil {
			e, _ = m.need(args[0], kindString)
			e.text = "0"
		}
		have, err := strconv.ParseInt(e.text, 10, 64)
		if err != nil {
			return nil, errNotInteger
		}
		m.writes++
		e.text = strconv.FormatInt(have+by, 10)
		return have + by, nil
	}
	// EXISTS and UNLINK count keys.
	n := int64(0)
	for _, key := range args {
		if name == "UNLINK" {
			if m.remove(key) {
				m.writes++
				n++
			}
			continue
		}
		for i := range m.keys {
			if m.keys[i].name == key {
				n++
			}
		}
	}
	return n, nil
}

func (m *memory) writeHash(name string, args []string) (value, error) {
	if name == "HSET" && len(args)%2 == 0 {
		return nil, errArguments
	}
	e, err := m.find(args[0], kindHash)
	if err != nil {
		return nil, err
	}
	if name == "HDEL" {
		if e == nil {
			return int64(0), nil
		}
		before := len(e.hash)
		for _, f := range args[1:] {
			e.hash = slices.DeleteFunc(e.hash, func(h field) bool { return h.name == f })
		}
		removed := before - len(e.hash)
		if removed > 0 {
			m.writes++
		}
		if len(e.hash) == 0 {
			m.remove(args[0])
		}
		return int64(removed), nil
	}
	if name == "HINCRBY" {
		by, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return nil, errNotInteger
		}
		have := int64(0)
		if text, ok := e.get(args[1]); ok {
			if have, err = strconv.ParseInt(text, 10, 64); err != nil {
				return nil, errors.New("ERR hash value is not an integer")
			}
		}
		e, _ = m.need(args[0], kindHash)
		m.writes++
		e.set(args[1], strconv.FormatInt(have+by, 10))
		return have + by, nil
	}
	e, _ = m.need(args[0], kindHash)
	added := int64(0)
	for i := 1; i < len(args); i += 2 {
		if e.set(args[i], args[i+1]) {
			added++
		}
	}
	m.writes++
	return added, nil
}

func (m *memory) readHash(name string, args []string) (value, error) {
	e, err := m.find(args[0], kindHash)
	if err != nil {
		return nil, err
	}
	switch name {
	case "HGET":
		if text, ok := e.get(args[1]); ok {
			return text, nil
		}
		return nil, nil
	case "HEXISTS":
		if _, ok := e.get(args[1]); ok {
			return int64(1), nil
		}
		return int64(0), nil
	case "HMGET":
		values := make([]any, len(args)-1)
		for i, f := range args[1:] {
			if text, ok := e.get(f); ok {
				values[i] = text
			}
		}
		return values, nil
	}
	if name == "HLEN" {
		if e == nil {
			return int64(0), nil
		}
		return int64(len(e.hash)), nil
	}
	values := []any{}
	if e != nil {
		for i := range e.hash {
			if name == "HKEYS" {
				values = append(values, e.hash[i].name)
			} else {
				values = append(values, e.hash[i].value)
			}
		}
	}
	return values, nil
}

func (m *memory) doZset(name string, args []string) (value, error) {
	e, err := m.find(args[0], kindZset)
	if err != nil {
		return nil, err
	}
	switch name {
	case "ZADD":
		score, err := strconv.ParseFloat(args[1], 64)
		if err != nil {
			return nil, errors.New("ERR value is not a valid float")
		}
		e, _ = m.need(args[0], kindZset)
		m.writes++
		for i := range e.zset {
			if e.zset[i].name == args[2] {
				e.zset[i].score = score
				return int64(0), nil
			}
		}
		e.zset = append(e.zset, member{args[2], score})
		return int64(1), nil
	case "ZREM":
		if e == nil {
			return int64(0), nil
		}
		before := len(e.zset)
		for _, name := range args[1:] {
			e.zset = slices.DeleteFunc(e.zset, func(z member) bool { return z.name == name })
		}
		removed := before - len(e.zset)
		if removed > 0 {
			m.writes++
		}
		if len(e.zset) == 0 {
			m.remove(args[0])
		}
		return int64(removed), nil
	case "ZCARD":
		if e == nil {
			return int64(0), nil
		}
		return int64(len(e.zset)), nil
	}
	return e.rangeByScore(args[1:])
}

// rangeByScore is ZRANGEBYSCORE in the one form that is used: -inf max LIMIT 0 n.
func (e *entry) rangeByScore(args []string) (value, error) {
	if len(args) != 5 || args[0] != "-inf" || strings.ToUpper(args[2]) != "LIMIT" || args[3] != "0" {
		return nil, errSyntax
	}
	highest, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return nil, errNotFloat
	}
	limit, err := strconv.Atoi(args[4])
	if err != nil {
		return nil, errNotInteger
	}
	var in []member
	if e != nil {
		for _, z := range e.zset {
			if z.score <= highest {
				in = append(in, z)
			}
		}
	}
	slices.SortFunc(in, func(a, b member) int {
		return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.name, b.name))
	})
	names := []any{}
	for i := 0; i < len(in) && i < limit; i++ {
		names = append(names, in[i].name)
	}
	return names, nil
}
