package stock

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"flashgate/internal/sale"
	"flashgate/lua"
)

// recorder keeps the calls of scripts that pass through it, by script.
type recorder struct {
	rueidis.Client
	names map[string]string // by hash
	calls map[string][]scriptCall
}

type scriptCall struct{ keys, args []string }

func (r *recorder) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	r.record(cmd)
	return r.Client.Do(ctx, cmd)
}

func (r *recorder) DoMulti(ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	for _, cmd := range cmds {
		r.record(cmd)
	}
	return r.Client.DoMulti(ctx, cmds...)
}

func (r *recorder) record(cmd rueidis.Completed) {
	words := cmd.Commands()
	if words[0] != "EVALSHA" {
		return
	}
	n, err := strconv.Atoi(words[2])
	if err != nil {
		panic("BUG: EVALSHA without a number of keys")
	}
	name := r.names[words[1]]
	r.calls[name] = append(r.calls[name], scriptCall{append([]string(nil), words[3:3+n]...), append([]string(nil), words[3+n:]...)})
}

// header is what a script's file says of its call.
type header struct{ keys, args, returns string }

var headerForm = regexp.MustCompile(`(?s)\A-- (\w+): .*?\n--\n-- KEYS    ?(.*?)\n-- ARGV ? ? ? ?(.*?)\n-- RETURNS (.*?)\n`)

func readHeader(t *testing.T, name string) header {
	t.Helper()
	match := headerForm.FindStringSubmatch(lua.File(name))
	require.NotNil(t, match, "%s.lua does not open with its name, KEYS, ARGV and RETURNS", name)
	require.Equal(t, name, match[1])
	return header{match[2], match[3], match[4]}
}

// TestHeaders holds the header of each script against the script itself, against its
// declaration here, and against the calls that are really made.
func TestHeaders(t *testing.T) {
	calls := recordCalls(t)
	unpacked := regexp.MustCompile(`(?m)^local ([\w, ]+) = unpack\(KEYS\)$`)
	arguments := regexp.MustCompile(`(?m)^local ([\w, ]+) = (?:unpack\(ARGV, 1, (\d+)\)|ARGV\[1\])$`)
	touched := regexp.MustCompile(`redis\.call\('\w+', (\w+)`)

	require.Len(t, scripts, len(lua.Names()))
	for _, name := range lua.Names() {
		t.Run(name, func(t *testing.T) {
			h, sc, file := readHeader(t, name), scripts[name], lua.File(name)
			require.NotNil(t, sc, "nobody calls it")
			require.NotEmpty(t, h.returns)

			keys := make([]string, len(sc.keys))
			for i, k := range sc.keys {
				keys[i] = string(k)
			}
			require.Equal(t, h.keys, strings.Join(keys, " "), "KEYS of the header and of the declaration")
			require.Equal(t, h.args, sc.args, "ARGV of the header and of the declaration")

			// The script gives its keys, and those arguments that come once, their names.
			match := unpacked.FindStringSubmatch(file)
			require.NotNil(t, match, "KEYS are not unpacked")
			require.Equal(t, strings.Join(keys, ", "), match[1])
			single, group := readArgs(h.args)
			if len(single) > 0 {
				match = arguments.FindStringSubmatch(file)
				require.NotNil(t, match, "ARGV is not unpacked")
				require.Equal(t, strings.Join(single, ", "), match[1])
			}

			// Every key it touches is in KEYS, and it builds none.
			for _, match := range touched.FindAllStringSubmatch(file, -1) {
				require.Contains(t, keys, match[1], "it touches a key that is not in KEYS")
			}
			require.NotContains(t, file, "fg:")

			require.NotEmpty(t, calls[name], "recordCalls does not call it")
			for _, call := range calls[name] {
				require.Len(t, call.keys, len(keys))
				for i, k := range call.keys {
					require.True(t, strings.HasSuffix(k, "}:"+keys[i]), "key %d is %s, the header says %s", i+1, k, keys[i])
				}
				rest := len(call.args) - len(single)
				require.GreaterOrEqual(t, rest, 0, "fewer arguments than the header names")
				if group == 0 {
					require.Zero(t, rest, "more arguments than the header names")
				} else {
					require.Zero(t, rest%group, "the arguments that repeat come in groups of %d", group)
				}
			}
		})
	}
}

// readArgs reads the ARGV of a header: the names that come once, and how many there
// are in the group that repeats ("name*" or "(name name)*"), 0 if there is none.
func readArgs(args string) (single []string, group int) {
	args, repeated, found := strings.Cut(args, "(")
	if found {
		return strings.Fields(args), len(strings.Fields(strings.TrimSuffix(repeated, ")*")))
	}
	for _, name := range strings.Fields(args) {
		if strings.HasSuffix(name, "*") {
			return single, 1
		}
		single = append(single, name)
	}
	return single, 0
}

// recordCalls makes every call there is, in each of its forms.
func recordCalls(t *testing.T) map[string][]scriptCall {
	t.Helper()
	s := openMiniredis(t)
	r := &recorder{Client: s.client, names: map[string]string{}, calls: map[string][]scriptCall{}}
	for name, sc := range scripts {
		r.names[sc.sha1] = name
	}
	s.client = r

	f := newFixture(t, s)
	order := f.order("ann", "k", 1)
	f.mustLoad(t, LoadSource{Orders: loadOrdersOf(LoadedOrder{Order: order, BatchID: 1}), Batches: loadBatchesOf(*f.batch(f.order("bob", "k", 1)))})
	f.mustRelease(t, f.win(t, "cy", "k", 1), StateVoid)
	f.mustConfirm(t, f.batch(f.order("dee", "k", 1)), StateVoid)
	f.mustRelease(t, f.batch(f.order("dee", "k", 1)), StateVoid)
	_, err := f.Adopt(t.Context(), f.batch(f.order("eve", "k", 1)))
	require.NoError(t, err)
	lost := f.batch(f.order("fay", "k", 1))
	_, err = f.Settle(t.Context(), f.sale.ID, []sale.ID{lost.ID, f.win(t, "gus", "k", 1).ID}, active(lost))
	require.NoError(t, err)
	f.mustRestore(t, &order, 1, true)
	f.lookup(t, "ann")
	_, err = f.Adjust(t.Context(), f.sale.ID, 20, 2)
	require.NoError(t, err)
	_, err = f.Due(t.Context(), f.sale.ID, 10)
	require.NoError(t, err)
	_, err = f.PurgeVoids(t.Context(), f.sale.ID, time.Hour)
	require.NoError(t, err)
	_, _, err = f.Quota(t.Context(), "gateway", "purchase", 10, 10, 1)
	require.NoError(t, err)
	_, _, err = f.Server(t.Context(), f.sale.ID, "")
	require.NoError(t, err)
	_, err = f.SoldOut(t.Context(), f.sale.ID, MaxLease, 10)
	require.NoError(t, err)
	_, _, err = f.OldestOpen(t.Context(), f.sale.ID, 0, 1)
	require.NoError(t, err)
	records, err := f.Records(t.Context(), f.sale.ID, []string{"ann", "nobody"})
	require.NoError(t, err)
	_, err = f.Amend(t.Context(), f.sale.ID, &records["ann"][0], 2, false)
	require.NoError(t, err)
	for _, maxBuyers := range []int64{recountMax, 0} {
		_, ok, err := f.recount(t.Context(), f.sale.ID, recountRepair, maxBuyers)
		require.NoError(t, err)
		require.True(t, ok)
	}
	return r.calls
}

func TestKeysOfOneSaleShareASlot(t *testing.T) {
	require.Equal(t, []string{"fg:{S}:stock", "fg:{S}:meta"}, keysOf("S", wholeSale, keyStock, keyMeta))
	require.Equal(t, []string{"fg:{S.3}:buyers"}, keysOf("S", 3, keyBuyers))
}
