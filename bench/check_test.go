package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// kindsOfTest are the kinds that the answers below are made of.
func kindsOfTest() (ks *kinds, yes, soldOut uint8) {
	ks = newKinds()
	return ks, ks.number(202, "", nil), ks.number(409, "SOLD_OUT", nil)
}

// soundStorm draws the answers of a shop that makes no mistake.
func soundStorm(t *rapid.T, yes, soldOut uint8) (sends []answer, winners []int, total int) {
	shoppers := rapid.IntRange(3, 30).Draw(t, "shoppers")
	total = rapid.IntRange(2, shoppers-1).Draw(t, "total")
	won := rapid.Permutation(indices(shoppers)).Draw(t, "winners")[:total]
	sends = make([]answer, 2*shoppers)
	for i := range sends {
		sends[i] = answer{status: 409, kind: soldOut}
	}
	for n, s := range won {
		a := answer{status: 202, kind: yes, order: int64(100 + n)}
		sends[2*s], sends[2*s+1] = a, a
		sends[2*s+rapid.IntRange(0, 1).Draw(t, "replay")].replayed = true
	}
	return sends, won, total
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// TestCheckStormFindsExactlyWhatIsBroken breaks one thing in sound answers.
func TestCheckStormFindsExactlyWhatIsBroken(t *testing.T) {
	ks, yes, soldOut := kindsOfTest()
	other := ks.number(503, "UNAVAILABLE", nil)
	rapid.Check(t, func(t *rapid.T) {
		sends, won, total := soundStorm(t, yes, soldOut)
		require.Empty(t, checkStorm(sends, ks, total))

		a := 2 * won[0]
		b := 2 * won[1]
		var loser int
		for i := range sends {
			if sends[i].status == 409 {
				loser = i
			}
		}
		faults := map[string]func() []string{
			"doubled": func() []string {
				sends[a].order, sends[a+1].order = sends[b].order, sends[b].order
				return []string{ruleDistinct, ruleSellAll}
			},
			"oversell": func() []string {
				pair := loser &^ 1
				sends[pair] = answer{status: 202, kind: yes, order: 7}
				sends[pair+1] = answer{status: 202, kind: yes, order: 7, replayed: true}
				return []string{ruleOversell}
			},
			"undersell": func() []string {
				sends[a], sends[a+1] = sends[loser], sends[loser]
				return []string{ruleSellAll}
			},
			"two ids": func() []string {
				sends[a].order = 7
				return []string{ruleSameID, ruleOversell}
			},
			"refused replay": func() []string {
				sends[a+1] = sends[loser]
				return []string{ruleTruthful}
			},
			"both fresh": func() []string {
				sends[a].replayed, sends[a+1].replayed = false, false
				return []string{ruleReplayed}
			},
			"not answered": func() []string {
				sends[loser] = answer{kind: kindNoAnswer}
				return []string{ruleAnswered}
			},
			"not sent": func() []string {
				sends[loser] = answer{}
				return []string{ruleAnswered}
			},
			"wrong refusal": func() []string {
				sends[loser] = answer{status: 503, kind: other}
				return []string{ruleSoldOut}
			},
			"no id": func() []string {
				sends[a].order, sends[a+1].order = 0, 0
				return []string{ruleOrderID, ruleSellAll}
			},
		}
		name := rapid.SampledFrom([]string{"doubled", "oversell", "undersell", "two ids", "refused replay",
			"both fresh", "not answered", "not sent", "wrong refusal", "no id"}).Draw(t, "fault")
		want := faults[name]()
		var got []string
		for _, breach := range checkStorm(sends, ks, total) {
			got = append(got, breach.Rule)
		}
		require.ElementsMatch(t, want, got)
	})
}

func TestCheckAccept(t *testing.T) {
	ks, yes, soldOut := kindsOfTest()
	sound := []answer{
		{status: 202, kind: yes, order: 1},
		{status: 202, kind: yes, order: 2},
		{},
	}
	require.Empty(t, checkAccept(sound, ks, true))
	require.Equal(t, ruleAnswered, checkAccept(sound, ks, false)[0].Rule)

	for rule, a := range map[string]answer{
		ruleDistinct: {status: 202, kind: yes, order: 1},
		ruleAccepted: {status: 409, kind: soldOut},
		ruleFresh:    {status: 202, kind: yes, order: 3, replayed: true},
		ruleOrderID:  {status: 202, kind: yes},
		ruleAnswered: {kind: kindNoAnswer},
	} {
		bs := checkAccept([]answer{sound[0], a}, ks, true)
		require.Len(t, bs, 1, rule)
		require.Equal(t, rule, bs[0].Rule)
	}
}

func TestBreachesKeepFewExamplesAndTheCount(t *testing.T) {
	var bs breaches
	for i := range 10 {
		bs.add(ruleAnswered, "shopper %d", i)
	}
	require.Equal(t, breaches{{Rule: ruleAnswered, Count: 10, Examples: []string{"shopper 0", "shopper 1", "shopper 2"}}}, bs)
}

func TestEveryShopperSendsTwice(t *testing.T) {
	for _, shoppers := range []int{1, 2, 7, 100} {
		order := firstAndSecond(shoppers)
		require.ElementsMatch(t, indices(2*shoppers), order)
		at := make([]int, 2*shoppers)
		for i, send := range order {
			at[send] = i
		}
		for s := range shoppers {
			require.Less(t, at[2*s], at[2*s+1])
			if s%2 == 0 {
				require.Equal(t, at[2*s]+1, at[2*s+1], "both at once")
			}
		}
	}
}

func TestMember(t *testing.T) {
	for body, want := range map[string]string{
		`{"order_id":"12"}`:              "12",
		`{ "a":1, "order_id" :  "12" }`:  "12",
		"{\"order_id\":\n\t\"12\",\"b\"": "12",
		`{"order_id":12}`:                "",
		`{"order_id":"12`:                "",
		`{"order_id"`:                    "",
		`{}`:                             "",
	} {
		require.Equal(t, want, string(member([]byte(body), `"order_id"`)), body)
	}
}

func TestKindsAreBounded(t *testing.T) {
	ks := newKinds()
	for i := range 10 * maxKinds {
		require.Less(t, int(ks.number(200+i, "", nil)), maxKinds)
	}
	require.Equal(t, kindOther, ks.number(9999, "", nil))
}

func TestLimitsAreRaised(t *testing.T) {
	dir := t.TempDir()
	limits, err := readDocument(filepathOfShippedLimits)
	require.NoError(t, err)
	require.Positive(t, limits.raiseLimits())
	require.NoError(t, limits.write(dir+"/limits.yaml"))
	raised, err := readDocument(dir + "/limits.yaml")
	require.NoError(t, err)
	for _, path := range [][]string{
		{"gateway", "purchase", "rate"}, {"address", "purchase", "burst"}, {"user", "read", "rate"}, {"flow", "purchase_qps"},
	} {
		require.Equal(t, raisedLimit, raised.get(path), path)
	}
	require.Equal(t, "50", raised.get([]string{"breakers", "redis", "error_percent"}), "what is no rate stays")
}

const filepathOfShippedLimits = "../configs/limits.yaml"
