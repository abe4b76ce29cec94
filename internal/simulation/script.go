package simulation

import (
	"fmt"
	"slices"
	"strings"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/parse"

	scripts "flashgate/lua"
)

// interpreter runs the scripts of package lua on a memory, as Redis would. It is not
// safe for concurrent use.
type interpreter struct {
	state   *lua.LState
	scripts map[string]*lua.LFunction

	// The call under way.
	memory *memory
	time   int64 // Unix microseconds
	args   []string
}

// newInterpreter compiles the scripts, with the patches of a planted bug.
func newInterpreter(bug *Bug) *interpreter {
	in := &interpreter{
		state: lua.NewState(lua.Options{
			SkipOpenLibs: true, RegistrySize: registrySlots, CallStackSize: callDepth,
		}),
		scripts: make(map[string]*lua.LFunction),
	}
	for _, lib := range []struct {
		name string
		open lua.LGFunction
	}{{lua.BaseLibName, lua.OpenBase}, {lua.StringLibName, lua.OpenString}, {lua.TabLibName, lua.OpenTable}, {lua.MathLibName, lua.OpenMath}} {
		in.state.Push(in.state.NewFunction(lib.open))
		in.state.Push(lua.LString(lib.name))
		in.state.Call(1, 0)
	}
	redis := in.state.NewTable()
	redis.RawSetString("call", in.state.NewFunction(in.call))
	redis.RawSetString("pcall", in.state.NewFunction(in.call)) // of what cannot fail here
	in.state.SetGlobal("redis", redis)

	patched := make(map[*patch]bool)
	for _, name := range scripts.Names() {
		text := scripts.Source(name)
		if bug != nil {
			for i := range bug.patches {
				if p := &bug.patches[i]; p.applies(name) && strings.Contains(text, p.old) {
					text = strings.ReplaceAll(text, p.old, p.new)
					patched[p] = true
				}
			}
		}
		in.scripts[name] = in.compile(name, text)
	}
	if bug != nil && len(patched) != len(bug.patches) {
		panic(fmt.Sprintf("BUG: the patches of %q do not fit the scripts any more", bug.Name))
	}
	return in
}

// compile makes a function of a script. The prelude, which only defines, is run once
// here and not at each call, where it would take most of the time.
func (in *interpreter) compile(name, text string) *lua.LFunction {
	own := strings.LastIndex(text, "\n-- "+name+":")
	if own < 0 {
		panic("BUG: script " + name + " does not open with its name")
	}
	text = text[:own] + "\nreturn function()" + text[own:] + "\nend"
	chunk, err := parse.Parse(strings.NewReader(text), name)
	if err != nil {
		panic(fmt.Sprintf("BUG: script %s: %v", name, err))
	}
	proto, err := lua.Compile(chunk, name)
	if err != nil {
		panic(fmt.Sprintf("BUG: script %s: %v", name, err))
	}
	in.state.Push(in.state.NewFunctionFromProto(proto))
	in.state.Call(0, 1)
	script := in.state.CheckFunction(-1)
	in.state.Pop(1)
	return script
}

// A script of one small sale needs few of either.
const (
	registrySlots = 2048
	callDepth     = 64
)

// run runs a script whole, and returns its reply. An error leaves what the script
// had written until then.
//
// More than half of all calls are a reconciler's snapshot of a sale that nobody has
// changed since the last one: its reply is kept, but for the time in it.
func (in *interpreter) run(m *memory, time int64, name string, keys, args []string) (value, error) {
	if name != "snapshot" {
		return in.execute(m, time, name, keys, args)
	}
	if m.counted == nil || m.countedAt != m.writes {
		reply, err := in.execute(m, time, name, keys, args)
		list, ok := reply.([]any)
		if err != nil || !ok {
			return reply, err
		}
		m.counted, m.countedAt = list, m.writes
	}
	reply, at := slices.Clone(m.counted), 0
	if len(reply) == 2 {
		at = 1 // not loaded
	}
	reply[at] = time / 1000
	return reply, nil
}

func (in *interpreter) execute(m *memory, time int64, name string, keys, args []string) (value, error) {
	in.memory, in.time = m, time
	in.state.SetGlobal("KEYS", in.list(keys))
	in.state.SetGlobal("ARGV", in.list(args))
	script := in.scripts[name]
	if script == nil {
		panic("BUG: no such script: " + name)
	}
	in.state.Push(script)
	if err := in.state.PCall(0, 1, nil); err != nil {
		return nil, fmt.Errorf("script %s: %w", name, err)
	}
	reply := fromLua(in.state.Get(-1))
	in.state.Pop(1)
	return reply, nil
}

func (in *interpreter) list(texts []string) *lua.LTable {
	t := in.state.CreateTable(len(texts), 0)
	for _, s := range texts {
		t.Append(lua.LString(s))
	}
	return t
}

// call is redis.call.
func (in *interpreter) call(l *lua.LState) int {
	in.args = in.args[:0]
	for i := 1; i <= l.GetTop(); i++ {
		switch a := l.Get(i).(type) {
		case lua.LString:
			in.args = append(in.args, string(a))
		case lua.LNumber:
			in.args = append(in.args, a.String())
		default:
			l.RaiseError("ERR Lua redis lib command arguments must be strings or integers")
		}
	}
	reply, err := in.memory.do(in.time, in.args)
	if err != nil {
		l.RaiseError("%s", err.Error())
	}
	l.Push(toLua(l, reply))
	return 1
}

func toLua(l *lua.LState, v value) lua.LValue {
	switch v := v.(type) {
	case int64:
		return lua.LNumber(v)
	case string:
		return lua.LString(v)
	case []any:
		t := l.CreateTable(len(v), 0)
		for _, each := range v {
			t.Append(toLua(l, each))
		}
		return t
	}
	return lua.LFalse // Redis gives nil as false
}

// fromLua converts a script's return value: a number loses what is behind the point,
// and an array ends at its first nil.
func fromLua(v lua.LValue) value {
	switch v := v.(type) {
	case lua.LNumber:
		return int64(v)
	case lua.LString:
		return string(v)
	case *lua.LTable:
		list := make([]any, 0, v.Len())
		for i := 1; ; i++ {
			each := v.RawGetInt(i)
			if each == lua.LNil {
				return list
			}
			list = append(list, fromLua(each))
		}
	case lua.LBool:
		if bool(v) {
			return int64(1)
		}
	}
	return nil
}
