package vegeta

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/bench/load"
)

func TestTargetsAreOnePurchaseAShopper(t *testing.T) {
	shoppers := []load.Shopper{
		{Sale: "s", Key: "k1", Token: "t1"}, {Sale: "s", Key: "k2", Token: "t2"}, {Sale: "s", Key: "k3", Token: "t3"},
	}
	var out bytes.Buffer
	require.NoError(t, WriteTargets(&out, shoppers, []string{"a:1", "b:2"}))
	lines := json.NewDecoder(&out)
	for i, gateway := range []string{"a:1", "b:2", "a:1"} {
		var got target
		require.NoError(t, lines.Decode(&got))
		require.Equal(t, "POST", got.Method)
		require.Equal(t, "http://"+gateway+"/v1/sales/s/purchases", got.URL)
		require.Equal(t, "Bearer "+shoppers[i].Token, got.Header.Get("Authorization"))
		require.Equal(t, shoppers[i].Key, got.Header.Get("Idempotency-Key"))
		require.JSONEq(t, `{"quantity":1}`, string(got.Body))
	}
	require.False(t, lines.More())
}
