package load

import (
	"testing"

	"github.com/stretchr/testify/require"
)

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
	ks := NewKinds()
	for i := range 10 * maxKinds {
		require.Less(t, int(ks.Number(200+i, "", nil)), maxKinds)
	}
	require.Equal(t, kindOther, ks.Number(9999, "", nil))
}
