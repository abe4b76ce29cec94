package report

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBreachesKeepFewExamplesAndTheCount(t *testing.T) {
	var bs Breaches
	for i := range 10 {
		bs.Add("a rule", "shopper %d", i)
	}
	require.Equal(t, Breaches{{Rule: "a rule", Count: 10, Examples: []string{"shopper 0", "shopper 1", "shopper 2"}}}, bs)
}
