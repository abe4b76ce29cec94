// Package vegeta makes the requests that vegeta sends: purchases, each with a token and a
// key of its own, which no flag of vegeta can say.
package vegeta

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"

	"flashgate/bench/load"
)

// target is one line of vegeta's -format=json.
type target struct {
	Method string      `json:"method"`
	URL    string      `json:"url"`
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"` // base64
}

var purchase = []byte(`{"quantity":1}`)

// WriteTargets writes one purchase a shopper, a line each, to the gateways (host:port) by
// turns.
func WriteTargets(w io.Writer, shoppers []load.Shopper, gateways []string) error {
	out := bufio.NewWriter(w)
	lines := json.NewEncoder(out)
	for i := range shoppers {
		s := &shoppers[i]
		err := lines.Encode(target{
			Method: http.MethodPost,
			URL:    "http://" + gateways[i%len(gateways)] + "/v1/sales/" + s.Sale + "/purchases",
			Header: http.Header{
				"Authorization":   {"Bearer " + s.Token},
				"Idempotency-Key": {s.Key},
				"Content-Type":    {"application/json"},
			},
			Body: purchase,
		})
		if err != nil {
			return err
		}
	}
	return out.Flush()
}
