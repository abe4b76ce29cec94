package scenario

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"flashgate/bench/load"
)

// kindsOfTest are the kinds that the answers below are made of.
func kindsOfTest() (ks *load.Kinds, yes, soldOut uint8) {
	ks = load.NewKinds()
	return ks, ks.Number(202, "", nil), ks.Number(409, "SOLD_OUT", nil)
}

// soundStorm draws the answers of a shop that makes no mistake.
func soundStorm(t *rapid.T, yes, soldOut uint8) (sends []load.Answer, winners []int, total int) {
	shoppers := rapid.IntRange(3, 30).Draw(t, "shoppers")
	total = rapid.IntRange(2, shoppers-1).Draw(t, "total")
	won := rapid.Permutation(indices(shoppers)).Draw(t, "winners")[:total]
	sends = make([]load.Answer, 2*shoppers)
	for i := range sends {
		sends[i] = load.Answer{Status: 409, Kind: soldOut}
	}
	for n, s := range won {
		a := load.Answer{Status: 202, Kind: yes, Order: int64(100 + n)}
		sends[2*s], sends[2*s+1] = a, a
		sends[2*s+rapid.IntRange(0, 1).Draw(t, "replay")].Replayed = true
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
	other := ks.Number(503, "UNAVAILABLE", nil)
	rapid.Check(t, func(t *rapid.T) {
		sends, won, total := soundStorm(t, yes, soldOut)
		require.Empty(t, checkSends(sends, 2, ks, total))

		a := 2 * won[0]
		b := 2 * won[1]
		var loser int
		for i := range sends {
			if sends[i].Status == 409 {
				loser = i
			}
		}
		faults := map[string]func() []string{
			"doubled": func() []string {
				sends[a].Order, sends[a+1].Order = sends[b].Order, sends[b].Order
				return []string{RuleDistinct, ruleSellAll}
			},
			"oversell": func() []string {
				pair := loser &^ 1
				sends[pair] = load.Answer{Status: 202, Kind: yes, Order: 7}
				sends[pair+1] = load.Answer{Status: 202, Kind: yes, Order: 7, Replayed: true}
				return []string{RuleOversell}
			},
			"undersell": func() []string {
				sends[a], sends[a+1] = sends[loser], sends[loser]
				return []string{ruleSellAll}
			},
			"two ids": func() []string {
				sends[a].Order = 7
				return []string{RuleSameID, RuleOversell}
			},
			"refused replay": func() []string {
				sends[a+1] = sends[loser]
				return []string{RuleTruthful}
			},
			"both fresh": func() []string {
				sends[a].Replayed, sends[a+1].Replayed = false, false
				return []string{RuleReplayed}
			},
			"not answered": func() []string {
				sends[loser] = load.Answer{Kind: load.KindNoAnswer}
				return []string{RuleAnswered}
			},
			"not sent": func() []string {
				sends[loser] = load.Answer{}
				return []string{RuleAnswered}
			},
			"wrong refusal": func() []string {
				sends[loser] = load.Answer{Status: 503, Kind: other}
				return []string{RuleSoldOut}
			},
			"no id": func() []string {
				sends[a].Order, sends[a+1].Order = 0, 0
				return []string{RuleOrderID, ruleSellAll}
			},
		}
		name := rapid.SampledFrom([]string{"doubled", "oversell", "undersell", "two ids", "refused replay",
			"both fresh", "not answered", "not sent", "wrong refusal", "no id"}).Draw(t, "fault")
		want := faults[name]()
		var got []string
		for _, breach := range checkSends(sends, 2, ks, total) {
			got = append(got, breach.Rule)
		}
		require.ElementsMatch(t, want, got)
	})
}

func TestCheckAccept(t *testing.T) {
	ks, yes, soldOut := kindsOfTest()
	sound := []load.Answer{
		{Status: 202, Kind: yes, Order: 1},
		{Status: 202, Kind: yes, Order: 2},
		{},
	}
	require.Empty(t, checkAccept(sound, ks, true))
	require.Equal(t, RuleAnswered, checkAccept(sound, ks, false)[0].Rule)

	for rule, a := range map[string]load.Answer{
		RuleDistinct: {Status: 202, Kind: yes, Order: 1},
		RuleAccepted: {Status: 409, Kind: soldOut},
		ruleFresh:    {Status: 202, Kind: yes, Order: 3, Replayed: true},
		RuleOrderID:  {Status: 202, Kind: yes},
		RuleAnswered: {Kind: load.KindNoAnswer},
	} {
		bs := checkAccept([]load.Answer{sound[0], a}, ks, true)
		require.Len(t, bs, 1, rule)
		require.Equal(t, rule, bs[0].Rule)
	}
}

func TestEveryShopperSendsAsOftenAsTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shoppers, n := rapid.IntRange(1, 60).Draw(t, "shoppers"), rapid.IntRange(1, 6).Draw(t, "sends")
		order := sendOrder(shoppers, n)
		require.ElementsMatch(t, indices(n*shoppers), order)
		at := make([]int, n*shoppers)
		for i, send := range order {
			at[send] = i
		}
		for s := range shoppers {
			for i := 1; i < n; i++ {
				require.Less(t, at[n*s+i-1], at[n*s+i])
				if s%2 == 0 {
					require.Equal(t, at[n*s]+i, at[n*s+i], "all at once")
				}
			}
		}
	})
}
