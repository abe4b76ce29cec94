package ticket

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"flashgate/internal/sale"
)

// Attempt is what a challenge, such as a captcha, is judged by.
type Attempt struct {
	User    string     `json:"user"`
	SaleID  string     `json:"sale_id"`
	Address netip.Addr `json:"address"`
	Proof   string     `json:"proof"` // as the shopper sent it; "" = none
}

// Challenge decides whether an attempt gets a ticket: nil, or sale.Error
// CHALLENGE_FAILED. Any other error means that nobody knows.
type Challenge func(ctx context.Context, a Attempt) error

// maxVerdictBytes bounds what is read of a judge's answer, which is not looked at.
const maxVerdictBytes = 4 << 10

var errFailed = &sale.Error{Code: sale.CodeChallenge, Detail: "the proof was not accepted"}

// Judge is a Challenge that asks an HTTP service: it POSTs the attempt as JSON, and takes
// 200 or 204 for passed, 401, 403 or 422 for failed. Whatever else it answers, and no
// answer within timeout, is an error.
func Judge(url string, timeout time.Duration) Challenge {
	client := &http.Client{
		Timeout: timeout,
		// A redirect would send shoppers' names elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, a Attempt) error {
		body, err := json.Marshal(a)
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
		answer, err := client.Do(r)
		if err != nil {
			return fmt.Errorf("challenge: %w", err)
		}
		defer answer.Body.Close()
		_, _ = io.CopyN(io.Discard, answer.Body, maxVerdictBytes) // so that the connection is used again
		switch answer.StatusCode {
		case http.StatusOK, http.StatusNoContent:
			return nil
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity:
			return errFailed
		default:
			return fmt.Errorf("challenge: %s", answer.Status)
		}
	}
}
