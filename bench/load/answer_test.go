package load

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"
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

func TestRefusals(t *testing.T) {
	r := &Reader{Kinds: NewKinds()}
	for _, step := range []struct {
		status     int
		body, code string
	}{
		{409, `{"code":"SOLD_OUT"}`, "SOLD_OUT"},
		{409, `{"code":"SOLD_OUT"}`, "SOLD_OUT"},
		{409, `{"code":"NOT_YET!"}`, "NOT_YET!"},
		{429, `{"code":"NOT_YET!"}`, "NOT_YET!"},
		{409, `{"a":1,"code":"SOLD_OUT"}`, "SOLD_OUT"},
		{503, ``, ""},
	} {
		resp := new(fasthttp.Response)
		resp.SetStatusCode(step.status)
		resp.SetBodyString(step.body)
		for _, read := range []func(*Reader, *fasthttp.Response) (Answer, error){ReadPurchase, ReadOrder} {
			a, err := read(r, resp)
			require.NoError(t, err)
			kind := r.Kinds.At(a.Kind)
			require.Equal(t, [2]any{step.status, step.code}, [2]any{kind.Status, kind.Code})
		}
	}
}
